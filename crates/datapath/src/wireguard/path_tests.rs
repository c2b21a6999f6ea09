//! Which ways to a peer are tried, and which is kept to.

use super::*;
use meshward_types::relay::{RelayId, RelayNumber};

struct Ways {
    start: Instant,
    ours: Wireguard,
    theirs: Wireguard,
    direct: [SocketAddr; 2],
    relay: SocketAddr,
}

impl Ways {
    fn new() -> Self {
        let start = Instant::now();
        let direct = ["192.0.2.1:1", "192.168.1.2:1"].map(|text| text.parse().unwrap());
        let relay = RelayId::of(&"rack".parse().unwrap()).address(RelayNumber(1));
        let secrets = [SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32])];
        let keys = [secrets[0].public(), secrets[1].public()];
        let [ours, theirs] = secrets.map(|secret| Wireguard::new(secret, start));
        ours.put(start, 0, keys[1], vec![direct[0], direct[1], relay]);
        theirs.put(start, 0, keys[0], vec![]);
        Self { start, ours, theirs, direct, relay }
    }

    fn at(&self, milliseconds: u64) -> Now {
        let passed = Duration::from_millis(milliseconds);
        Now { instant: self.start + passed, unix: Duration::from_secs(1_700_000_000) + passed }
    }

    fn peer(&self) -> Arc<Peer> {
        self.ours.peers.read().get(0).unwrap().clone()
    }

    /// Begins a handshake: what is sent, and where to.
    fn begin(&self, at: u64) -> Vec<(SocketAddr, Vec<u8>)> {
        self.ours.want(&self.peer());
        let mut sent = Vec::new();
        self.ours.begin_wanted(self.at(at), &mut |to, message| sent.push((to, message.to_vec())));
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
        self.ours.receive(self.at(at + 2), back, &answer, &mut |_, _| {}).unwrap();
        let theirs = self.theirs.peers.read().get(0).unwrap().clone();
        let next = theirs.receiving(
            self.theirs.millis(self.at(at + 3).instant),
            u32::from(theirs.handshake.lock().begun),
        );
        theirs.note_received(
            self.theirs.millis(self.at(at + 3).instant),
            &next.unwrap(),
            from,
            Some(0),
        );
    }

    /// Their answer to an initiation.
    fn answer(&self, at: u64, from: SocketAddr, initiation: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut send = |_: SocketAddr, message: &[u8]| answer = message.to_vec();
        self.theirs.receive(self.at(at), from, initiation, &mut send).unwrap();
        answer
    }

    /// Sends data that nobody answers, and gives the initiations that follow.
    fn begin_after_silence(&self, at: u64) -> Vec<(SocketAddr, Vec<u8>)> {
        let peer = self.peer();
        let since = self.ours.millis(self.at(at - 600).instant);
        peer.note_sent(since, &peer.sending(since).unwrap().session, 100);
        self.tick(at)
    }

    fn everywhere(&self) -> Vec<SocketAddr> {
        vec![self.direct[0], self.direct[1], self.relay]
    }
}

fn places(sent: &[(SocketAddr, Vec<u8>)]) -> Vec<SocketAddr> {
    sent.iter().map(|(to, _)| *to).collect()
}

