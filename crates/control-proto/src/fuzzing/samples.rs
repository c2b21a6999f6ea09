//! Inputs to begin with.

use super::*;
use crate::{
    relay::{RelaySpec, ServedNode},
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec, WorkloadSpec},
    *,
};
use meshward_types::{
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256},
    relay::RelayNumber,
    token::{Fingerprint, JoinToken},
    *,
};
use std::sync::Arc;

pub(super) fn name<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a sample is well-formed")
}

fn workload() -> WorkloadReport {
    let image = Image {
        repository: Some(name_of("registry.example/shop/web")),
        digest: Sha256::of(b"image"),
    };
    let signature = ImageSignature { payload: "{}".into(), signature: "c2ln".into() };
    WorkloadReport {
        id: name("w1"),
        network: name("shop"),
        name: name("web"),
        labels: name("app=web,env=prod"),
        addresses: vec![name("10.42.0.7"), name("fd42::7")],
        prefixes: vec![name("192.168.7.0/24")],
        device: Some(PublicKey([7; 32])),
        accepts: vec![name("app=api,port=tcp/80")],
        measurement: Some(Arc::new(Measurement {
            runtime: "docker".into(),
            images: vec![image],
            config: Sha256::of(b"config"),
            privileges: vec!["privileged".into()],
            sharing: vec![],
        })),
        signatures: vec![ImageSignatures {
            image: Sha256::of(b"image"),
            signatures: vec![signature],
        }],
        objection: Some("no".into()),
        unhealthy: vec![name("api")],
    }
}

fn name_of(text: &str) -> Repository {
    Repository::of_reference(text).expect("a sample is well-formed")
}

fn endpoint() -> EndpointReport {
    EndpointReport {
        network: name("shop"),
        public_key: PublicKey([9; 32]),
        port: 51820,
        reflexive: vec![name("198.51.100.7:4000")],
        advertised: vec![],
        interfaces: vec![name("[2001:db8::7]:51820")],
        relays: vec![RelayNumber::COORDINATOR],
    }
}

#[expect(clippy::too_many_lines, reason = "one change of each kind")]
fn changes() -> Vec<Change> {
    let network: NetworkName = name("shop");
    let node: NodeName = name("rack");
    let put = |key: ResourceKey, resource: Resource| Change::Put(key, resource);
    let acl = Acl::new(vec![AclEntry {
        protocol: Protocol::Tcp,
        ports: name::<PortSpec>("tcp/80-90").ports,
    }]);
    vec![
        put(
            ResourceKey::Network(network.clone()),
            Resource::Network(NetworkSpec {
                prefixes: vec![name("10.42.0.0/16")],
                admission: true,
                resolver: vec![name("10.42.255.53")],
                ..NetworkSpec::with_mtu(1420)
            }),
        ),
        put(
            ResourceKey::Peer(network.clone(), node.clone()),
            Resource::Peer(PeerSpec {
                public_key: PublicKey([9; 32]),
                candidates: vec![name("192.0.2.1:51820")],
                prefixes: vec![name("10.42.1.0/24")],
                site: Some("eu".into()),
            }),
        ),
        put(
            ResourceKey::Identity(network.clone(), IdentityId(3)),
            Resource::Identity(IdentitySpec {
                labels: name("app=web"),
                accepts: vec![],
                quarantined: false,
                reset: false,
            }),
        ),
        put(
            ResourceKey::Workload(network.clone(), name("w1")),
            Resource::Workload(WorkloadSpec {
                node,
                addresses: vec![name("10.42.1.7")],
                prefixes: vec![name("192.168.7.0/24")],
                identity: IdentityId(3),
                quarantined: false,
                reset: false,
                name: Some(name("web")),
                states: InstanceStates::default(),
            }),
        ),
        put(
            ResourceKey::Service(network.clone(), name("api")),
            Resource::Service(ServiceSpec {
                addresses: vec![name("10.42.255.1")],
                instances: name("app=web"),
                ports: vec![ServicePort { protocol: Protocol::Tcp, port: 80, target: 8080 }],
                prefer: vec![Nearness::Site],
                health: None,
                affinity: Affinity::None,
                weights: vec![WeightRule { instances: name("app=web"), weight: Weight::default() }],
            }),
        ),
        put(ResourceKey::Link(network.clone(), IdentityId(3), IdentityId(3)), Resource::Link(acl)),
        put(ResourceKey::Refused(network, name("w2")), Resource::Refused("not signed".into())),
    ]
}

fn tagged(tag: u8, message: &impl Serialize) -> Vec<u8> {
    [&[tag], &encode(message)[4..]].concat()
}

pub(super) fn control() -> Vec<Vec<u8>> {
    [from_node(), from_coordinator(), questions_and_answers(), joining(), relay_links()].concat()
}

