//! Against another implementation, boringtun's: every message, in both directions.

use super::{
    outbound::SendMessage,
    peer::{Peer, ReceivedContent, ReceivedRun, SendPath},
    state::{Now, Transport},
};
use crate::index::PeerIndex;
use boringtun::noise::{Tunn, TunnResult, rate_limiter::RateLimiter};
use meshward_wireguard::{
    SecretKey,
    load_gate::Incoming,
    message::{
        COOKIE_REPLY_LENGTH, INITIATION_LENGTH, OVERHEAD, RECEIVER_INDEX, RESPONSE_LENGTH, read_u32,
    },
    timers::INITIATION_INTERVAL,
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

const PACKET: [u8; 28] =
    [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8, 0, 0];

struct Bench {
    ours: Transport,
    theirs: Tunn,
    now: Now,
    from: SocketAddr,
}

impl Bench {
    /// `limit`: the number of handshakes a second that theirs accepts without a cookie.
    fn new(limit: u64) -> Self {
        let (own, other) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        let start = Instant::now();
        let ours = Transport::new(own.clone(), start);
        let from = "192.0.2.2:51820".parse().unwrap();
        ours.put_node(start, PeerIndex(7), other.public(), vec![from]);
        let own_public = x25519_dalek::PublicKey::from(own.public().0);
        let limiter =
            Arc::new(RateLimiter::new(&x25519_dalek::PublicKey::from(other.public().0), limit));
        let theirs = Tunn::new(
            x25519_dalek::StaticSecret::from([2; 32]),
            own_public,
            None,
            None,
            3,
            Some(limiter),
        );
        let now = Now { instant: start, unix: Duration::from_secs(1_700_000_000) };
        Self { ours, theirs, now, from }
    }

    fn peer(&self) -> Arc<Peer> {
        self.ours.peers.read().get(PeerIndex(7)).unwrap().clone()
    }

    fn later(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix += time;
    }

    /// Returns the message that ours sends.
    fn sent(&self, act: impl FnOnce(&Transport, SendMessage)) -> Vec<u8> {
        let mut sent = Vec::new();
        act(&self.ours, &mut |_, message| sent = message.to_vec());
        sent
    }

    fn initiate(&self) -> Vec<u8> {
        self.ours.request_handshake(&self.peer());
        self.sent(|ours, send| ours.begin_requested(self.now, send))
    }

    /// Hands a message to ours: its answer.
    fn hand_to_ours(&self, message: &[u8]) -> Vec<u8> {
        self.sent(|ours, send| {
            let now = ours.millis(self.now.instant);
            let incoming = Incoming { from: self.from, message };
            let passed = ours.pass_load_gate(&ours.peers.read(), now, incoming, send);
            if passed.is_ok() {
                drop(ours.receive_handshake(self.now, incoming, send));
            }
        })
    }

    /// Hands a message to theirs: its answer.
    fn hand_to_theirs(&mut self, message: &[u8]) -> Vec<u8> {
        let mut room = [0; 200];
        match self.theirs.decapsulate(Some(self.from.ip()), message, &mut room) {
            TunnResult::WriteToNetwork(answer) => answer.to_vec(),
            TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
            TunnResult::Done => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn seal_ours(&self) -> Vec<u8> {
        let SendPath { session, .. } =
            self.peer().send_path(self.ours.millis(self.now.instant)).unwrap();
        let mut datagram = [&[0; 16][..], &PACKET, &[0; 16]].concat();
        session.seal(session.reserve(1).unwrap(), &mut datagram);
        datagram
    }

    fn open_ours(&self, mut datagram: Vec<u8>) -> Vec<u8> {
        let (peer, now) = (self.peer(), self.ours.millis(self.now.instant));
        let session = peer.receive_session(now, read_u32(&datagram, RECEIVER_INDEX)).unwrap();
        let text = session.open(&mut session.received(), &mut datagram).unwrap();
        peer.note_received(
            now,
            &ReceivedRun {
                session: &session,
                from: self.from,
                content: ReceivedContent::Packets(text.len() as u64),
            },
        );
        datagram[text].to_vec()
    }

    fn seal_theirs(&mut self) -> Vec<u8> {
        let mut room = [0; 200];
        match self.theirs.encapsulate(&PACKET, &mut room) {
            TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn data_goes_both_ways(&mut self) {
        let datagram = self.seal_ours();
        assert_eq!(self.hand_to_theirs(&datagram), PACKET);
        let datagram = self.seal_theirs();
        assert_eq!(datagram[0], 4);
        assert_eq!(self.open_ours(datagram), PACKET);
    }
}

#[test]
fn we_begin_and_they_answer() {
    let mut bench = Bench::new(1000);
    let initiation = bench.initiate();
    let response = bench.hand_to_theirs(&initiation);
    assert_eq!((response[0], response.len()), (2, RESPONSE_LENGTH));
    let forged = [&response[..20], &[0; 20], &response[40..]].concat();
    assert!(bench.hand_to_ours(&forged).is_empty());
    bench.hand_to_ours(&response);
    bench.data_goes_both_ways();
}

#[test]
fn they_begin_and_we_answer() {
    let mut bench = Bench::new(1000);
    let initiation = bench.seal_theirs();
    assert_eq!((initiation[0], initiation.len()), (1, INITIATION_LENGTH));
    let response = bench.hand_to_ours(&initiation);
    assert!(
        bench.peer().send_path(bench.ours.millis(bench.now.instant)).is_none(),
        "not before they have used it"
    );
    assert!(bench.hand_to_ours(&initiation).is_empty(), "an initiation is accepted once");
    // Their answer to the response is a keepalive, which confirms the session.
    let keepalive = bench.hand_to_theirs(&response);
    assert!(bench.open_ours(keepalive).is_empty());
    bench.data_goes_both_ways();
}

#[test]
fn we_show_their_cookie_when_they_are_under_load() {
    let mut bench = Bench::new(0);
    let initiation = bench.initiate();
    let reply = bench.hand_to_theirs(&initiation);
    assert_eq!((reply[0], reply.len()), (3, COOKIE_REPLY_LENGTH));
    bench.hand_to_ours(&reply);
    bench.later(Duration::from_secs(6));
    let again = bench.sent(|ours, send| assert_eq!(ours.tick(bench.now, 0, send), 0));
    let response = bench.hand_to_theirs(&again);
    assert_eq!(response[0], 2, "the cookie was right");
    bench.hand_to_ours(&response);
    bench.data_goes_both_ways();
}

#[test]
fn they_show_our_cookie_when_we_are_under_load() {
    let mut bench = Bench::new(1000);
    let initiation = bench.seal_theirs();
    bench.ours.gate.begin_load(bench.ours.millis(bench.now.instant));
    let reply = bench.hand_to_ours(&initiation);
    assert_eq!((reply[0], reply.len()), (3, COOKIE_REPLY_LENGTH));
    bench.hand_to_theirs(&reply);
    let mut room = [0; 200];
    let again = match bench.theirs.format_handshake_initiation(&mut room, true) {
        TunnResult::WriteToNetwork(initiation) => initiation.to_vec(),
        other => panic!("{other:?}"),
    };
    let response = bench.hand_to_ours(&again);
    assert_eq!((response[0], response.len()), (2, RESPONSE_LENGTH), "the cookie was right");
    let keepalive = bench.hand_to_theirs(&response);
    assert!(bench.open_ours(keepalive).is_empty());
    bench.data_goes_both_ways();
}

#[test]
fn our_keepalive_is_one_to_them() {
    let mut bench = Bench::new(1000);
    let initiation = bench.initiate();
    let response = bench.hand_to_theirs(&initiation);
    bench.hand_to_ours(&response);
    let now = bench.ours.millis(bench.now.instant);
    let keepalive = bench.sent(|_, send| bench.peer().send_keepalive(now, send));
    assert_eq!(keepalive.len(), OVERHEAD);
    assert!(bench.hand_to_theirs(&keepalive).is_empty());
}

#[test]
fn initiations_of_one_peer_are_answered_one_after_the_other() {
    let mut bench = Bench::new(10);
    let initiate = |bench: &mut Bench| {
        let mut room = [0; 200];
        match bench.theirs.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    let first = initiate(&mut bench);
    assert_eq!(bench.hand_to_ours(&first).len(), RESPONSE_LENGTH);
    let second = initiate(&mut bench);
    assert!(bench.hand_to_ours(&second).is_empty(), "at once after the first");
    bench.later(INITIATION_INTERVAL);
    assert_eq!(bench.hand_to_ours(&second).len(), RESPONSE_LENGTH, "it was not used up");
}
