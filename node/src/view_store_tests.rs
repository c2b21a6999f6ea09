//! Tests of the view on disk.

use super::*;
use meshward_control_proto::{Change, Resource, ResourceKey, view::NetworkSpec};
use meshward_types::Revision;
use std::fs;

/// The first half of SHA-256.
fn hash(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref()[..16].to_vec()
}

fn network(at: u16) -> Change {
    let spec = NetworkSpec::with_mtu(at);
    Change::Put(ResourceKey::Network(format!("n{at}").parse().unwrap()), Resource::Network(spec))
}

/// A folder with a snapshot and three updates behind it, and the views after each.
fn history() -> (tempfile::TempDir, Folder, Vec<View>) {
    let folder_path = tempfile::tempdir().unwrap();
    let folder = Folder::open(folder_path.path()).unwrap();
    let (view, mut store) = ViewStore::open(&folder);
    assert_eq!(view, View::default());
    assert!(store.wants_whole());
    let mut replica = ViewReplica::default();
    replica.apply(Revision(1), &[network(1)]);
    store.write_whole(replica.view()).unwrap();
    let mut views = vec![replica.view().clone()];
    for at in 2..5 {
        let changes = replica.apply(Revision(at.into()), &[network(at)]);
        assert!(!store.wants_whole());
        store.append(&[Update { revision: Revision(at.into()), changes }]).unwrap();
        views.push(replica.view().clone());
    }
    (folder_path, folder, views)
}

#[test]
fn the_view_comes_back_with_every_update() {
    let (_folder_path, folder, views) = history();
    let (view, mut store) = ViewStore::open(&folder);
    assert_eq!(&view, views.last().unwrap());
    let mut replica = ViewReplica::from(view);
    let changes = replica.apply(Revision(9), &[network(9)]);
    store.append(&[Update { revision: Revision(9), changes }]).unwrap();
    assert_eq!(ViewStore::open(&folder).0, *replica.view());
}

#[test]
fn a_log_that_ends_anywhere_gives_the_updates_that_are_whole() {
    let (_folder_path, folder, views) = history();
    let log = fs::read(folder.path_of(VIEW_LOG)).unwrap();
    let mut newest = 0;
    for length in 0..log.len() {
        fs::write(folder.path_of(VIEW_LOG), &log[..length]).unwrap();
        let (view, _) = ViewStore::open(&folder);
        let at =
            views.iter().position(|known| *known == view).expect("one of the views that were kept");
        assert!(at >= newest, "never an older one with more of the log");
        newest = at;
    }
    assert_eq!(newest, views.len() - 2);
}

#[test]
fn a_damaged_frame_ends_the_log_and_a_damaged_snapshot_is_none() {
    let (_folder_path, folder, views) = history();
    let mut log = fs::read(folder.path_of(VIEW_LOG)).unwrap();
    *log.last_mut().unwrap() ^= 1;
    fs::write(folder.path_of(VIEW_LOG), &log).unwrap();
    assert_eq!(ViewStore::open(&folder).0, views[views.len() - 2]);
    fs::write(folder.path_of(VIEW), b"garbage").unwrap();
    let (view, store) = ViewStore::open(&folder);
    assert_eq!(view, View::default());
    assert!(store.wants_whole());
}

#[test]
fn a_snapshot_cut_anywhere_or_with_any_byte_changed_is_set_aside() {
    let (_folder_path, folder, _) = history();
    let snapshot = fs::read(folder.path_of(VIEW)).unwrap();
    let cut = (0..snapshot.len()).map(|length| snapshot[..length].to_vec());
    let changed = (0..snapshot.len()).map(|at| {
        let mut changed = snapshot.clone();
        changed[at] ^= 0x10;
        changed
    });
    for damaged in cut.chain(changed) {
        fs::write(folder.path_of(VIEW), damaged).unwrap();
        assert_eq!(ViewStore::open(&folder).0, View::default());
        assert!(!folder.path_of(VIEW).exists());
    }
}

#[test]
fn a_snapshot_of_format_1_without_a_hash_is_read_if_its_log_names_it() {
    let folder_path = tempfile::tempdir().unwrap();
    let folder = Folder::open(folder_path.path()).unwrap();
    let whole = include_bytes!("state_files/testdata/format-1/view");
    let length = u32::from_le_bytes(whole[..4].try_into().unwrap()) as usize;
    let snapshot = &whole[..4 + length];
    folder.write(VIEW, snapshot).unwrap();
    folder.write(VIEW_LOG, &hash(snapshot)).unwrap();
    let read = ViewStore::open(&folder).0;
    assert_eq!((read.revision, read.resources.len()), (Revision(77), 7));
    folder.write(VIEW_LOG, &hash(b"another")).unwrap();
    assert_eq!(ViewStore::open(&folder).0, View::default());
}

#[test]
fn a_log_of_another_snapshot_is_not_read() {
    let (_folder_path, folder, views) = history();
    let log = fs::read(folder.path_of(VIEW_LOG)).unwrap();
    let (_, mut store) = ViewStore::open(&folder);
    store.write_whole(&views[0]).unwrap();
    let (snapshot, _) = encode_view(views.last().unwrap());
    folder.write(VIEW, &snapshot).unwrap();
    fs::write(folder.path_of(VIEW_LOG), log).unwrap();
    assert_eq!(&ViewStore::open(&folder).0, views.last().unwrap());
}
