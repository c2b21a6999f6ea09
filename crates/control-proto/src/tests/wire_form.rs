//! Tests that the wire form of every message is that of the channels' version, byte for byte.

use crate::{
    relay::{FromRelay, MessageBatch, NodeInstance, RelaySpec, ServedNode, ToRelay},
    view::{
        Digest, Hash128, IdentitySpec, NetworkSpec, PeerSpec, ResourceHashes, ServiceSpec,
        WorkloadSpec,
    },
    *,
};
use meshward_types::{
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256, SharingContainer},
    outside::{Effect, OutsideRule, Precedence},
    relay::{RelayId, RelayNetwork, RelayNumber},
    trigger::TriggerSpec,
    *,
};
use serde::Serialize;
use std::{
    any::type_name,
    collections::BTreeSet,
    fmt::{Debug, Write},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

/// The messages that [`all`] makes, in their wire form: a name and hexadecimal digits a line.
const WIRE: &str = include_str!("../testdata/version-3.txt");

#[test]
fn every_message_is_encoded_as_the_version_says_byte_for_byte() {
    for channel in Channel::ALL {
        assert_eq!(channel.versions()[0].0, 3, "{channel}: compare with the file of the version");
    }
    let written = all();
    for (line, known) in written.lines().zip(WIRE.lines()) {
        assert_eq!(
            line, known,
            "the wire form has changed: that is a new version of the channel, with a file of its \
             own beside this one"
        );
    }
    assert_eq!(written.lines().count(), WIRE.lines().count());
}

/// Checks that there are messages of every kind, and that kinds are encoded by their numbers. A new
/// kind has no number in the tests: add it to the samples, too.
fn check<T: Serialize>(messages: &[T], kind: fn(&T) -> u8) {
    for message in messages {
        assert_eq!(encode(message)[4], kind(message), "variants are numbered in their order");
    }
    let kinds: BTreeSet<u8> = messages.iter().map(kind).collect();
    assert!(kinds.iter().copied().eq(0..kinds.len() as u8), "{kinds:?} of {}", type_name::<T>());
}

#[test]
fn the_messages_of_sessions_are_of_every_kind() {
    check(&from_node(), |message| match message {
        FromNode::Hello { .. } => 0,
        FromNode::Inventory { .. } => 1,
        FromNode::ResourceHashes { .. } => 2,
        FromNode::Endpoint(_) => 3,
        FromNode::Started(_) => 4,
        FromNode::Stopped(_) => 5,
        FromNode::Enforced(_) => 6,
        FromNode::Fired(_) => 7,
        FromNode::PunchHole { .. } => 8,
        FromNode::Renew { .. } => 9,
        FromNode::Degraded(_) => 10,
        FromNode::Leave => 11,
        FromNode::Health { .. } => 12,
        FromNode::Load(_) => 13,
    });
    check(&from_coordinator(), |message| match message {
        FromCoordinator::Compare => 0,
        FromCoordinator::Update { .. } => 1,
        FromCoordinator::Refused { .. } => 2,
        FromCoordinator::OverBudget { .. } => 3,
        FromCoordinator::StandBy { .. } => 4,
        FromCoordinator::PunchHole { .. } => 5,
        FromCoordinator::Renewed { .. } => 6,
        FromCoordinator::Relays(_) => 7,
        FromCoordinator::RotateKeys { .. } => 8,
        FromCoordinator::RefusedEndpoint { .. } => 9,
    });
}

#[test]
fn the_questions_and_answers_are_of_every_kind() {
    check(&questions(), |question| match question {
        Question::Alive => 0,
        Question::Links => 1,
        Question::Cuts { .. } => 2,
        Question::Flows { .. } => 3,
        Question::AddDevice(_) => 4,
        Question::RemoveDevice(_) => 5,
        Question::OpenFlows { .. } => 6,
    });
    check(&answers(), |answer| match answer {
        Answer::Alive => 0,
        Answer::Links(_) => 1,
        Answer::Cuts(_) => 2,
        Answer::Flows(_) => 3,
        Answer::Device(_) => 4,
        Answer::Removed(_) => 5,
        Answer::OpenFlows(_) => 6,
    });
}

#[test]
fn the_messages_of_joining_and_relays_are_of_every_kind() {
    check(&join_replies(), |reply| match reply {
        JoinReply::Accepted { .. } => 0,
        JoinReply::Refused(_) => 1,
    });
    check(&from_relay(), |message| match message {
        FromRelay::Hello { .. } => 0,
        FromRelay::Renew { .. } => 1,
    });
    check(&to_relay(), |message| match message {
        ToRelay::Members(_) => 0,
        ToRelay::Admit(_) => 1,
        ToRelay::Expel(_) => 2,
        ToRelay::Sessions(_) => 3,
        ToRelay::Session { .. } => 4,
        ToRelay::Renewed { .. } => 5,
    });
}

#[test]
fn the_changes_and_resources_are_of_every_kind() {
    check(&changes(), |change| match change {
        Change::Put(..) => 0,
        Change::Drop(_) => 1,
        Change::Forget(..) => 2,
    });
    let put = |change| match change {
        Change::Put(key, resource) => Some((key, resource)),
        _ => None,
    };
    let (keys, resources): (Vec<_>, Vec<_>) = changes().into_iter().filter_map(put).unzip();
    check(&keys, |key| match key {
        ResourceKey::Network(_) => 0,
        ResourceKey::Peer(..) => 1,
        ResourceKey::Identity(..) => 2,
        ResourceKey::Workload(..) => 3,
        ResourceKey::Link(..) => 4,
        ResourceKey::Trigger(..) => 5,
        ResourceKey::Refused(..) => 6,
        ResourceKey::Service(..) => 7,
    });
    check(&resources, |resource| match resource {
        Resource::Network(_) => 0,
        Resource::Peer(_) => 1,
        Resource::Identity(_) => 2,
        Resource::Workload(_) => 3,
        Resource::Link(_) => 4,
        Resource::Trigger(_) => 5,
        Resource::Refused(_) => 6,
        Resource::Service(_) => 7,
    });
}

/// Writes every message in its wire form, one a line.
fn all() -> String {
    let mut text = String::new();
    append(&mut text, "from-node", &from_node());
    append(&mut text, "from-coordinator", &from_coordinator());
    append(&mut text, "question", &questions());
    append(&mut text, "answer", &answers());
    append(&mut text, "join-request", &join_requests());
    append(&mut text, "join-reply", &join_replies());
    append(&mut text, "from-relay", &from_relay());
    append(&mut text, "to-relay", &to_relay());
    append(&mut text, "change", &changes());
    for frame in relay_frames() {
        line(&mut text, "relay-frame", &frame);
    }
    let hash = changes().iter().find_map(|change| match change {
        Change::Put(key, resource) => Some(Hash128::of(key, resource)),
        _ => None,
    });
    append(&mut text, "hash", &[hash]);
    text
}

fn append<T: Serialize>(text: &mut String, name: &str, messages: &[T]) {
    for message in messages {
        line(text, name, &encode(message));
    }
}

fn line(text: &mut String, name: &str, bytes: &[u8]) {
    write!(text, "{name} ").unwrap();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text.push('\n');
}

fn of<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn shop() -> NetworkName {
    of("shop")
}

fn rack() -> NodeName {
    of("rack")
}

fn key() -> PublicKey {
    PublicKey([7; 32])
}

fn acl() -> Acl {
    let entry = |text: &str| {
        let PortSpec { protocol, ports } = of(text);
        AclEntry { protocol: protocol.unwrap(), ports }
    };
    Acl::new(vec![entry("tcp/80-90"), entry("udp/53")])
        .with_observed(vec![entry("tcp/443")])
        .with_forensics(vec![entry("tcp/22")])
}

fn outside_acl() -> Acl {
    let rule = |target: &str, precedence, effect, on_deny| OutsideRule {
        targets: vec![of(target)],
        precedence,
        effect,
        ports: entries_of(&[of("tcp/443")]),
        on_deny,
    };
    let rules = vec![
        rule("203.0.113.0/24", Precedence::Guardrail, Effect::Deny, Some(OnDeny::Reject)),
        rule("*.example.com", Precedence::Rule, Effect::Allow, None),
        rule("2001:db8::7", Precedence::Rule, Effect::Observe, None),
    ];
    acl().with_outside(Some(Outside { rules, observes: true }))
}

fn endpoint() -> EndpointReport {
    EndpointReport {
        network: shop(),
        public_key: key(),
        port: 51820,
        reflexive: vec![of("198.51.100.7:4000")],
        advertised: vec![of("203.0.113.7:51820")],
        interfaces: vec![of("[2001:db8::7]:51820")],
        relays: vec![RelayNumber::COORDINATOR, RelayNumber(300)],
    }
}

fn workload() -> WorkloadReport {
    let image = Image {
        repository: Some(Repository::of_reference("registry.example/shop/web").unwrap()),
        digest: Sha256([0xab; 32]),
    };
    let sharing = SharingContainer {
        name: "sidecar".into(),
        image: Some(Image { repository: None, ..image.clone() }),
        config: Sha256([0xcd; 32]),
        privileges: vec!["privileged".into()],
        objection: Some("unknown field".into()),
    };
    let signature = ImageSignature { payload: "{}".into(), signature: "c2ln".into() };
    WorkloadReport {
        id: of("w1"),
        network: shop(),
        name: of("web"),
        labels: of("app=web,env=prod"),
        addresses: vec![of("10.42.0.7"), of("fd42::7")],
        prefixes: vec![of("192.168.7.0/24")],
        device: Some(key()),
        accepts: vec![of("app=api,port=tcp/80")],
        measurement: Some(Arc::new(Measurement {
            runtime: "docker".into(),
            images: vec![image],
            config: Sha256([0xef; 32]),
            privileges: vec!["capability NET_ADMIN".into()],
            sharing: vec![sharing],
        })),
        signatures: vec![ImageSignatures {
            image: Sha256([0xab; 32]),
            signatures: vec![signature],
        }],
        objection: Some("unknown field".into()),
        unhealthy: vec![of("api")],
    }
}

fn bare_workload() -> WorkloadReport {
    let WorkloadReport { id, network, name, labels, addresses, .. } = workload();
    WorkloadReport::of_process(id, network, name, labels, addresses)
}

fn from_node() -> Vec<FromNode> {
    let mut digest = Digest::default();
    digest.add(Hash128::of(&ResourceKey::Network(shop()), &Resource::Refused("no".into())));
    let hashes: ResourceHashes = [(ResourceKey::Network(shop()), Hash128::default())].into();
    vec![
        FromNode::Hello {
            version: "0.1.0".into(),
            instance: InstanceId([7; 16]),
            clock: 1_700_000_000,
            revision: Revision(300),
            digest,
        },
        FromNode::Inventory {
            endpoints: vec![endpoint()],
            workloads: vec![workload(), bare_workload()],
            is_last: true,
        },
        FromNode::ResourceHashes { part: hashes, is_last: false },
        FromNode::Endpoint(endpoint()),
        FromNode::Started(bare_workload()),
        FromNode::Stopped(of("w1")),
        FromNode::Enforced(Revision(300)),
        FromNode::Fired(Fired {
            network: shop(),
            trigger: "scan".into(),
            workload: of("w1"),
            denied_flows: 900,
            distinct_ports: 8,
            distinct_addresses: 7,
        }),
        FromNode::PunchHole { network: shop(), peer: rack() },
        FromNode::Renew { csr: vec![0x30, 0x82] },
        FromNode::Degraded(Some("the disk is full".into())),
        FromNode::Degraded(None),
        FromNode::Leave,
        FromNode::Health { workload: of("w1"), service: of("api"), health: Health::Unhealthy },
        FromNode::Load(vec![InstanceLoad {
            network: shop(),
            service: of("api"),
            instance: of("w1"),
            open: 300,
            begun: 20,
            connect_time: Some(Duration::from_micros(700)),
        }]),
    ]
}

fn from_coordinator() -> Vec<FromCoordinator> {
    let relay = RelaySpec {
        number: RelayNumber(2),
        name: of("relay-eu"),
        addresses: vec!["relay.example:7443".into()],
        stun_port: 3478,
    };
    vec![
        FromCoordinator::Compare,
        FromCoordinator::Update { revision: Revision(300), changes: changes(), urgent: true },
        FromCoordinator::Refused { workload: of("w1"), reason: "not signed".into() },
        FromCoordinator::OverBudget { budget: "4096 workloads".into() },
        FromCoordinator::StandBy { reason: "another machine".into() },
        FromCoordinator::PunchHole { network: shop(), peer: rack() },
        FromCoordinator::Renewed { certificate: vec![0x30, 0x82] },
        FromCoordinator::Relays(vec![relay]),
        FromCoordinator::RotateKeys { networks: vec![shop()], keep_old_seconds: 600 },
        FromCoordinator::RefusedEndpoint { network: shop(), reason: "not yours".into() },
    ]
}

fn questions() -> Vec<Question> {
    let order = DeviceOrder {
        network: shop(),
        name: of("phone"),
        labels: of("app=phone"),
        public_key: key(),
    };
    let link = LinkAcl { from: IdentityId(1), to: IdentityId(300), acl: acl() };
    vec![
        Question::Alive,
        Question::Links,
        Question::Cuts { network: shop(), links: vec![link] },
        Question::Flows { network: shop(), seconds: 600 },
        Question::AddDevice(order),
        Question::RemoveDevice(of("w1")),
        Question::OpenFlows { network: shop(), workloads: vec![of("w1"), of("w2")] },
    ]
}

fn answers() -> Vec<Answer> {
    let count = Count { packets: 1, bytes: 300, denied: 3, observed: 4 };
    let link = LinkCount { network: shop(), from: IdentityId(1), to: IdentityId(2), count };
    let flow = |protocol| LoggedFlow {
        from: IdentityId(1),
        to: IdentityId(2),
        protocol,
        port: 53,
        passed: true,
    };
    let device = DeviceAnswer {
        id: of("w3"),
        addresses: vec![of("10.42.0.9")],
        public_key: key(),
        prefixes: vec![of("10.42.0.0/16")],
        mtu: 1420,
    };
    vec![
        Answer::Alive,
        Answer::Links(vec![link]),
        Answer::Cuts(vec![WorkloadCuts { workload: of("w1"), flows: 300 }]),
        Answer::Flows([Protocol::Tcp, Protocol::Udp, Protocol::Icmp].map(flow).to_vec()),
        Answer::Device(Ok(device)),
        Answer::Device(Err("no address is free".into())),
        Answer::Removed(Ok(())),
        Answer::Removed(Err("no such device".into())),
        Answer::OpenFlows(vec![WorkloadFlows { workload: of("w1"), flows: 300 }]),
    ]
}

fn join_requests() -> Vec<JoinRequest> {
    let request = |kind, forget_after| JoinRequest {
        secret: "secret".into(),
        name: rack(),
        kind,
        labels: of("site=a"),
        csr: vec![0x30, 0x82],
        clock: 1_700_000_000,
        forget_after,
    };
    vec![request(MemberKind::Node, Some(600)), request(MemberKind::Relay, None)]
}

fn join_replies() -> Vec<JoinReply> {
    let accepted =
        |site| JoinReply::Accepted { certificate: vec![0x30], mesh: "0123456789ab".into(), site };
    vec![accepted(Some("a".into())), accepted(None), JoinReply::Refused("expired".into())]
}

fn from_relay() -> Vec<FromRelay> {
    let (version, addresses) = ("0.1.0".into(), vec![":7443".into()]);
    vec![
        FromRelay::Hello { version, addresses, stun_port: 3478 },
        FromRelay::Renew { csr: vec![0x30, 0x82] },
    ]
}

fn to_relay() -> Vec<ToRelay> {
    let served = ServedNode { node: rack(), key: "00".repeat(32) };
    let instance = InstanceId([7; 16]);
    vec![
        ToRelay::Members(vec![served.clone()]),
        ToRelay::Admit(served),
        ToRelay::Expel(rack()),
        ToRelay::Sessions(vec![NodeInstance { node: rack(), instance }]),
        ToRelay::Session { node: rack(), instance: Some(instance) },
        ToRelay::Session { node: rack(), instance: None },
        ToRelay::Renewed { certificate: vec![0x30, 0x82] },
    ]
}

#[expect(clippy::too_many_lines, reason = "one change of each kind")]
fn changes() -> Vec<Change> {
    let network = NetworkSpec {
        prefixes: vec![of("10.42.0.0/16")],
        blocks: vec![of("10.42.1.0/24"), of("fd42:0:0:1::/64")],
        mtu: 1420,
        admission: true,
        conduct: Conduct::default(),
        site: Some("eu".into()),
        service_blocks: vec![of("10.42.255.0/24")],
        resolver: vec![of("10.42.255.53")],
        dns: DnsSettings {
            zone: of("mesh"),
            zones: [(of("corp.example"), vec![of("10.8.0.53")])].into(),
            upstreams: vec![of("tls://9.9.9.9#dns.quad9.net")],
            intercept: true,
        },
    };
    let peer = PeerSpec {
        public_key: key(),
        candidates: vec![of("192.0.2.1:51820"), of("[2001:db8::1]:51820")],
        prefixes: vec![of("10.42.1.0/24")],
        site: Some("us".into()),
    };
    let identity = IdentitySpec {
        labels: of("app=web"),
        accepts: vec![of("app=api")],
        quarantined: true,
        reset: false,
    };
    let workload = WorkloadSpec {
        node: rack(),
        addresses: vec![of("10.42.1.7")],
        prefixes: vec![of("192.168.7.0/24")],
        identity: IdentityId(300),
        quarantined: false,
        reset: true,
        name: Some(of("web")),
        states: InstanceStates { draining: true, unhealthy: [of("api")].into() },
    };
    let trigger = TriggerSpec {
        watch: of("app=web"),
        denied_flows: Some(900),
        distinct_ports: None,
        distinct_addresses: Some(3),
        within: Duration::from_millis(1500),
        alone: true,
        seconds: Some(60),
    };
    let (web, id) = (IdentityId(300), of::<WorkloadId>("w1"));
    vec![
        Change::Put(ResourceKey::Network(shop()), Resource::Network(network)),
        Change::Put(ResourceKey::Peer(shop(), rack()), Resource::Peer(peer)),
        Change::Put(ResourceKey::Identity(shop(), web), Resource::Identity(identity)),
        Change::Put(ResourceKey::Workload(shop(), id.clone()), Resource::Workload(workload)),
        Change::Put(ResourceKey::Link(shop(), web, IdentityId(2)), Resource::Link(acl())),
        Change::Put(ResourceKey::Link(shop(), web, IdentityId(3)), Resource::Link(outside_acl())),
        Change::Put(ResourceKey::Trigger(shop(), "scan".into()), Resource::Trigger(trigger)),
        Change::Put(ResourceKey::Refused(shop(), id.clone()), Resource::Refused("no".into())),
        put_service("api", HealthProbe::Http("/healthz".into()), Affinity::None),
        put_service("db", HealthProbe::Tcp, Affinity::Client(Duration::from_mins(10))),
        put_service("rpc", HealthProbe::Grpc("shop.Api".into()), Affinity::None),
        put_service("job", HealthProbe::Exec(vec!["check".into()]), Affinity::None),
        Change::Drop(ResourceKey::Workload(shop(), id)),
        Change::Forget(shop(), web),
    ]
}

fn put_service(name: &str, probe: HealthProbe, affinity: Affinity) -> Change {
    let port = |protocol, port, target| ServicePort { protocol, port, target };
    let spec = ServiceSpec {
        addresses: vec![of("10.42.255.1"), of("fd42:0:0:ffff::1")],
        instances: of("app=api,tier in (a,b)"),
        ports: vec![port(Protocol::Tcp, 80, 8080), port(Protocol::Udp, 443, 443)],
        prefer: vec![Nearness::Node, Nearness::Site],
        health: Some(HealthCheck {
            probe,
            port: Some(8081),
            every: Duration::from_millis(2500),
            timeout: Duration::from_secs(1),
            failures: 300,
        }),
        affinity,
        weights: vec![WeightRule { instances: of("app=api,!old"), weight: Weight::default() }],
    };
    Change::Put(ResourceKey::Service(shop(), of(name)), Resource::Service(spec))
}

fn relay_frames() -> Vec<Vec<u8>> {
    let (to, network) = (RelayId::of(&rack()), RelayNetwork::of(&shop()));
    let messages: Vec<u8> = (0..100).collect();
    MessageBatch { to, network, number: 300, messages: &messages, size: 40 }.frames(90).collect()
}
