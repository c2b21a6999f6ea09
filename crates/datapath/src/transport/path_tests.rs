//! The paths to a peer: which are tried, and which are kept to.

use super::{
    peer::{Peer, ReceivedContent, ReceivedRun},
    state::{Now, Transport},
};
use crate::{
    index::PeerIndex,
    paths::{prober::Proof, selection::PathLossReason},
};
use meshward_types::relay::{RelayId, RelayNumber};
use meshward_wireguard::{Millis, SecretKey, load_gate::Incoming};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

const NOW: u64 = 1_700_000_000;

/// Two endpoints that are peers of each other, and the paths between them.
struct Bench {
    start: Instant,
    ours: Transport,
    theirs: Transport,
    direct: [SocketAddr; 2],
    relay: SocketAddr,
}

impl Bench {
    fn new() -> Self {
        let start = Instant::now();
        let direct = ["192.0.2.1:1", "192.168.1.2:1"].map(|text| text.parse().unwrap());
        let relay = RelayId::of(&"rack".parse().unwrap()).address(RelayNumber(1));
        let secrets = [SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32])];
        let keys = [secrets[0].public(), secrets[1].public()];
        let [ours, theirs] = secrets.map(|secret| Transport::new(secret, start));
        ours.put_node(start, PeerIndex(0), keys[1], vec![direct[0], direct[1], relay]);
        theirs.put_node(start, PeerIndex(0), keys[0], vec![]);
        Self { start, ours, theirs, direct, relay }
    }

    fn at(&self, milliseconds: u64) -> Now {
        let passed = Duration::from_millis(milliseconds);
        Now { instant: self.start + passed, unix: Duration::from_secs(NOW) + passed }
    }

    fn peer(&self) -> Arc<Peer> {
        self.ours.peers.read().get(PeerIndex(0)).unwrap().clone()
    }

    /// Begins a handshake: what is sent, and where to.
    fn begin(&self, at: u64) -> Vec<(SocketAddr, Vec<u8>)> {
        self.ours.request_handshake(&self.peer());
        let mut sent = Vec::new();
        self.ours
            .begin_requested(self.at(at), &mut |to, message| sent.push((to, message.to_vec())));
        sent
    }

    fn tick(&self, at: u64) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut sent = Vec::new();
        self.ours.tick(self.at(at), 0, &mut |to, message| sent.push((to, message.to_vec())));
        sent
    }

    /// A handshake of which the initiation came from `from`, and the answer by `back`; then
    /// something is said by it.
    fn meet(&self, at: u64, from: SocketAddr, back: SocketAddr) {
        let begun = self.begin(at);
        let answer = self.answer(at + 1, from, &begun[0].1);
        self.ours
            .receive_handshake(
                self.at(at + 2),
                Incoming { from: back, message: &answer },
                &mut |_, _| {},
            )
            .unwrap();
        let theirs = self.theirs.peers.read().get(PeerIndex(0)).unwrap().clone();
        let next = theirs.receive_session(
            self.theirs.millis(self.at(at + 3).instant),
            u32::from(theirs.handshake.lock().sessions_begun),
        );
        theirs.note_received(
            self.theirs.millis(self.at(at + 3).instant),
            &ReceivedRun { session: &next.unwrap(), from, content: ReceivedContent::Packets(0) },
        );
    }

    /// Their answer to an initiation.
    fn answer(&self, at: u64, from: SocketAddr, initiation: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut send = |_: SocketAddr, message: &[u8]| answer = message.to_vec();
        self.theirs
            .receive_handshake(self.at(at), Incoming { from, message: initiation }, &mut send)
            .unwrap();
        answer
    }

    /// Sends data that nobody answers, and gives the initiations that follow.
    fn begin_after_silence(&self, at: u64) -> Vec<(SocketAddr, Vec<u8>)> {
        let peer = self.peer();
        let since = self.ours.millis(self.at(at - 600).instant);
        peer.note_data_sent(since, &peer.send_path(since).unwrap().session, 100);
        self.tick(at)
    }

    /// Returns our endpoint anew, with another key or after a restart: it knows nothing but the
    /// peer at its first address.
    fn restarted(&self, secret: SecretKey) -> Transport {
        let ours = Transport::new(secret, self.start);
        let theirs = SecretKey::from_bytes([2; 32]).public();
        ours.put_node(self.start, PeerIndex(0), theirs, vec![self.direct[0]]);
        ours
    }

    fn everywhere(&self) -> Vec<SocketAddr> {
        vec![self.direct[0], self.direct[1], self.relay]
    }
}

fn addresses(sent: &[(SocketAddr, Vec<u8>)]) -> Vec<SocketAddr> {
    sent.iter().map(|(to, _)| *to).collect()
}

