//! Concurrent attaches, detaches and updates of the view end as some sequence of them does.

use crate::app::restore_tests::restore;
use meshward_api_types::local::State as WorkloadState;
use meshward_control_proto::{
    Change, DeviceOrder, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, WorkloadSpec},
};
use meshward_types::{IdentityId, InstanceStates, NetworkName, PublicKey, Revision, WorkloadId};
use std::{collections::HashSet, net::IpAddr, sync::Arc};

const WORKLOADS: u8 = 24;
const IDENTITY: IdentityId = IdentityId(7);

fn network() -> NetworkName {
    "shop".parse().unwrap()
}

fn put_network() -> Change {
    let spec = NetworkSpec {
        prefixes: vec!["10.42.0.0/16".parse().unwrap()],
        blocks: vec!["10.42.3.0/24".parse().unwrap()],
        ..NetworkSpec::with_mtu(1420)
    };
    Change::Put(ResourceKey::Network(network()), Resource::Network(spec))
}

fn put_identity(quarantined: bool) -> Change {
    let spec = IdentitySpec {
        labels: "app=web".parse().unwrap(),
        accepts: vec![],
        quarantined,
        reset: false,
    };
    Change::Put(ResourceKey::Identity(network(), IDENTITY), Resource::Identity(spec))
}

fn admit(id: &WorkloadId, addresses: Vec<IpAddr>) -> Change {
    let spec = WorkloadSpec {
        node: "n".parse().unwrap(),
        addresses,
        prefixes: vec![],
        identity: IDENTITY,
        quarantined: false,
        reset: false,
        name: None,
        states: InstanceStates::default(),
    };
    Change::Put(ResourceKey::Workload(network(), id.clone()), Resource::Workload(spec))
}

fn device(number: u8) -> DeviceOrder {
    DeviceOrder {
        network: network(),
        name: format!("d{number}").parse().unwrap(),
        labels: "app=web".parse().unwrap(),
        public_key: PublicKey([number + 1; 32]),
    }
}

/// Devices are attached here: they are workloads that need no namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn attaches_detaches_and_updates_at_once_end_as_one_after_the_other() {
    let folder_path = tempfile::tempdir().unwrap();
    let node = restore(folder_path.path()).await;
    let start = node.enforce(Revision(1), &[put_network(), put_identity(false)]);
    start.starting.unwrap().await.unwrap();
    // A session that nobody reads: workloads wait for a decision, not for vouching.
    let (to_coordinator, _reports) = tokio::sync::mpsc::unbounded_channel();
    node.begin_session(to_coordinator);
    let mut attaching = tokio::task::JoinSet::new();
    for number in 0..WORKLOADS {
        let workloads = node.workloads.clone();
        attaching.spawn(async move { workloads.add_device(device(number)).await });
    }
    // Admits each workload as it comes, as the coordinator does, between quarantines.
    let (updating, ids) = (node.clone(), Arc::new(parking_lot::Mutex::new(HashSet::new())));
    let (detached, stop) = (ids.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let ended = stop.clone();
    let updates = tokio::task::spawn_blocking(move || {
        let mut revision = 1;
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            revision += 1;
            let mut changes = vec![put_identity(revision % 2 == 0)];
            for shown in updating.workloads.all() {
                if shown.state == WorkloadState::Waiting {
                    changes.push(admit(&shown.id, shown.addresses));
                } else if detached.lock().insert(shown.id.clone()) && shown.id.as_str() < "w-8" {
                    // Detached while others are attached.
                    updating.workloads.detach(&shown.id).unwrap();
                    changes.push(Change::Drop(ResourceKey::Workload(network(), shown.id)));
                }
            }
            updating.enforce(Revision(revision), &changes);
        }
        revision
    });
    let mut answers = Vec::new();
    while let Some(answer) = attaching.join_next().await {
        answers.extend(answer.unwrap().ok());
    }
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let revision = updates.await.unwrap();
    node.enforce(Revision(revision + 1), &[put_identity(true)]);
    let left = node.workloads.all();
    assert!(left.iter().all(|shown| shown.id.as_str() >= "w-8"), "what was detached is gone");
    assert!(
        left.iter().all(|shown| shown.state == WorkloadState::Quarantined),
        "the last update holds for all: {left:?}"
    );
    let addresses: HashSet<&IpAddr> = left.iter().flat_map(|shown| &shown.addresses).collect();
    assert_eq!(addresses.len(), left.len(), "no address is given out twice");
    for shown in &left {
        let standing = node.enforcement.standing(&network(), &shown.id);
        assert_eq!(standing.vouched, None, "the coordinator has decided");
        let spec = standing.spec.expect("the view has what is attached");
        assert_eq!(spec.addresses, shown.addresses);
    }
    let known = node.enforcement.own_addresses(&network());
    assert_eq!(known, addresses.into_iter().copied().collect(), "no address of a gone one stays");
    node.folder.flush().await;
    let kept: HashSet<_> = node.folder.workloads().into_iter().map(|own| own.report.id).collect();
    assert_eq!(kept, left.into_iter().map(|shown| shown.id).collect(), "the disk agrees");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_waits_for_nobody_who_attaches_starts_or_writes() {
    let folder_path = tempfile::tempdir().unwrap();
    let node = restore(folder_path.path()).await;
    let start = node.enforce(Revision(1), &[put_network(), put_identity(false)]);
    start.starting.unwrap().await.unwrap();
    let _attaching = node.workloads.hold_turn().await;
    let _starting = node.endpoints.hold_turn().await;
    let update = node.enforce(Revision(2), &[put_identity(true)]);
    assert!(update.starting.is_none());
    let is_in_force = node.enforcement.view(|view| {
        matches!(view.resources.get(&ResourceKey::Identity(network(), IDENTITY)),
            Some(Resource::Identity(spec)) if spec.quarantined)
    });
    assert!(is_in_force);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_whose_network_goes_meanwhile_leaves_nothing() {
    let folder_path = tempfile::tempdir().unwrap();
    let node = restore(folder_path.path()).await;
    let start = node.enforce(Revision(1), &[put_network(), put_identity(false)]);
    start.starting.unwrap().await.unwrap();
    let mut attaching = tokio::task::JoinSet::new();
    for number in 0..WORKLOADS {
        let workloads = node.workloads.clone();
        attaching.spawn(async move { workloads.add_device(device(number)).await });
    }
    tokio::task::yield_now().await;
    node.enforce(Revision(2), &[Change::Drop(ResourceKey::Network(network()))]);
    while let Some(answer) = attaching.join_next().await {
        assert!(answer.unwrap().is_err() || node.enforcement.endpoint(&network()).is_none());
    }
    assert_eq!(node.workloads.count(), 0);
    node.folder.flush().await;
    assert!(node.folder.workloads().is_empty());
}
