//! A daemon starts whatever has become of its files.

use super::Node;
use crate::{
    attachment::{Attachment, Origin},
    config::Config,
    folder::Folder,
    relay_queue,
    state_files::{Update, WorkloadFile},
    view_store::ViewStore,
    workloads::plain_report,
};
use meshward_control_proto::view::NetworkSpec;
use meshward_control_proto::{Change, Resource, ResourceKey, ViewReplica};
use meshward_netns::NetnsId;
use meshward_runtime::{member::Membership, state_files::encode};
use meshward_types::{NetworkName, PublicKey, Revision};
use std::{fs, path::Path, sync::Arc, time::Duration};

/// The files of a node with one network and one workload whose namespace is gone by now.
async fn history(folder_path: &Path) -> Vec<String> {
    let folder = Folder::open(folder_path).unwrap();
    let network: NetworkName = "shop".parse().unwrap();
    folder.keep_endpoint_port(&network, 0).unwrap();
    folder.endpoint_key(&network);
    folder.device_key(&network);
    folder.rotate_endpoint_key(&network, Duration::from_mins(10)).unwrap();
    folder.keep_relays(&[]).unwrap();
    let attachment = attachment();
    folder.keep_workload(&attachment.report.id, &attachment).unwrap();
    folder.flush().await;
    let (_, mut store) = ViewStore::open(&folder);
    let spec = NetworkSpec::with_mtu(1420);
    let mut replica = ViewReplica::default();
    let put = |mtu| {
        Change::Put(
            ResourceKey::Network("shop".parse().unwrap()),
            Resource::Network(NetworkSpec { mtu, ..spec.clone() }),
        )
    };
    replica.apply(Revision(1), &[put(1420)]);
    store.write_whole(replica.view()).unwrap();
    store.append(&[Update { revision: Revision(2), changes: vec![put(1400)] }]).unwrap();
    let mut names: Vec<String> = ["", "endpoints", "workloads"]
        .into_iter()
        .flat_map(|within| folder.list(within, ""))
        .map(|name| name.trim_start_matches('/').to_owned())
        .filter(|name| folder.path_of(name).is_file())
        .collect();
    names.sort();
    names
}

fn attachment() -> Attachment {
    let report = plain_report(
        "w-1".parse().unwrap(),
        &"shop".parse().unwrap(),
        "one".parse().unwrap(),
        vec![],
    );
    Attachment {
        netns_id: Some(NetnsId { device: 1, inode: 1 }),
        measured: true,
        ..Attachment::new(report, "/run/netns/not-there".into(), "mesh0".into(), Origin::Local)
    }
}

/// Starts a node as a daemon would from the files in a folder.
pub(crate) async fn restore(folder_path: &Path) -> Arc<Node> {
    let membership = Membership {
        name: "n".parse().unwrap(),
        coordinator: "127.0.0.1:1".into(),
        mesh: "m".into(),
        site: None,
    };
    let config = Config {
        data_dir: folder_path.to_owned(),
        workers: std::num::NonZeroUsize::MIN,
        ..Config::default()
    };
    let (relay, _orders) = relay_queue::channel();
    Node::restore(membership, config, Folder::open(folder_path).unwrap(), relay).await.unwrap()
}

fn put_all(from: &Path, names: &[String], to: &Path) {
    for folder in ["endpoints", "workloads"] {
        fs::create_dir_all(to.join(folder)).unwrap();
    }
    for name in names {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_with_every_file_cut_anywhere_or_full_of_junk() {
    let whole = tempfile::tempdir().unwrap();
    let names = history(whole.path()).await;
    assert!(names.len() >= 9, "{names:?}");
    for name in &names {
        let content = fs::read(whole.path().join(name)).unwrap();
        let cut = (0..content.len()).map(|length| content[..length].to_vec());
        let junk = [0u8, 0xff, b'{', b'9'].into_iter().map(|byte| vec![byte; content.len()]);
        let grown = [[&content[..], b"more"].concat()];
        for damaged in cut.chain(junk).chain(grown) {
            let folder_path = tempfile::tempdir().unwrap();
            put_all(whole.path(), &names, folder_path.path());
            fs::write(folder_path.path().join(name), &damaged).unwrap();
            let node = restore(folder_path.path()).await;
            // Only the view says which networks there are; nothing else keeps one from its
            // endpoint.
            assert!(
                name == "view" || node.enforcement.endpoints().len() == 1,
                "{name} {}",
                damaged.len()
            );
            assert_eq!(node.folder.troubles().summary(), None, "{name} {}", damaged.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_whose_network_is_not_known_waits_for_it() {
    let (whole, folder_path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names = history(whole.path()).await;
    put_all(whole.path(), &names, folder_path.path());
    fs::remove_file(folder_path.path().join("view")).unwrap();
    let mut waiting = attachment();
    // The namespace of this test lives.
    waiting.netns = "/proc/self/ns/net".into();
    waiting.netns_id = Some(NetnsId::of_path(&waiting.netns).unwrap());
    waiting.origin = Origin::Device;
    waiting.report.device = Some(PublicKey([7; 32]));
    fs::write(
        folder_path.path().join("workloads/w-1.json"),
        encode(&WorkloadFile::from(&waiting)).unwrap(),
    )
    .unwrap();
    let node = restore(folder_path.path()).await;
    assert_eq!(node.workloads.count(), 0);
    let spec = NetworkSpec::with_mtu(1420);
    let put = Change::Put(ResourceKey::Network("shop".parse().unwrap()), Resource::Network(spec));
    let enforced = node.enforce(Revision(7), &[put]);
    enforced.starting.expect("the network has no endpoint yet").await.unwrap();
    assert_eq!(node.workloads.count(), 1);
}
