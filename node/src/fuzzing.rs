//! Properties of the node, whatever runtimes and registries say, or stands on its disk; see the
//! crate `meshward-fuzzing`.

use crate::{
    attachment::{Attachment, Origin},
    docker::fuzzing::docker,
    folder::Folder,
    reachability::port_mapping,
    runtimes::fuzzing as runtimes,
    state_files::{Update, WorkloadFile},
    view_store::ViewStore,
    workloads::ContainerFacts,
};
use meshward_control_proto::{
    Change, Resource, ResourceKey, ViewReplica, WorkloadReport,
    view::{NetworkSpec, PeerSpec},
};
use meshward_fuzzing::{Bytes, blocks};
use meshward_netns::NetnsId;
use meshward_runtime::state_files::encode;
use meshward_types::{Health, NetworkName, NodeName, Revision, WorkloadId};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

meshward_fuzzing::targets! {
    containers: containers, runtimes::containers;
    docker: docker, docker_bodies;
    pods: pods, runtimes::pods;
    port_mapping: port_mapping::fuzzing::answers, port_mapping::fuzzing::samples;
    registry: runtimes::registry, runtimes::manifests;
    state: state, states, |length| (4 << 20) + 1024 * length as u64;
}

/// Docker's descriptions of a container and its image.
fn containers(data: &[u8]) {
    let mut bytes = Bytes(data);
    if let Some(found) = runtimes::container(bytes.block(), bytes.block()) {
        check(&found);
    }
}

/// Kubernetes' description of a pod.
fn pods(data: &[u8]) {
    if let Some(found) = runtimes::pod(data) {
        check(&found);
    }
}

/// Checks that facts keep the coordinator's bounds, and have no label that only Meshward may set.
fn check(found: &ContainerFacts) {
    assert!(found.labels.check_unreserved().is_ok());
    assert!(meshward_types::AcceptFrom::check_count(&found.accepts).is_ok());
    let bounded = found.measurement.as_ref().is_none_or(|measured| measured.check().is_ok());
    assert!(bounded || found.objection.is_some(), "{:?}", found.measurement);
}

/// A node's folder, opened as at a start.
fn folder() -> (PathBuf, Folder) {
    let path = meshward_fuzzing::scratch("node");
    let folder = Folder::open(&path).expect("whatever is in it, it opens");
    (path, folder)
}

fn network() -> NetworkName {
    "shop".parse().expect("a name")
}

/// The part of a name by which files that were set aside are known.
const ASIDE: &str = ".damaged-";
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

/// A block for each file of a node's state: whole files are used, damaged ones set aside, and the
/// rest starts. Files that are written afterwards are read again.
fn state(data: &[u8]) {
    let (path, _) = folder();
    let mut bytes = Bytes(data);
    for name in FILES {
        fs::write(path.join(name), bytes.block()).expect("a file can be written");
    }
    // Beside whatever the others have become, this one is whole.
    fs::write(path.join("workloads/w2.json"), attachment("w2")).expect("a file can be written");
    let (path, folder) = self::folder();
    let folder = &folder;
    let (view, mut store) = ViewStore::open(folder);
    let mut replica = ViewReplica::from(view);
    let next = Revision(replica.view().revision.0.wrapping_add(1));
    let changes = replica.apply(next, &changes());
    let written = if store.wants_whole() {
        store.write_whole(replica.view())
    } else {
        store.append(&[Update { revision: next, changes }])
    };
    written.expect("a view can be kept");
    let (again, _) = ViewStore::open(folder);
    assert_eq!(again, *replica.view(), "what was kept comes back");
    let found = folder.workloads();
    let has = |id: &str| found.iter().any(|attachment| attachment.report.id.as_str() == id);
    assert!(has("w2"), "a damaged file keeps no other from being taken");
    assert_eq!(has("w1"), path.join("workloads/w1.json").exists(), "it is taken, or set aside");
    let key = folder.endpoint_key(&network());
    let port = folder.endpoint_port(&network());
    assert!(
        port.is_some() || !path.join("endpoints/shop.port").exists(),
        "it is taken, or set aside"
    );
    let _ = folder.previous_endpoint_key(&network());
    // What was made anew is on disk before the next bytes are.
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime without I/O");
    runtime.block_on(folder.flush());
    // The next start finds what this one had.
    let (_, again) = self::folder();
    assert_eq!(again.workloads().len(), found.len());
    assert_eq!(again.endpoint_key(&network()).public(), key.public());
    assert_eq!(again.endpoint_port(&network()), port);
    remove_set_aside(&path);
}

