//! The files of every format are read as they were, and the newest is written byte for byte.

use super::*;
use crate::attachment::{Attachment, Origin, Owner};
use meshward_control_proto::{
    Change, ImageSignatures, Resource, ResourceKey, View, WorkloadReport,
    relay::RelaySpec,
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec, WorkloadSpec},
};
use meshward_datapath::{Endpoint, Now, SecretKey};
use meshward_netns::NetnsId;
use meshward_runtime::state_files::{StateFile, decode, encode};
use meshward_types::{
    Acl, AclEntry, Affinity, Conduct, DnsSettings, Health, HealthCheck, HealthProbe, IdentityId,
    InstanceStates, Nearness, OnDeny, OnRevoke, Outside, PortRange, Protocol, PublicKey, Revision,
    ServicePort, Weight, WeightRule, entries_of,
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256, SharingContainer},
    outside::{Effect, OutsideRule, Precedence},
    relay::RelayNumber,
    trigger::TriggerSpec,
};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

fn of<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Checks a file of JSON against one of format 1 and one of format 2.
fn check<T: StateFile + PartialEq + Debug>(content: &T, format_1: &[u8], format_2: &[u8]) {
    assert_eq!(T::FORMAT, 2, "a new format gets a file of its own beside these");
    assert_eq!(decode::<T>(format_1).unwrap(), *content);
    assert_eq!(decode::<T>(format_2).unwrap(), *content);
    let written = String::from_utf8(encode(content).unwrap()).unwrap();
    assert_eq!(written, String::from_utf8_lossy(format_2), "that is a new format");
    let newer = written.replace("\"format\": 2", "\"format\": 4");
    let said = decode::<T>(newer.as_bytes()).unwrap_err().to_string();
    assert!(said.contains("format 4, this one reads up to 2; upgrade"), "{said}");
}

macro_rules! check {
    ($content:expr, $name:literal) => {
        check(
            $content,
            include_bytes!(concat!("testdata/format-1/", $name)),
            include_bytes!(concat!("testdata/format-2/", $name)),
        )
    };
}

macro_rules! formats {
    ($name:literal) => {
        [
            &include_bytes!(concat!("testdata/format-1/", $name))[..],
            &include_bytes!(concat!("testdata/format-2/", $name))[..],
            &include_bytes!(concat!("testdata/format-3/", $name))[..],
        ]
    };
}

#[test]
fn workloads() {
    for (attachment, files) in
        [(container(), formats!("container.json")), (process(), formats!("process.json"))]
    {
        let file = WorkloadFile::from(&attachment);
        let mut before = attachment.clone();
        (before.findings, before.report.unhealthy) = (BTreeMap::new(), vec![]);
        let [old @ .., newest] = files;
        for old in old {
            assert_eq!(Attachment::from(decode::<WorkloadFile>(old).unwrap()), before);
        }
        assert_eq!(decode::<WorkloadFile>(newest).unwrap(), file);
        let written = String::from_utf8(encode(&file).unwrap()).unwrap();
        assert_eq!(written, String::from_utf8_lossy(newest), "that is a new format");
        assert_eq!(Attachment::from(file), attachment);
    }
    let bare = include_bytes!("testdata/format-1/bare.json");
    let read: Attachment = decode::<WorkloadFile>(bare).unwrap().into();
    assert_eq!((read.measured, read.origin, read.admitted_as), (true, Origin::Local, None));
}

#[test]
fn relays() {
    let specs = [RelaySpec {
        number: RelayNumber(7),
        name: of("relay-eu"),
        addresses: vec!["relay.example:7443".into()],
        stun_port: 3478,
    }];
    let file = RelaysFile::from(&specs[..]);
    check!(&file, "relays.json");
    assert_eq!(Vec::<RelaySpec>::from(file), specs);
}

#[test]
fn networks_and_endpoints_of_docker() {
    let endpoint = DockerEndpoint { network: of("shop"), addresses: vec![of("10.42.3.7")] };
    let file = DockerFile {
        networks: BTreeMap::from([("n1".to_owned(), of("shop"))]),
        endpoints: BTreeMap::from([("e1".to_owned(), endpoint)]),
    };
    check!(&file, "docker.json");
}