#[test]
fn a_first_initiation_goes_everywhere_with_copies_and_the_peer_is_called() {
    let ways = Ways::new();
    let first = ways.begin(0);
    assert_eq!(places(&first), ways.everywhere());
    assert_eq!(ways.ours.take_hole_punch_requests(), [0]);
    assert!(ways.tick(100).is_empty());
    let copies = ways.tick(250);
    assert_eq!(places(&copies), ways.everywhere());
    assert_eq!(copies[0].1, first[0].1, "it is the same message");

    // Whichever comes first is answered; a copy gets the same answer, by its own way and once.
    let mut answers = Vec::new();
    let mut answer = |from: SocketAddr| {
        ways.theirs.receive(ways.at(260), from, &first[0].1, &mut |to, message| {
            answers.push((to, message.to_vec()));
        })
    };
    assert!(answer(ways.relay).unwrap().is_none());
    assert!(answer(ways.direct[0]).unwrap().is_none());
    assert!(answer(ways.direct[0]).unwrap().is_none());
    assert_eq!(places(&answers), [ways.relay, ways.direct[0]]);
    assert_eq!(answers[0].1, answers[1].1);
    let response = &answers[0].1;
    assert!(
        ways.ours.receive(ways.at(270), ways.relay, response, &mut |_, _| {}).unwrap().is_some()
    );
    assert_eq!(ways.peer().address(), Some(ways.relay));

    // While it is relayed, the other ways are tried, less and less often.
    let tried: Vec<u64> =
        (2..40).map(|at| at * 250).filter(|at| !ways.tick(*at).is_empty()).collect();
    assert_eq!(tried, [500, 750, 1250, 2250, 4250, 8250]);
    // A summons from the peer has a handshake begin from everywhere, and calls nobody back.
    ways.ours.take_hole_punch_requests();
    assert!(ways.ours.answer_hole_punch(0));
    let mut sent = Vec::new();
    ways.ours.begin_wanted(ways.at(10_000), &mut |to, message| sent.push((to, message.to_vec())));
    assert_eq!(sent.len(), 3);
    assert!(ways.ours.take_hole_punch_requests().is_empty());
}

#[test]
fn a_way_that_is_good_is_not_left_for_the_relay() {
    let ways = Ways::new();
    ways.meet(0, ways.direct[0], ways.direct[0]);
    let peer = ways.peer();
    let session = peer.sending(Millis(10)).unwrap().session;
    let says = |at: u64, from: SocketAddr| {
        peer.note_received(Millis(at), &session, from, Some(100));
        peer.address()
    };
    assert_eq!(says(1_100, ways.direct[0]), Some(ways.direct[0]));
    assert_eq!(says(6_000, ways.relay), Some(ways.direct[0]));
    assert_eq!(says(6_050, ways.direct[1]), Some(ways.direct[1]), "a peer may move");
    assert_eq!(
        says(11_060, ways.relay),
        Some(ways.relay),
        "nothing has come directly for five seconds"
    );
}

#[test]
fn a_way_in_one_direction_is_not_used() {
    // What they send directly comes; what we send directly does not.
    let ways = Ways::new();
    ways.meet(0, ways.relay, ways.relay);
    let (ours, theirs) = (ways.peer(), ways.theirs.peers.read().get(0).unwrap().clone());
    assert_eq!((ours.address(), theirs.address()), (Some(ways.relay), Some(ways.relay)));
    let at = |at: u64| ways.ours.millis(ways.at(at).instant);

    // A message that is more than a probe shows that the peer has proved the way.
    let session = ours.sending(at(20)).unwrap().session;
    ours.note_received(at(30), &session, ways.direct[0], None);
    assert_eq!(ours.address(), Some(ways.relay), "probes that come prove nothing");
    let asked = ways.tick(300);
    assert_eq!(places(&asked), ways.direct);
    assert_eq!(ours.address(), Some(ways.relay));
    let answered = ours.handshake.lock().ways.answered(1).unwrap();
    ours.prove(at(320), answered);
    assert_eq!(ours.address(), Some(ways.direct[0]), "an answer does");
    assert_eq!(places(&ways.tick(500)), [ways.direct[0]], "and the peer is told by it");

    // The way goes bad for what we send: a handshake by the relay moves both, though theirs still
    // comes directly.
    let begun = ways.begin_after_silence(2_000);
    assert_eq!(places(&begun), ways.everywhere());
    ours.note_received(at(1_990), &session, ways.direct[0], Some(1));
    let answer = ways.answer(2_010, ways.relay, &begun[0].1);
    ways.ours.receive(ways.at(2_020), ways.relay, &answer, &mut |_, _| {}).unwrap();
    assert_eq!(ours.address(), Some(ways.relay));
    // The first message of the new session tells the other side.
    let first = theirs.handshake.lock().begun;
    let next = theirs.receiving(at(2_030), u32::from(first)).unwrap();
    theirs.note_received(at(2_025), &next, ways.direct[0], Some(1));
    assert_eq!(theirs.address(), Some(ways.direct[0]));
    assert_eq!(theirs.sending(at(2_030)).unwrap().session.local_index, u32::from(first));
}

