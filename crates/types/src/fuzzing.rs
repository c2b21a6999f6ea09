//! What any bytes from outside must satisfy; see the crate `meshward-fuzzing`.

mod samples;

use crate::{
    AcceptFrom, Change, HeldView, LabelKey, Labels, NetworkName, NodeName, PortSpec, PublicKey,
    Revision, Selector, View, WorkloadId, WorkloadName, api,
    control::{
        Answer, FromCoordinator, FromNode, JoinReply, JoinRequest, Question, decode, encode,
    },
    local,
    measurement::{Measurement, Repository, Sha256},
    relay::{
        FromRelay, Gathering, HEADER, RelayId, RelayNetwork, ToRelay, cut, destination, frames,
        set_source,
    },
    stun,
    token::JoinToken,
};
use meshward_fuzzing::{Bytes, blocks};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::{Debug, Display},
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

meshward_fuzzing::targets! {
    api_bodies: api_bodies, samples::api_bodies;
    control: control, samples::control;
    relay_frames: relay_frames, samples::relay_frames, |_| 20 << 20;
    stun: stun_messages, samples::stun;
    text: text, samples::text;
    views: views, samples::views;
}

/// What is read is written as it was understood: a second reading gives the same, and so does the
/// wire form.
fn wire<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(message) = decode::<T>(body) else { return };
    let frame = encode(&message);
    let again: T = decode(&frame[4..]).expect("what was written can be read");
    assert_eq!(encode(&again), frame);
}

/// A byte that says which message, and its body: those of both sides of sessions, joining, and
/// relays' links.
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
/// that was kept step by step is that of the whole, what is held leads to itself, and what differs
/// between two views leads from one to the other.
fn views(data: &[u8]) {
    let mut bytes = Bytes(data);
    let first = decode::<View>(bytes.block()).unwrap_or_default();
    let mut held = HeldView::from(first);
    let before = held.view().clone();
    while !bytes.is_empty() {
        let Ok(changes) = decode::<Vec<Change>>(bytes.block()) else { continue };
        held.apply(Revision(held.view().revision.0.wrapping_add(1)), &changes);
        assert_eq!(held.digest(), held.view().digest(), "the digest follows");
    }
    assert!(held.changes_since(&held.shadow()).is_empty());
    let again = HeldView::from(held.view().clone());
    assert_eq!(again.digest(), held.digest());
    for network in held.networks().map(|(network, _)| network) {
        assert_eq!(again.routes(network), held.routes(network));
    }
    // A view of a coordinator has no key with another key's item.
    let difference = held.changes_since(&before.shadow());
    let put = difference.iter().filter(|change| matches!(change, Change::Put(..))).count();
    assert!(put <= held.items.len());
}