#[test]
fn what_is_kept_of_an_endpoint() {
    check!(&PortFile { port: 51820 }, "shop.port");
    check!(&PreviousKeyFile { until: 1_790_000_000 }, "shop.previous");
    check!(&TimestampFile { below: 1_790_000_600 }, "shop.stamp");
    assert_eq!(decode::<PortFile>(b"51821").unwrap().port, 51821);
}

const VIEW_1: &[u8] = include_bytes!("testdata/format-1/view");
const LOG_1: &[u8] = include_bytes!("testdata/format-1/view.log");
const VIEW_2: &[u8] = include_bytes!("testdata/format-2/view");
const LOG_2: &[u8] = include_bytes!("testdata/format-2/view.log");
const VIEW_3: &[u8] = include_bytes!("testdata/format-3/view");
const LOG_3: &[u8] = include_bytes!("testdata/format-3/view.log");

#[test]
fn views_and_their_logs() {
    for (snapshot, log, is_current) in
        [(VIEW_1, LOG_1, false), (VIEW_2, LOG_2, false), (VIEW_3, LOG_3, true)]
    {
        let expected = if is_current { view() } else { view_without_services() };
        let (read, hash) = read_view(snapshot, log).unwrap();
        assert_eq!(read, expected);
        let header = read_log_header(log).unwrap();
        assert_eq!((header.snapshot, header.format.is_current()), (hash, is_current));
        let mut rest = &log[header.length..];
        for expected in updates() {
            let (update, after) = read_update(rest, header.format).unwrap();
            assert_eq!(update, expected);
            rest = after;
        }
        assert!(rest.is_empty());
    }
    let (snapshot, hash) = encode_view(&view());
    assert!(snapshot == VIEW_3, "the view is written in a new format");
    let mut log = encode_log_header(hash);
    for update in &updates() {
        encode_update(&mut log, update);
    }
    assert!(log == LOG_3, "the log of the view is written in a new format");
    let newer = |file: &[u8]| [&file[..4], &[4], &file[5..]].concat();
    for said in [
        read_view(&newer(VIEW_3), LOG_3).unwrap_err().to_string(),
        read_log_header(&newer(LOG_3)).unwrap_err().to_string(),
    ] {
        assert!(said.contains("format 4, this one reads up to 3; upgrade"), "{said}");
    }
}