#[test]
fn a_direct_way_that_was_lost_is_left_alone_longer_each_time_while_the_relay_is_good() {
    let ways = Ways::new();
    ways.meet(0, ways.direct[0], ways.direct[0]);
    let peer = ways.peer();
    let session = peer.sending(Millis(10)).unwrap().session;
    let says = |at: u64, from: SocketAddr| {
        peer.note_received(Millis(at), &session, from, Some(100));
        peer.address()
    };
    let mut at = 1_000;
    for left_alone in [2_000, 4_000, 8_000] {
        assert_eq!(says(at, ways.direct[0]), Some(ways.direct[0]));
        at += 5_100;
        assert_eq!(says(at, ways.relay), Some(ways.relay), "lost");
        let lost = peer.lost().unwrap();
        assert_eq!(
            (lost.address, lost.at, lost.why),
            (ways.direct[0], Millis(at), PathLossReason::Silence)
        );
        assert_eq!(lost.until, Millis(at + left_alone));
        let end = at + left_alone;
        while at < end - 1_000 {
            at += 1_000;
            says(at, ways.relay);
            assert_eq!(
                says(at, ways.direct[0]),
                Some(ways.relay),
                "left alone at {at}, until {end}"
            );
            peer.prove(Millis(at), ways::Proof::Way(ways.direct[0]));
            assert_eq!(peer.address(), Some(ways.relay));
        }
        at = end;
    }
    says(at, ways.direct[0]);
    at += 5_100;
    says(at, ways.relay);
    // Another way may be taken at once, and the same if the relay is not good either.
    assert_eq!(says(at + 10, ways.direct[1]), Some(ways.direct[1]));
    says(at + 5_200, ways.relay);
    assert_eq!(
        says(at + 12_000, ways.direct[1]),
        Some(ways.direct[1]),
        "nothing has come by the relay"
    );
}

#[test]
fn a_clock_that_is_set_back_costs_no_handshake_nor_does_a_restart_or_a_new_key() {
    let ways = Ways::new();
    let at = |seconds: u64, unix: u64| Now {
        instant: ways.start + Duration::from_secs(seconds),
        unix: Duration::from_secs(unix),
    };
    let initiation = |own: &Wireguard, now: Now| {
        own.want(own.peers.read().get(0).unwrap());
        let mut sent = Vec::new();
        own.begin_wanted(now, &mut |_, message| sent = message.to_vec());
        sent
    };
    let is_answered = |now: Now, message: &[u8]| {
        let mut answered = false;
        let done = ways.theirs.receive(now, ways.direct[0], message, &mut |_, _| answered = true);
        done.is_ok() && answered
    };
    const NOW: u64 = 1_700_000_000;
    // Far ahead, mended, and eighteen hours back.
    for (seconds, unix) in [(1, NOW), (2, NOW + 400_000_000), (3, NOW), (4, NOW - 64_800)] {
        let now = at(seconds, unix);
        ways.peer().handshake.lock().attempt = None;
        assert!(is_answered(now, &initiation(&ways.ours, now)), "at {unix}");
    }
    // After a restart it is what is on disk that counts.
    let secret = SecretKey::from_bytes([1; 32]);
    let again = Wireguard::new(secret, ways.start);
    again.put(ways.start, 0, SecretKey::from_bytes([2; 32]).public(), vec![ways.direct[0]]);
    let now = at(5, NOW);
    assert!(!is_answered(now, &initiation(&again, now)), "without that the peer refuses");
    again.peers.read().get(0).unwrap().handshake.lock().attempt = None;
    again.stamps.set_floor(ways.ours.stamps.newest() + 600);
    let now = at(6, NOW);
    assert!(is_answered(now, &initiation(&again, now)));
    // Who has lost it gets another key, and with it begins anew.
    let other = SecretKey::from_bytes([3; 32]);
    ways.theirs.put(ways.start, 0, other.public(), vec![]);
    let anew = Wireguard::new(other, ways.start);
    anew.put(ways.start, 0, SecretKey::from_bytes([2; 32]).public(), vec![ways.direct[0]]);
    let now = at(7, NOW);
    assert!(is_answered(now, &initiation(&anew, now)));
}