/// Removes what was set aside: each input has its own.
fn remove_set_aside(path: &Path) {
    for folder in ["", "workloads", "endpoints"] {
        let entries = fs::read_dir(path.join(folder)).expect("a folder can be read");
        for entry in
            entries.flatten().filter(|entry| entry.file_name().to_string_lossy().contains(ASIDE))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn changes() -> Vec<Change> {
    let node: NodeName = "rack".parse().expect("a name");
    let spec = NetworkSpec::with_mtu(1420);
    let peer = PeerSpec {
        public_key: meshward_types::PublicKey([7; 32]),
        candidates: vec![],
        prefixes: vec![],
        site: None,
    };
    vec![
        Change::Put(ResourceKey::Network(network()), Resource::Network(spec)),
        Change::Put(ResourceKey::Peer(network(), node), Resource::Peer(peer)),
    ]
}

fn attachment(id: &str) -> Vec<u8> {
    let id: WorkloadId = id.parse().expect("an id");
    let report = WorkloadReport::of_process(
        id,
        network(),
        "web".parse().expect("a name"),
        "app=web".parse().expect("labels"),
        vec![[10, 42, 0, 7].into()],
    );
    let attachment = Attachment {
        report,
        netns: "/proc/7/ns/net".into(),
        netns_id: Some(NetnsId { device: 4, inode: 7 }),
        owner: None,
        interface: "mesh0".into(),
        last_address: None,
        quarantined_until: None,
        origin: Origin::Local,
        measured: true,
        admitted_as: None,
        findings: BTreeMap::from([("api".parse().expect("a name"), Health::Healthy)]),
    };
    encode(&WorkloadFile::from(&attachment)).expect("plain data is JSON")
}

fn states() -> Vec<Vec<u8>> {
    let (path, folder) = folder();
    let read = |name: &str| fs::read(path.join(name)).expect("it was just written");
    let _ = fs::remove_file(path.join("view"));
    let (_, mut store) = ViewStore::open(&folder);
    let mut replica = ViewReplica::default();
    let done = replica.apply(Revision(1), &changes());
    store.write_whole(replica.view()).expect("a view can be kept");
    store
        .append(&[Update { revision: Revision(2), changes: done }])
        .expect("an update can be kept");
    let key: [u8; 32] = std::array::from_fn(|at| at as u8);
    let (port, until) = (br#"{"port":51820}"#, br#"{"until":99999999999}"#);
    let whole = [&read("view")[..], &read("view.log"), &attachment("w1"), &key, port, until, &key];
    let damaged = [&[][..], &[], b"{", &key[..5], b"", b"x", b""];
    vec![blocks(whole), blocks(damaged), blocks([&read("view")[..9], &read("view.log")])]
}

fn docker_bodies() -> Vec<Vec<u8>> {
    let all = [
        r#"{"PoolID":"","AddressSpace":"meshward","Pool":"10.42.0.0/24","SubPool":"",
        "Options":{"network":"shop"},"V6":false}"#,
        r#"{"PoolID":"p","Address":"10.42.0.7",
        "Options":{"RequestAddressType":"com.docker.network.gateway"}}"#,
        r#"{"NetworkID":"n","Options":{"com.docker.network.generic":{"network":"shop"}},
        "IPv4Data":[{"Pool":"10.42.0.0/24"}],"IPv6Data":[]}"#,
        r#"{"NetworkID":"n","EndpointID":"e","Interface":{"Address":"10.42.0.7/24","AddressIPv6":"",
        "MacAddress":""}}"#,
        r#"{"NetworkID":"n","EndpointID":"e","SandboxKey":"/var/run/docker/netns/x"}"#,
    ];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