/// Resources of every kind, with all fields set.
#[expect(clippy::too_many_lines, reason = "one resource of each kind")]
fn view() -> View {
    let resource = |number| -> Resource {
        match number {
            0 => Resource::Network(NetworkSpec {
                prefixes: vec![of("10.42.0.0/16"), of("fd42::/48")],
                blocks: vec![of("10.42.3.0/24")],
                mtu: 1420,
                admission: true,
                conduct: Conduct {
                    on_deny: OnDeny::Reject,
                    on_quarantine: OnDeny::Drop,
                    on_revoke: OnRevoke::Reset,
                    timeouts: [Some(600), None, Some(30), None],
                    resets: 9,
                },
                site: Some("eu".into()),
                service_blocks: vec![of("10.42.255.0/24")],
                resolver: vec![of("10.42.255.53")],
                dns: DnsSettings {
                    zone: of("internal"),
                    zones: [(of("corp.example"), vec![of("10.8.0.53")])].into(),
                    upstreams: vec![of("tls://9.9.9.9#dns.quad9.net")],
                    intercept: true,
                },
            }),
            1 => Resource::Peer(PeerSpec {
                public_key: PublicKey([7; 32]),
                candidates: vec![of("192.0.2.7:51820"), of("[2001:db8::7]:51820")],
                prefixes: vec![of("10.42.7.0/24")],
                site: Some("us".into()),
            }),
            2 => Resource::Identity(IdentitySpec {
                labels: of("app=web,env=prod"),
                accepts: vec![of("app=api, port=tcp/80")],
                quarantined: true,
                reset: true,
            }),
            3 => Resource::Workload(WorkloadSpec {
                node: of("rack-7"),
                addresses: vec![of("10.42.7.9")],
                prefixes: vec![of("192.168.7.0/24")],
                identity: IdentityId(12),
                quarantined: false,
                reset: true,
                name: Some(of("web")),
                states: InstanceStates { draining: true, unhealthy: [of("api")].into() },
            }),
            4 => Resource::Link(acl().with_outside(Some(outside()))),
            5 => Resource::Trigger(TriggerSpec {
                watch: of("app=web"),
                denied_flows: Some(20),
                distinct_ports: None,
                distinct_addresses: Some(3),
                within: Duration::from_millis(10_500),
                alone: true,
                seconds: Some(600),
            }),
            6 => Resource::Refused("the image has no signature".into()),
            _ => Resource::Service(service()),
        }
    };
    let keys = [
        ResourceKey::Network(of("shop")),
        ResourceKey::Peer(of("shop"), of("rack-7")),
        ResourceKey::Identity(of("shop"), IdentityId(12)),
        ResourceKey::Workload(of("shop"), of("w-0123456789ab")),
        ResourceKey::Link(of("shop"), IdentityId(12), IdentityId(300)),
        ResourceKey::Trigger(of("shop"), "scan".into()),
        ResourceKey::Refused(of("shop"), of("w-ba9876543210")),
        ResourceKey::Service(of("shop"), of("api")),
    ];
    let resources = keys.into_iter().enumerate().map(|(number, key)| (key, resource(number)));
    View { revision: Revision(77), resources: resources.collect() }
}

fn service() -> ServiceSpec {
    ServiceSpec {
        addresses: vec![of("10.42.255.1")],
        instances: of("app=api"),
        ports: vec![ServicePort { protocol: Protocol::Udp, port: 443, target: 8443 }],
        prefer: vec![Nearness::Site, Nearness::Node],
        health: Some(HealthCheck {
            probe: HealthProbe::Http("/healthz".into()),
            port: Some(8080),
            every: Duration::from_millis(2500),
            timeout: Duration::from_secs(1),
            failures: 3,
        }),
        affinity: Affinity::Client(Duration::from_mins(10)),
        weights: vec![WeightRule { instances: of("version=2"), weight: Weight::new(5).unwrap() }],
    }
}

/// The view of formats 1 and 2.
fn view_without_services() -> View {
    let mut view = view();
    view.resources.retain(|key, _| !matches!(key, ResourceKey::Service(..)));
    for resource in view.resources.values_mut() {
        match resource {
            Resource::Network(spec) => {
                (spec.site, spec.dns) = (None, DnsSettings::default());
                (spec.service_blocks, spec.resolver) = (vec![], vec![]);
            }
            Resource::Peer(spec) => spec.site = None,
            Resource::Workload(spec) => {
                (spec.name, spec.states) = (None, InstanceStates::default());
            }
            Resource::Link(acl) => *acl = acl.clone().with_outside(None),
            _ => {}
        }
    }
    view
}

fn acl() -> Acl {
    let entry = |protocol, first, last| AclEntry { protocol, ports: PortRange { first, last } };
    Acl::new(vec![entry(Protocol::Tcp, 80, 443), entry(Protocol::Icmp, 0, u16::MAX)])
        .with_observed(vec![entry(Protocol::Udp, 53, 53)])
        .with_forensics(vec![entry(Protocol::Tcp, 22, 22)])
        .with_answers(
            vec![entry(Protocol::Sctp, 3868, 3868)],
            vec![entry(Protocol::Other, 0, u16::MAX)],
            Some(OnDeny::Reject),
        )
}

fn outside() -> Outside {
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
    Outside { rules, observes: true }
}

/// Changes of every kind.
fn updates() -> Vec<Update> {
    let network = ResourceKey::Network(of("shop"));
    let put = Change::Put(network, Resource::Network(NetworkSpec::with_mtu(1400)));
    let refused = ResourceKey::Refused(of("shop"), of("w-ba9876543210"));
    let forget = Change::Forget(of("shop"), IdentityId(300));
    vec![
        Update { revision: Revision(78), changes: vec![put, Change::Drop(refused)] },
        Update { revision: Revision(80), changes: vec![forget] },
    ]
}