#[test]
fn a_first_initiation_goes_to_all_paths_with_copies_and_a_hole_punch_is_requested() {
    let bench = Bench::new();
    let first = bench.begin(0);
    assert_eq!(addresses(&first), bench.everywhere());
    assert_eq!(bench.ours.take_hole_punch_requests(), [PeerIndex(0)]);
    assert!(bench.tick(100).is_empty());
    let copies = bench.tick(250);
    assert_eq!(addresses(&copies), bench.everywhere());
    assert_eq!(copies[0].1, first[0].1, "it is the same message");

    // Whichever comes first is answered; a copy gets the same answer, by its own path and once.
    let mut answers = Vec::new();
    let mut answer = |from: SocketAddr| {
        bench.theirs.receive_handshake(
            bench.at(260),
            Incoming { from, message: &first[0].1 },
            &mut |to, message| {
                answers.push((to, message.to_vec()));
            },
        )
    };
    assert!(answer(bench.relay).unwrap().is_none());
    assert!(answer(bench.direct[0]).unwrap().is_none());
    assert!(answer(bench.direct[0]).unwrap().is_none());
    assert_eq!(addresses(&answers), [bench.relay, bench.direct[0]]);
    assert_eq!(answers[0].1, answers[1].1);
    let response = &answers[0].1;
    assert!(
        bench
            .ours
            .receive_handshake(
                bench.at(270),
                Incoming { from: bench.relay, message: response },
                &mut |_, _| {}
            )
            .unwrap()
            .is_some()
    );
    assert_eq!(bench.peer().address(), Some(bench.relay));

    // While it is relayed, the other paths are tried, less and less often.
    let tried: Vec<u64> =
        (2..40).map(|at| at * 250).filter(|at| !bench.tick(*at).is_empty()).collect();
    assert_eq!(tried, [500, 750, 1250, 2250, 4250, 8250]);
    // A hole-punch request of the peer begins a handshake on all paths, and no request in return.
    bench.ours.take_hole_punch_requests();
    assert!(bench.ours.answer_hole_punch(PeerIndex(0)));
    let mut sent = Vec::new();
    bench
        .ours
        .begin_requested(bench.at(10_000), &mut |to, message| sent.push((to, message.to_vec())));
    assert_eq!(sent.len(), 3);
    assert!(bench.ours.take_hole_punch_requests().is_empty());
}

#[test]
fn an_initiation_to_a_peer_that_falls_silent_is_copied_although_there_is_a_session() {
    let bench = Bench::new();
    bench.meet(0, bench.direct[0], bench.direct[0]);
    let begun = bench.begin_after_silence(2_000);
    assert_eq!(addresses(&begun), bench.everywhere());
    // The peer restarts meanwhile: it hears one of the copies.
    let copies: Vec<u64> = (1..30)
        .map(|number| 2_000 + number * 250)
        .filter(|at| bench.tick(*at).iter().any(|(_, message)| *message == begun[0].1))
        .collect();
    assert_eq!(copies, [2_250, 2_500, 3_000, 3_750, 5_250]);
}

#[test]
fn a_good_path_is_not_left_for_the_relay() {
    let bench = Bench::new();
    bench.meet(0, bench.direct[0], bench.direct[0]);
    let peer = bench.peer();
    let session = peer.send_path(Millis(10)).unwrap().session;
    let says = |at: u64, from: SocketAddr| {
        peer.note_received(
            Millis(at),
            &ReceivedRun { session: &session, from, content: ReceivedContent::Packets(100) },
        );
        peer.address()
    };
    assert_eq!(says(1_100, bench.direct[0]), Some(bench.direct[0]));
    assert_eq!(says(6_000, bench.relay), Some(bench.direct[0]));
    assert_eq!(says(6_050, bench.direct[1]), Some(bench.direct[1]), "a peer may move");
    assert_eq!(
        says(11_060, bench.relay),
        Some(bench.relay),
        "nothing has come directly for five seconds"
    );
}

#[test]
fn a_path_in_one_direction_is_not_used() {
    // What they send directly comes; what we send directly does not.
    let bench = Bench::new();
    bench.meet(0, bench.relay, bench.relay);
    let (ours, theirs) =
        (bench.peer(), bench.theirs.peers.read().get(PeerIndex(0)).unwrap().clone());
    assert_eq!((ours.address(), theirs.address()), (Some(bench.relay), Some(bench.relay)));
    let at = |at: u64| bench.ours.millis(bench.at(at).instant);

    // A message that is more than a probe shows that the peer has proved the path.
    let session = ours.send_path(at(20)).unwrap().session;
    ours.note_received(
        at(30),
        &ReceivedRun {
            session: &session,
            from: bench.direct[0],
            content: ReceivedContent::PathProbes,
        },
    );
    assert_eq!(ours.address(), Some(bench.relay), "probes that come prove nothing");
    let asked = bench.tick(300);
    assert_eq!(addresses(&asked), bench.direct);
    assert_eq!(ours.address(), Some(bench.relay));
    let answered = ours.handshake.lock().accept_path_response(1).unwrap();
    ours.apply_proof(at(320), answered);
    assert_eq!(ours.address(), Some(bench.direct[0]), "an answer does");
    assert_eq!(addresses(&bench.tick(500)), [bench.direct[0]], "and the peer learns it by that");

    // The path goes bad for what we send: a handshake by the relay moves both, though theirs still
    // comes directly.
    let begun = bench.begin_after_silence(2_000);
    assert_eq!(addresses(&begun), bench.everywhere());
    ours.note_received(
        at(1_990),
        &ReceivedRun {
            session: &session,
            from: bench.direct[0],
            content: ReceivedContent::Packets(1),
        },
    );
    let answer = bench.answer(2_010, bench.relay, &begun[0].1);
    bench
        .ours
        .receive_handshake(
            bench.at(2_020),
            Incoming { from: bench.relay, message: &answer },
            &mut |_, _| {},
        )
        .unwrap();
    assert_eq!(ours.address(), Some(bench.relay));
    // The other side learns it from the first message of the new session.
    let first = theirs.handshake.lock().sessions_begun;
    let next = theirs.receive_session(at(2_030), u32::from(first)).unwrap();
    theirs.note_received(
        at(2_025),
        &ReceivedRun {
            session: &next,
            from: bench.direct[0],
            content: ReceivedContent::Packets(1),
        },
    );
    assert_eq!(theirs.address(), Some(bench.direct[0]));
    assert_eq!(theirs.send_path(at(2_030)).unwrap().session.local_index(), u32::from(first));
}

