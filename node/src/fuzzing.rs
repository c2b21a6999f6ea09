//! What the node must satisfy, whatever runtimes and registries say, or stands on its disk; see the crate `meshward-fuzzing`.

use crate::{
    attachment::Attachment, daemon::Found, docker::fuzzing::docker, folder::Folder, kept_view::KeptView,
    runtimes::fuzzing as runtimes,
};
use meshward_fuzzing::{Bytes, blocks};
use meshward_model::{
    Change, HeldView, Item, ItemKey, NetworkName, NodeName, Revision, WorkloadId,
    control::WorkloadReport,
    view::{NetworkSpec, PeerSpec},
};
use std::{fs, path::PathBuf, sync::OnceLock};

meshward_fuzzing::targets! {
    containers: containers, runtimes::containers;
    docker: docker, docker_bodies;
    pods: pods, runtimes::pods;
    registry: runtimes::registry, runtimes::manifests;
    state: state, states, |length| (4 << 20) + 1024 * length as u64;
}

/// What Docker says of a container and its image.
fn containers(data: &[u8]) {
    let mut bytes = Bytes(data);
    if let Some(found) = runtimes::container(bytes.block(), bytes.block()) {
        check(&found);
    }
}

/// What Kubernetes says of a pod.
fn pods(data: &[u8]) {
    if let Some(found) = runtimes::pod(data) {
        check(&found);
    }
}

/// What was found keeps the bounds that the coordinator asks for, and takes no label that only Meshward may give.
fn check(found: &Found) {
    assert!(found.labels.check_unreserved().is_ok());
    assert!(meshward_model::AcceptFrom::check_count(&found.accepts).is_ok());
    let bounded = found.measurement.as_ref().is_none_or(|measured| measured.check().is_ok());
    assert!(bounded || found.objection.is_some(), "{:?}", found.measurement);
}

/// A folder of this process's own.
fn folder() -> &'static (PathBuf, Folder) {
    static FOLDER: OnceLock<(PathBuf, Folder)> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let place = base.join(format!("meshward-fuzz-node-{}", std::process::id()));
        let folder = Folder::open(&place).expect("a folder can be made");
        (place, folder)
    })
}

fn network() -> NetworkName {
    "shop".parse().expect("a name")
}

/// The files of a node's state.
const FILES: [&str; 7] = [
    "view",
    "view.log",
    "workloads/w1.json",
    "endpoints/shop.key",
    "endpoints/shop.port",
    "endpoints/shop.previous",
    "endpoints/shop.previous.key",
];

/// A block for each file of a node's state: what is whole is taken, and nothing breaks on the rest. What is written afterwards is read
/// again.
fn state(data: &[u8]) {
    let (place, folder) = folder();
    let mut bytes = Bytes(data);
    for name in FILES {
        fs::write(place.join(name), bytes.block()).expect("a file can be written");
    }
    let (view, mut kept) = KeptView::open(folder);
    let mut held = HeldView::from(view);
    let next = Revision(held.view().revision.0.wrapping_add(1));
    let changes = held.apply(next, &changes());
    let written = if kept.wants_whole() { kept.keep(held.view()) } else { kept.append(&[(next, changes)]) };
    written.expect("a view can be kept");
    let (again, _) = KeptView::open(folder);
    assert_eq!(again, *held.view(), "what was kept comes back");
    let _ = folder.workloads();
    let _ = folder.endpoint_key(&network());
    let _ = folder.endpoint_port(&network());
    let _ = folder.previous_endpoint_key(&network());
    // What was made anew is on disk before the next bytes are.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without I/O");
    runtime.block_on(folder.settled());
}

fn changes() -> Vec<Change> {
    let node: NodeName = "rack".parse().expect("a name");
    let spec = NetworkSpec { prefixes: vec![], blocks: vec![], mtu: 1420, admission: false };
    let peer =
        PeerSpec { public_key: meshward_model::PublicKey([7; 32]), candidates: vec![], prefixes: vec![] };
    vec![
        Change::Put(ItemKey::Network(network()), Item::Network(spec)),
        Change::Put(ItemKey::Peer(network(), node), Item::Peer(peer)),
    ]
}

fn attachment() -> Vec<u8> {
    let id: WorkloadId = "w1".parse().expect("an id");
    let report = WorkloadReport {
        id,
        network: network(),
        name: "web".parse().expect("a name"),
        labels: "app=web".parse().expect("labels"),
        addresses: vec![[10, 42, 0, 7].into()],
        prefixes: vec![],
        device: None,
        accepts: vec![],
        measurement: None,
        signatures: vec![],
        objection: None,
    };
    let attachment = Attachment {
        report,
        netns: "/proc/7/ns/net".into(),
        netns_id: Some((4, 7)),
        owner: None,
        interface: "mesh0".into(),
        seen_at: None,
        held_until: None,
        origin: Default::default(),
        measured: true,
    };
    serde_json::to_vec(&attachment).expect("plain data is JSON")
}

fn states() -> Vec<Vec<u8>> {
    let (place, folder) = folder();
    let read = |name: &str| fs::read(place.join(name)).expect("it was just written");
    let _ = fs::remove_file(place.join("view"));
    let (_, mut kept) = KeptView::open(folder);
    let mut held = HeldView::default();
    let done = held.apply(Revision(1), &changes());
    kept.keep(held.view()).expect("a view can be kept");
    kept.append(&[(Revision(2), done)]).expect("an update can be kept");
    let key: [u8; 32] = std::array::from_fn(|at| at as u8);
    let (port, until) = (br#"{"port":51820}"#, br#"{"until":99999999999}"#);
    let whole = [&read("view")[..], &read("view.log"), &attachment(), &key, port, until, &key];
    let damaged = [&[][..], &[], b"{", &key[..5], b"", b"x", b""];
    vec![blocks(whole), blocks(damaged), blocks([&read("view")[..9], &read("view.log")])]
}

fn docker_bodies() -> Vec<Vec<u8>> {
    let all = [
        r#"{"PoolID":"","AddressSpace":"meshward","Pool":"10.42.0.0/24","SubPool":"","Options":{"network":"shop"},"V6":false}"#,
        r#"{"PoolID":"p","Address":"10.42.0.7","Options":{"RequestAddressType":"com.docker.network.gateway"}}"#,
        r#"{"NetworkID":"n","Options":{"com.docker.network.generic":{"network":"shop"}},"IPv4Data":[{"Pool":"10.42.0.0/24"}],"IPv6Data":[]}"#,
        r#"{"NetworkID":"n","EndpointID":"e","Interface":{"Address":"10.42.0.7/24","AddressIPv6":"","MacAddress":""}}"#,
        r#"{"NetworkID":"n","EndpointID":"e","SandboxKey":"/var/run/docker/netns/x"}"#,
    ];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