/// Frames of relayed batches, each behind its length: nothing but what frames carried comes out of
/// them, whatever came before. Then the same bytes as a batch that is cut, cut again and put
/// together, in any order.
fn relay_frames(data: &[u8]) {
    let (mut bytes, mut gathering) = (Bytes(data), Gathering::default());
    let mut room = 0;
    while !bytes.is_empty() {
        let mut frame = bytes.block().to_vec();
        if destination(&frame).is_some() {
            set_source(&mut frame, RelayId::of(&samples::name("sender")));
        }
        room += usize::from(u16::MAX);
        gathering.take(&frame);
        let came: usize = gathering.take_whole().iter().map(|run| run.messages.len()).sum();
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
    let mut pieces: Vec<Vec<u8>> = frames(from, network, 7, messages, size, most)
        .flat_map(|frame| cut(&frame, narrow).collect::<Vec<_>>())
        .collect();
    assert!(pieces.iter().all(|piece| piece.len() <= narrow && destination(piece) == Some(from)));
    if backwards {
        pieces.reverse();
    }
    let mut gathering = Gathering::default();
    pieces.iter().for_each(|piece| gathering.take(piece));
    let runs = gathering.take_whole();
    assert!(runs.iter().all(|run| run.from == from && run.network == network && run.size == size));
    assert_eq!(runs.into_iter().flat_map(|run| run.messages).collect::<Vec<_>>(), messages);
}

/// STUN: a request is answered by little more than itself, and an answer tells what was seen.
/// `data` is taken as a message, then as the address that is told.
fn stun_messages(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut transaction = stun::Transaction::default();
    transaction.copy_from_slice(&[bytes.take(12), &[0; 12]].concat()[..12]);
    for message in [data, bytes.0] {
        if let Some(asked) = stun::read_request(message) {
            let answer = stun::response(&asked, ([192, 0, 2, 1], 7).into());
            assert!(answer.len() <= 2 * message.len(), "nothing is gained by a forged sender");
            assert!(!stun::is_response(message));
        }
        if stun::read_response(message, &transaction).is_some() {
            assert!(stun::is_response(message), "it would be taken for WireGuard's");
        }
    }
    let mut address = [0; 16];
    address.copy_from_slice(&[bytes.take(16), &[0; 16]].concat()[..16]);
    let seen = SocketAddr::new(
        Ipv6Addr::from(address).to_canonical(),
        u16::from_be_bytes([bytes.byte(), bytes.byte()]),
    );
    let answer = stun::response(&transaction, seen);
    assert_eq!(stun::read_response(&answer, &transaction), Some(seen));
}

/// Text that names something: what is read is printed so that it is read alike.
fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let labels = read::<Labels>(text).unwrap_or_default();
    // The one that selects everything is printed for people.
    if text.parse().is_ok_and(|selector: Selector| !selector.is_empty()) {
        read::<Selector>(text).expect("it was read before").matches(&labels);
    }
    read::<LabelKey>(text);
    read::<PortSpec>(text);
    read::<AcceptFrom>(text);
    read::<PublicKey>(text);
    read::<NodeName>(text);
    read::<NetworkName>(text);
    read::<WorkloadName>(text);
    read::<WorkloadId>(text);
    read::<Revision>(text);
    read::<Sha256>(text);
    read::<JoinToken>(text);
    if let Ok(all) = AcceptFrom::parse_all(text) {
        AcceptFrom::check_count(&all).expect("they are as many as a workload may carry");
    }
    if let Ok(repository) = Repository::of_reference(text) {
        assert_eq!(Repository::of_reference(repository.as_str()).as_ref(), Ok(&repository));
        assert_eq!(format!("{}/{}", repository.registry(), repository.path()), repository.as_str());
    }
    if let Some(name) = WorkloadName::like(text) {
        assert_eq!(name.as_str().parse().as_ref(), Ok(&name));
    }
}

fn read<T: FromStr<Err: Debug + Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(
                printed.parse::<T>().expect("what was printed can be read"),
                value,
                "{printed}"
            );
            Some(value)
        }
        Err(error) => {
            let said = error.to_string();
            assert!(
                !said.is_empty() && said.len() <= 300 + 2 * text.len(),
                "an error is a sentence: {said}"
            );
            None
        }
    }
}

fn json<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(body) else { return };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("what was read can be written"), written);
}

/// Bodies of the coordinator's API and of a node's local one, and what is kept of workloads: read
/// and written alike.
fn api_bodies(body: &[u8]) {
    json::<api::CreateToken>(body);
    json::<api::CreateNetwork>(body);
    json::<api::ApproveNode>(body);
    json::<api::SubmitPolicy>(body);
    json::<api::Rollback>(body);
    json::<api::Impose>(body);
    json::<api::QuarantineTarget>(body);
    json::<api::ExplainQuery>(body);
    json::<api::CreateCredential>(body);
    json::<api::ChangeCredential>(body);
    json::<api::Context>(body);
    json::<api::RotateKeys>(body);
    json::<api::CreateDevice>(body);
    json::<api::ApproveRoute>(body);
    json::<local::Attach>(body);
    json::<local::Advertise>(body);
    json::<local::PlaceContainer>(body);
    json::<local::ContainerKey>(body);
    json::<local::Relabel>(body);
    json::<Measurement>(body);
}