fn report() -> WorkloadReport {
    crate::workloads::plain_report(
        of("w-0123456789ab"),
        &of("shop"),
        of("web-1"),
        vec![of("10.42.3.7"), of("fd42::3:7")],
    )
}

fn measurement(digest: Sha256) -> Measurement {
    let image = Image {
        repository: Some(Repository::of_reference("registry.example/shop/web").unwrap()),
        digest,
    };
    Measurement {
        runtime: "kubernetes".into(),
        images: vec![image.clone()],
        config: Sha256::of(b"config"),
        privileges: vec!["capability NET_ADMIN".into()],
        sharing: vec![SharingContainer {
            name: "proxy".into(),
            image: Some(Image { repository: None, ..image }),
            config: Sha256::of(b"other"),
            privileges: vec!["privileged".into()],
            objection: Some("it cannot be measured".into()),
        }],
    }
}

fn container() -> Attachment {
    let (digest, before) = (Sha256::of(b"image"), Sha256::of(b"before"));
    let api = meshward_api_types::local::Kubernetes {
        server: "https://10.0.0.1:6443".into(),
        token_file: "/etc/cni/token".into(),
        ca_file: "/etc/cni/ca.pem".into(),
    };
    let pod = meshward_api_types::local::Pod {
        api,
        namespace: "shop".into(),
        name: "web-7f".into(),
        uid: Some("u1".into()),
    };
    let signature = ImageSignature { payload: "{}".into(), signature: "c2ln".into() };
    Attachment {
        report: WorkloadReport {
            labels: of("app=web,env=prod"),
            accepts: vec![of("app=api, port=tcp/80")],
            measurement: Some(Arc::new(measurement(digest))),
            signatures: vec![ImageSignatures { image: digest, signatures: vec![signature] }],
            objection: Some("label meshward.accept-from: no".into()),
            unhealthy: vec![of("web")],
            ..report()
        },
        netns: "/run/netns/cni-1".into(),
        netns_id: Some(NetnsId { device: 4, inode: 4_026_532_281 }),
        owner: None,
        interface: "eth0".into(),
        last_address: None,
        quarantined_until: Some(1_790_000_000),
        origin: Origin::Cni {
            container: "c1".into(),
            asked: "eth0".into(),
            engine: Some("/run/podman/podman.sock".into()),
            pod: Some(pod),
        },
        measured: true,
        admitted_as: Some(Arc::new(measurement(before))),
        findings: [(of("api"), Health::Healthy), (of("web"), Health::Unhealthy)].into(),
    }
}

fn process() -> Attachment {
    Attachment {
        report: WorkloadReport {
            prefixes: vec![of("192.168.7.0/24")],
            device: Some(PublicKey([9; 32])),
            ..report()
        },
        owner: Some(Owner { pid: 4711, started: 123_456 }),
        last_address: Some(of("198.51.100.7:40000")),
        ..Attachment::new(report(), "/proc/4711/ns/net".into(), "mesh0".into(), Origin::Local)
    }
}

#[test]
fn flows() {
    let endpoint =
        Endpoint::new(of("rack-7"), SecretKey::from_bytes([7; 32]), Instant::now(), Duration::ZERO);
    let now = Now { instant: Instant::now(), unix: Duration::from_secs(1_790_000_000) };
    let written = endpoint.export_flows(now, true);
    assert!(written == include_bytes!("testdata/format-2/flows"));
    for flows in [&written[..], include_bytes!("testdata/format-1/flows")] {
        assert_eq!(endpoint.import_flows(now, flows).unwrap(), 0);
    }
    let newer = [&written[..4], &[4], &written[5..]].concat();
    let said = endpoint.import_flows(now, &newer).unwrap_err().to_string();
    assert!(said.contains("format 4, this one reads up to 2; upgrade"), "{said}");
}
