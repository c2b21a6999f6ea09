//! Inputs from outside that fuzz targets judge; see the crate `meshward-fuzzing`.

mod samples;

use crate::{
    Answer, FromCoordinator, FromNode, JoinReply, JoinRequest, Question, decode, encode,
    relay::{
        BatchAssembler, FromRelay, HEADER, MessageBatch, ToRelay, destination, set_source,
        split_frame,
    },
    view::{Change, View, ViewReplica},
};
use meshward_fuzzing::{Bytes, blocks};
use meshward_types::{
    Revision,
    relay::{RelayId, RelayNetwork},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, str::FromStr};

meshward_fuzzing::targets! {
    control: control, samples::control;
    relay_frames: relay_frames, samples::relay_frames, |_| 20 << 20;
    views: views, samples::views;
}

/// Encoding and decoding a decoded message again changes neither the message nor its wire form.
fn wire<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(message) = decode::<T>(body) else { return };
    let frame = encode(&message);
    let again: T = decode(&frame[4..]).expect("what was written can be read");
    assert_eq!(encode(&again), frame);
}

/// A byte that selects a message, then its body: those of both sides of sessions, of joining, and
/// of relays' links.
fn control(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 8 {
        0 => wire::<FromNode>(body),
        1 => wire::<FromCoordinator>(body),
        2 => wire::<Question>(body),
        3 => wire::<Answer>(body),
        4 => wire::<JoinRequest>(body),
        5 => wire::<JoinReply>(body),
        6 => wire::<FromRelay>(body),
        _ => wire::<ToRelay>(body),
    }
}

/// Views and updates, as a node reads them from its disk or its session. After each, the digest
/// that was updated step by step is that of the whole view, a view has no changes against its own
/// hashes, and the changes between two views lead from one to the other.
fn views(data: &[u8]) {
    let mut bytes = Bytes(data);
    let first = decode::<View>(bytes.block()).unwrap_or_default();
    let mut replica = ViewReplica::from(first);
    let before = replica.view().clone();
    while !bytes.is_empty() {
        let Ok(changes) = decode::<Vec<Change>>(bytes.block()) else { continue };
        replica.apply(Revision(replica.view().revision.0.wrapping_add(1)), &changes);
        assert_eq!(replica.digest(), replica.view().digest(), "the digest follows");
    }
    assert!(replica.changes_since(&replica.resource_hashes()).is_empty());
    let again = ViewReplica::from(replica.view().clone());
    assert_eq!(again.digest(), replica.digest());
    for network in replica.networks().map(|(network, _)| network) {
        assert_eq!(again.routes(network), replica.routes(network));
    }
    // A coordinator's view never has a key with another kind of resource.
    let difference = replica.changes_since(&before.resource_hashes());
    let put = difference.iter().filter(|change| matches!(change, Change::Put(..))).count();
    assert!(put <= replica.resources.len());
}

/// Frames of relayed batches, each after its length: reassembly returns only bytes that frames
/// carried. Then the same bytes as a batch that is cut, cut again and reassembled, in any order.
fn relay_frames(data: &[u8]) {
    let (mut bytes, mut assembler) = (Bytes(data), BatchAssembler::default());
    let mut room = 0;
    while !bytes.is_empty() {
        let mut frame = bytes.block().to_vec();
        if destination(&frame).is_some() {
            set_source(&mut frame, RelayId::of(&samples::name("sender")));
        }
        room += usize::from(u16::MAX);
        assembler.add(&frame);
        let came: usize = assembler.drain_complete().iter().map(|run| run.messages.len()).sum();
        assert!(came <= room, "{came} bytes came of frames that stand for {room}");
        room -= came;
    }
    whole_batch(Bytes(data));
}

fn whole_batch(mut bytes: Bytes<'_>) {
    let (size, most, narrow) =
        (1 + bytes.below(2000), HEADER + 1 + bytes.below(1400), HEADER + 1 + bytes.below(1400));
    let backwards = bytes.byte() % 2 == 1;
    let messages = bytes.0;
    let (from, network) =
        (RelayId::of(&samples::name("sender")), RelayNetwork::of(&samples::name("shop")));
    if messages.len() < size {
        return;
    }
    let mut pieces: Vec<Vec<u8>> = MessageBatch { to: from, network, number: 7, messages, size }
        .frames(most)
        .flat_map(|frame| split_frame(&frame, narrow).collect::<Vec<_>>())
        .collect();
    assert!(pieces.iter().all(|piece| piece.len() <= narrow && destination(piece) == Some(from)));
    if backwards {
        pieces.reverse();
    }
    let mut assembler = BatchAssembler::default();
    for piece in &pieces {
        assembler.add(piece);
    }
    let runs = assembler.drain_complete();
    assert!(runs.iter().all(|run| run.from == from && run.network == network && run.size == size));
    assert_eq!(runs.into_iter().flat_map(|run| run.messages).collect::<Vec<_>>(), messages);
}