/// Messages from a node.
fn from_node() -> Vec<Vec<u8>> {
    let network: NetworkName = name("shop");
    let hello = FromNode::Hello {
        version: "0.1.0".into(),
        instance: InstanceId([7; 16]),
        clock: 1_700_000_000,
        revision: Revision(7),
        digest: view::Digest::default(),
    };
    let has = FromNode::Inventory {
        endpoints: vec![endpoint()],
        workloads: vec![workload()],
        is_last: true,
    };
    let fired = Fired {
        network: network.clone(),
        trigger: "scan".into(),
        workload: name("w1"),
        denied_flows: 9,
        distinct_ports: 8,
        distinct_addresses: 7,
    };
    let load = InstanceLoad {
        network: name("shop"),
        service: name("api"),
        instance: name("w1"),
        open: 300,
        begun: 20,
        connect_time: Some(Duration::from_micros(700)),
    };
    vec![
        tagged(0, &hello),
        tagged(0, &has),
        tagged(0, &FromNode::Endpoint(endpoint())),
        tagged(0, &FromNode::Started(workload())),
        tagged(0, &FromNode::Fired(fired)),
        tagged(0, &FromNode::Renew { csr: vec![1, 2, 3] }),
        tagged(0, &FromNode::Leave),
        tagged(
            0,
            &FromNode::Health {
                workload: name("w1"),
                service: name("api"),
                health: Health::Unhealthy,
            },
        ),
        tagged(0, &FromNode::Load(vec![load])),
    ]
}

/// Messages from the coordinator to a node.
fn from_coordinator() -> Vec<Vec<u8>> {
    let network: NetworkName = name("shop");
    let relay = RelaySpec {
        number: RelayNumber(2),
        name: name("relay"),
        addresses: vec!["relay.example:7443".into()],
        stun_port: 3478,
    };
    vec![
        tagged(
            1,
            &FromCoordinator::Update { revision: Revision(8), changes: changes(), urgent: true },
        ),
        tagged(1, &FromCoordinator::Relays(vec![relay])),
        tagged(
            1,
            &FromCoordinator::RotateKeys { networks: vec![network.clone()], keep_old_seconds: 60 },
        ),
    ]
}

/// Requests of the coordinator, and a node's answers.
fn questions_and_answers() -> Vec<Vec<u8>> {
    let network: NetworkName = name("shop");
    let count = Count { packets: 1, bytes: 2, denied: 3, observed: 4 };
    let order = DeviceOrder {
        network: network.clone(),
        name: name("phone"),
        labels: name("app=phone"),
        public_key: PublicKey([1; 32]),
    };
    let device = DeviceAnswer {
        id: name("w3"),
        addresses: vec![name("10.42.0.9")],
        public_key: PublicKey([2; 32]),
        prefixes: vec![],
        mtu: 1420,
    };
    let flow = LoggedFlow {
        from: IdentityId(1),
        to: IdentityId(2),
        protocol: Protocol::Udp,
        port: 53,
        passed: true,
    };
    let link = LinkAcl { from: IdentityId(1), to: IdentityId(2), acl: Acl::default() };
    vec![
        tagged(2, &Question::Cuts { network: network.clone(), links: vec![link] }),
        tagged(2, &Question::AddDevice(order)),
        tagged(
            3,
            &Answer::Links(vec![LinkCount {
                network,
                from: IdentityId(1),
                to: IdentityId(2),
                count,
            }]),
        ),
        tagged(3, &Answer::Flows(vec![flow])),
        tagged(3, &Answer::Device(Ok(device))),
    ]
}

/// Messages of joining.
fn joining() -> Vec<Vec<u8>> {
    let secret = JoinToken::new(Fingerprint([1; 32]), [2; 24]).secret();
    let join = JoinRequest {
        secret,
        name: name("rack"),
        kind: MemberKind::Node,
        labels: name("site=a"),
        csr: vec![0x30, 0x82],
        clock: 1_700_000_000,
        forget_after: None,
    };
    let accepted = JoinReply::Accepted {
        certificate: vec![0x30],
        mesh: "0123456789ab".into(),
        site: Some("a".into()),
    };
    vec![tagged(4, &join), tagged(5, &accepted)]
}

/// Messages of relays' links.
fn relay_links() -> Vec<Vec<u8>> {
    let served = ServedNode { node: name("rack"), key: "00".repeat(32) };
    vec![
        tagged(
            6,
            &FromRelay::Hello {
                version: "0".into(),
                addresses: vec![":7443".into()],
                stun_port: 3478,
            },
        ),
        tagged(7, &ToRelay::Members(vec![served])),
    ]
}

pub(super) fn views() -> Vec<Vec<u8>> {
    let all = changes();
    let mut replica = ViewReplica::default();
    replica.apply(Revision(3), &all);
    let whole = encode(replica.view());
    let forget = vec![Change::Forget(name("shop"), IdentityId(3))];
    let updates = [
        encode(&all),
        encode(&forget),
        encode(&vec![Change::Drop(ResourceKey::Network(name("shop")))]),
    ];
    let frames = [&whole[4..]].into_iter().chain(updates.iter().map(|frame| &frame[4..]));
    vec![blocks(frames), blocks([&[][..], &updates[0][4..], &updates[1][4..]])]
}

pub(super) fn relay_frames() -> Vec<Vec<u8>> {
    let (to, network) = (RelayId::of(&name("rack")), RelayNetwork::of(&name("shop")));
    let batch = |number, length: usize, most| {
        MessageBatch { to, network, number, messages: &vec![7; length], size: 100 }
            .frames(most)
            .collect::<Vec<_>>()
    };
    let mixed = [batch(1, 450, 200), batch(2, 90, 1400)].concat();
    let reversed: Vec<Vec<u8>> = batch(3, 900, 120).into_iter().rev().collect();
    let plain = [&[0, 99, 2, 0, 1, 0, 1][..], &[1; 700]].concat();
    vec![blocks(mixed), blocks(reversed), plain]
}
