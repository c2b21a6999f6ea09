//! Tests of the form in which records are stored.

use super::*;
use meshward_api_types::Role;
use meshward_types::{
    Labels, NetworkName, NodeName, PolicyFile, PublicKey,
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256, SharingContainer},
};
use std::{collections::BTreeSet, fmt::Debug, str::FromStr, sync::Arc};

/// The records that [`records`] makes, as they are stored: one a line.
const STORED: &str = include_str!("testdata/format-5.jsonl");

#[test]
fn every_record_is_stored_in_the_form_of_the_format_byte_for_byte() {
    assert_eq!(FORMAT, 5, "compare with the file of the format");
    let stored: String =
        records().iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
    assert_eq!(
        stored, STORED,
        "what is stored has changed: that is a new format, with a migration in the coordinator's \
         store and a file of its own beside this one"
    );
}

#[test]
fn stored_records_are_read_as_they_were() {
    let read: Vec<Record> =
        STORED.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, records());
}

#[test]
fn the_records_of_the_file_are_of_every_kind() {
    // A new kind of record has no arm here: add it to the samples, too.
    let kind = |record: &Record| match record {
        Record::Network(_) => 0,
        Record::Node(_) => 1,
        Record::ApprovedNode(_) => 2,
        Record::Relay(_) => 3,
        Record::Approval(_) => 4,
        Record::Token(_) => 5,
        Record::Credential(_) => 6,
        Record::Identity(_) => 7,
        Record::Workload(_) => 8,
        Record::Refused(_) => 9,
        Record::Image(_) => 10,
        Record::Policy(_) => 11,
        Record::Quarantine(_) => 12,
        Record::Service(_) => 13,
        Record::Drain(_) => 14,
    };
    let kinds: BTreeSet<i32> = records().iter().map(kind).collect();
    assert_eq!(kinds, (0..15).collect());
}

#[test]
fn fields_that_the_first_release_left_out_or_wrote_besides_are_no_obstacle() {
    let bare = r#"{"Workload":{"id":"w","network":"shop","node":"rack","name":"web","addresses":[],
        "declared":{},"identity":1}}"#;
    let Record::Workload(read) = serde_json::from_str(bare).unwrap() else { panic!() };
    assert_eq!((read.measurement, read.label_override, read.device), (None, None, None));
    let signed = r#"{"Refused":{"node":"rack","report":{"id":"w","network":"shop","name":"web",
        "labels":{},"addresses":[],"signatures":[["sha256",[]]]},"reasons":["no"]}}"#;
    let Record::Refused(read) = serde_json::from_str(signed).unwrap() else { panic!() };
    assert_eq!((read.reason().as_str(), read.report.objection), ("no", None));
}

/// Makes records of every kind: with all fields set, and with all that can be missing left out.
fn records() -> Vec<Record> {
    let mut all = members();
    all.extend(access());
    all.extend(workloads());
    all.extend(rules());
    all
}

fn of<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn shop() -> NetworkName {
    of("shop")
}

fn rack() -> NodeName {
    of("rack-1")
}