#[test]
fn a_lost_direct_path_is_avoided_longer_each_time_while_the_relay_is_good() {
    let bench = Bench::new();
    bench.meet(0, bench.direct[0], bench.direct[0]);
    let peer = bench.peer();
    let session = peer.send_path(Millis(10)).unwrap().session;
    let says = |at: u64, from: SocketAddr| {
        peer.note_received(
            Millis(at),
            &ReceivedRun { session: &session, from, content: ReceivedContent::Packets(100) },
        );
        peer.address()
    };
    let mut at = 1_000;
    for avoided in [2_000, 4_000, 8_000] {
        assert_eq!(says(at, bench.direct[0]), Some(bench.direct[0]));
        at += 5_100;
        assert_eq!(says(at, bench.relay), Some(bench.relay), "lost");
        let lost = peer.lost_path().unwrap();
        assert_eq!(
            (lost.address, lost.at, lost.reason),
            (bench.direct[0], Millis(at), PathLossReason::Silence)
        );
        assert_eq!(lost.avoided_until, Millis(at + avoided));
        let end = at + avoided;
        while at < end - 1_000 {
            at += 1_000;
            says(at, bench.relay);
            assert_eq!(
                says(at, bench.direct[0]),
                Some(bench.relay),
                "avoided at {at}, until {end}"
            );
            peer.apply_proof(Millis(at), Proof::Path(bench.direct[0]));
            assert_eq!(peer.address(), Some(bench.relay));
        }
        at = end;
    }
    says(at, bench.direct[0]);
    at += 5_100;
    says(at, bench.relay);
    // Another path may be used at once, and the same one if the relay is not good either.
    assert_eq!(says(at + 10, bench.direct[1]), Some(bench.direct[1]));
    says(at + 5_200, bench.relay);
    assert_eq!(
        says(at + 12_000, bench.direct[1]),
        Some(bench.direct[1]),
        "nothing has come by the relay"
    );
}

#[test]
fn a_clock_that_is_set_back_costs_no_handshake_nor_does_a_restart_or_a_new_key() {
    let bench = Bench::new();
    let at = |seconds: u64, unix: u64| Now {
        instant: bench.start + Duration::from_secs(seconds),
        unix: Duration::from_secs(unix),
    };
    let initiation = |own: &Transport, now: Now| {
        own.request_handshake(own.peers.read().get(PeerIndex(0)).unwrap());
        let mut sent = Vec::new();
        own.begin_requested(now, &mut |_, message| sent = message.to_vec());
        sent
    };
    let is_answered = |now: Now, message: &[u8]| {
        let mut answered = false;
        let done = bench.theirs.receive_handshake(
            now,
            Incoming { from: bench.direct[0], message },
            &mut |_, _| answered = true,
        );
        done.is_ok() && answered
    };
    // Far ahead, mended, and eighteen hours back.
    for (seconds, unix) in [(1, NOW), (2, NOW + 400_000_000), (3, NOW), (4, NOW - 64_800)] {
        let now = at(seconds, unix);
        bench.peer().handshake.lock().attempt = None;
        assert!(is_answered(now, &initiation(&bench.ours, now)), "at {unix}");
    }
    // After a restart it is what is on disk that counts.
    let secret = SecretKey::from_bytes([1; 32]);
    let again = bench.restarted(secret);
    let now = at(5, NOW);
    assert!(!is_answered(now, &initiation(&again, now)), "without that the peer refuses");
    again.peers.read().get(PeerIndex(0)).unwrap().handshake.lock().attempt = None;
    again.timestamps.set_floor(bench.ours.timestamps.newest() + 600);
    let now = at(6, NOW);
    assert!(is_answered(now, &initiation(&again, now)));
    // A node that has lost it gets another key, and begins anew with it.
    let other = SecretKey::from_bytes([3; 32]);
    bench.theirs.put_node(bench.start, PeerIndex(0), other.public(), vec![]);
    let anew = bench.restarted(other);
    let now = at(7, NOW);
    assert!(is_answered(now, &initiation(&anew, now)));
}