fn key(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

fn members() -> Vec<Record> {
    let endpoint = EndpointRecord {
        public_key: key(1),
        candidates: vec![of("192.0.2.1:51820"), of("[2001:db8::1]:51820")],
        previous_key: Some(key(2)),
    };
    let node = NodeRecord {
        name: rack(),
        site: Some("eu".into()),
        labels: of("zone=a"),
        networks: vec![shop()],
        key: "aa".repeat(32),
        endpoints: [(shop(), endpoint.clone())].into(),
        blocks: [(shop(), vec![of("10.42.1.0/24"), of("fd42:0:0:1::/64")])].into(),
        problems: [(of("lab"), "network lab is exhausted".into())].into(),
        waiting: true,
        forget_after: Some(600),
    };
    let bare = NodeRecord {
        name: of("rack-2"),
        site: None,
        labels: Labels::default(),
        networks: vec![],
        key: "bb".repeat(32),
        endpoints: [(shop(), EndpointRecord { previous_key: None, ..endpoint })].into(),
        blocks: [].into(),
        problems: [].into(),
        waiting: false,
        forget_after: None,
    };
    let relay = RelayRecord {
        name: of("relay-eu"),
        number: 2,
        site: Some("eu".into()),
        key: "cc".repeat(32),
        addresses: vec!["relay.example:7443".into()],
        stun_port: 3478,
    };
    let approval = ApprovalRecord { network: shop(), node: rack(), prefix: of("192.168.7.0/24") };
    let network = NetworkRecord {
        name: shop(),
        prefixes: vec![of("10.42.0.0/16"), of("fd42::/48")],
        block_v4: 24,
        block_v6: 64,
        mtu: 1420,
        service_blocks: vec![of("10.42.255.0/24"), of("fd42:0:0:ffff::/64")],
        resolver: vec![of("10.42.255.53"), of("fd42:0:0:ffff::53")],
    };
    vec![
        Record::Network(NetworkRecord {
            service_blocks: vec![],
            resolver: vec![],
            ..network.clone()
        }),
        Record::Network(network),
        Record::Node(node),
        Record::Node(bare),
        Record::ApprovedNode(ApprovedNodeRecord { name: of("rack-3"), labels: of("zone=b") }),
        Record::Relay(relay),
        Record::Approval(approval),
    ]
}

fn access() -> Vec<Record> {
    let token = TokenRecord {
        id: "0011223344556677".into(),
        secret_hash: "dd".repeat(32),
        uses_left: 3,
        expires: 2_000_000_000,
        site: Some("eu".into()),
        networks: vec![shop()],
        relay: true,
        needs_approval: true,
        forget_after: Some(86_400),
    };
    let bare = TokenRecord {
        site: None,
        networks: vec![],
        relay: false,
        needs_approval: false,
        forget_after: None,
        ..token.clone()
    };
    let credential = |role, networks: Vec<NetworkName>, expires| {
        Record::Credential(CredentialRecord {
            name: "ci".into(),
            secret_hash: "ee".repeat(32),
            role,
            networks,
            expires,
        })
    };
    vec![
        Record::Token(token),
        Record::Token(bare),
        credential(Role::Viewer, vec![shop()], Some(2_000_000_000)),
        credential(Role::Operator, vec![], None),
        credential(Role::Owner, vec![], None),
        credential(Role::Admin, vec![], None),
    ]
}

fn measurement() -> Arc<Measurement> {
    let image = |repository| Image { repository, digest: Sha256([0xab; 32]) };
    let sharing = SharingContainer {
        name: "sidecar".into(),
        image: Some(image(None)),
        config: Sha256([0xcd; 32]),
        privileges: vec!["privileged".into()],
        objection: Some("unknown field".into()),
    };
    let bare =
        SharingContainer { image: None, privileges: vec![], objection: None, ..sharing.clone() };
    Arc::new(Measurement {
        runtime: "docker".into(),
        images: vec![image(Some(Repository::of_reference("nginx").unwrap()))],
        config: Sha256([0xef; 32]),
        privileges: vec!["capability NET_ADMIN".into()],
        sharing: vec![sharing, bare],
    })
}

#[expect(clippy::too_many_lines, reason = "every field of each kind")]
fn workloads() -> Vec<Record> {
    let label_override = LabelOverride { labels: of("suspect=yes"), until: Some(2_000_000_000) };
    let workload = WorkloadRecord {
        id: of("w-1"),
        network: shop(),
        node: rack(),
        name: of("web"),
        addresses: vec![of("10.42.1.2"), of("fd42:0:0:1::2")],
        prefixes: vec![of("192.168.7.0/24")],
        device: Some(key(3)),
        declared: of("app=web"),
        accepts: vec![of("app=db,port=tcp/80")],
        label_override: Some(label_override.clone()),
        measurement: Some(measurement()),
        identity: meshward_types::IdentityId(1),
        owns_name: true,
        unhealthy: [of("api"), of("web")].into(),
    };
    let bare = WorkloadRecord {
        owns_name: false,
        unhealthy: BTreeSet::new(),
        prefixes: vec![],
        device: None,
        accepts: vec![],
        label_override: None,
        measurement: None,
        ..workload.clone()
    };
    let report = ReportRecord {
        id: of("w-2"),
        network: shop(),
        name: of("bad"),
        labels: of("app=bad"),
        addresses: vec![of("10.42.1.3")],
        prefixes: vec![of("192.168.8.0/24")],
        device: Some(key(4)),
        accepts: vec![of("app=db")],
        measurement: Some(measurement()),
        signatures: forms::NoSignatures,
        objection: Some("unknown field".into()),
        unhealthy: BTreeSet::new(),
    };
    let bare_report = ReportRecord {
        prefixes: vec![],
        device: None,
        accepts: vec![],
        measurement: None,
        objection: None,
        ..report.clone()
    };
    let refused = |report, label_override| {
        let reasons = vec!["not signed".into(), "privileged".into()];
        Record::Refused(Box::new(RefusedRecord { node: rack(), report, label_override, reasons }))
    };
    vec![
        identity(&["app=db"]),
        identity(&[]),
        Record::Workload(workload),
        Record::Workload(bare),
        refused(report, Some(LabelOverride { until: None, ..label_override })),
        refused(bare_report, None),
        image(),
        Record::Image(ImageRecord::new(Sha256([0xab; 32]))),
    ]
}

fn identity(accepts: &[&str]) -> Record {
    Record::Identity(IdentityRecord {
        id: meshward_types::IdentityId(1),
        network: shop(),
        labels: of("app=web"),
        accepts: accepts.iter().map(|text| of(text)).collect(),
    })
}

fn image() -> Record {
    let signatures =
        || vec![ImageSignature { payload: "{\"critical\":{}}".into(), signature: "c2ln".into() }];
    Record::Image(ImageRecord {
        digest: Sha256([0xab; 32]),
        verified: [(shop(), signatures())].into(),
        reported: [(rack(), signatures())].into(),
        signatures: signatures(),
    })
}

fn drain(target: DrainTarget, why: Option<String>) -> Record {
    let (since, by) = ("2026-01-01T00:00:00Z".into(), "user:admin".into());
    Record::Drain(DrainRecord { target, since, by, why })
}

fn rules() -> Vec<Record> {
    let file = PolicyFile { name: "shop.yaml".into(), text: "network: shop\nrules: []\n".into() };
    let policy =
        |resets| PolicyRecord { network: shop(), files: vec![file.clone()].into(), resets };
    let quarantine = QuarantineRecord {
        id: "q-1".into(),
        target: TargetRecord {
            network: Some(shop()),
            selector: Some(of("app in (bad,worse),tier,!old,zone!=a")),
            workload: None,
        },
        allow_from: Some(of("app=forensics")),
        by_admin: true,
        reset: true,
        since: "2026-01-01T00:00:00Z".into(),
        until: Some("2026-01-02T00:00:00Z".into()),
        by: "user:admin".into(),
        why: Some("drill".into()),
    };
    let bare = QuarantineRecord {
        target: TargetRecord { network: None, selector: None, workload: Some(of("w-1")) },
        allow_from: None,
        by_admin: false,
        reset: false,
        until: None,
        by: "trigger:scan".into(),
        why: None,
        ..quarantine.clone()
    };
    vec![
        Record::Policy(policy(0)),
        Record::Policy(policy(7)),
        Record::Quarantine(quarantine),
        Record::Quarantine(bare),
        Record::Service(ServiceRecord {
            network: shop(),
            name: of("api"),
            addresses: vec![of("10.42.255.1"), of("fd42:0:0:ffff::1")],
        }),
        drain(DrainTarget::Workload(of("w-1")), Some("upgrade".into())),
        drain(DrainTarget::Node(rack()), None),
    ]
}
