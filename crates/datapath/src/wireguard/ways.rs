//! What probes have to find out about a peer: which other ways are good while its packets are
//! relayed, and how long a packet may be on the way that it has.

use super::Millis;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// While packets to a peer are relayed, all other ways are tried this often: at first, and at the
/// most seldom, in milliseconds as all that follow.
const PAUSE: u64 = 250;
const PAUSE_SELDOM: u64 = 30_000;
/// How often probes of a length are sent before they count as lost.
const TRIES: u8 = 3;
/// The time between them.
const BETWEEN: u64 = 200;
/// After how long the length that passes is found out anew.
const LENGTHS_LAST: u64 = 600_000;
/// The shortest packet that is tried, in bytes: with the headers around it, it fits 1,200 bytes,
/// below which QUIC does not work either (RFC 9000 §14).
pub(super) const SHORTEST: u16 = 1120;
/// Outer paths of these MTUs are common; what fits them is tried, too, beside even steps: 1,280
/// bytes (IPv6's least) by IPv6 and by IPv4, 1,400 and 1,492 by IPv4.
const COMMON: [u16; 4] = [1200, 1220, 1340, 1420];
/// The most pings that are remembered.
const MOST_PINGS: usize = 32;
/// The most probes whose answers are awaited.
const MOST_ASKED: usize = 64;

/// A probe that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub number: u32,
    pub place: SocketAddr,
    /// Length of its packet, in bytes; `None`: as short as can be.
    pub length: Option<u16>,
}

/// What an answer proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// That this way is good.
    Way(SocketAddr),
    /// That packets of this length pass.
    Length(u16),
}

/// The probes of a peer.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    asked: VecDeque<Ask>,
    number: u32,
    /// When other ways are tried next, and after how long then.
    next: Option<(Millis, u64)>,
    lengths: Option<Lengths>,
    pings: VecDeque<Ping>,
}

/// A probe that somebody has asked for, to learn how long its answer takes.
#[derive(Debug, Clone, Copy)]
struct Ping {
    number: u32,
    sent: Instant,
    took: Option<Duration>,
}

/// How long a packet may be on a way.
#[derive(Debug)]
struct Lengths {
    place: SocketAddr,
    longest: u16,
    /// Those that are tried, the longest first.
    tried: Vec<u16>,
    tries: u8,
    next: Millis,
    best: u16,
}

impl Ways {
    /// The ways that are to be tried now, while the peer is relayed to.
    pub fn others(&mut self, now: Millis, places: impl Iterator<Item = SocketAddr>) -> Vec<Ask> {
        let (at, pause) = self.next.unwrap_or((now, PAUSE));
        if now < at {
            return vec![];
        }
        self.next = Some((Millis(now.0 + pause), (pause * 2).min(PAUSE_SELDOM)));
        places.map(|place| self.ask(place, None)).collect()
    }

    /// The peer is not relayed to: when it is again, all ways are tried at once.
    pub fn rest(&mut self) {
        self.next = None;
    }

    /// The probes that are to find out how long a packet to `place` may be, up to `longest` bytes.
    /// What has been found out is the second value, once it has: zero, if the peer answers no
    /// probe.
    pub fn lengths(
        &mut self,
        now: Millis,
        place: SocketAddr,
        longest: u16,
    ) -> (Vec<Ask>, Option<u16>) {
        let known =
            self.lengths.as_ref().is_some_and(|own| (own.place, own.longest) == (place, longest));
        if !known {
            self.lengths = Some(Lengths {
                place,
                longest,
                tried: vec![longest],
                tries: 0,
                next: now,
                best: 0,
            });
        }
        let Some(own) = self.lengths.as_mut().filter(|own| now >= own.next) else {
            return (vec![], None);
        };
        if own.tries >= TRIES && own.best == 0 && own.tried.len() == 1 {
            (own.tried, own.tries) = (steps(longest), 0);
        }
        if own.best == own.tried[0] || own.tries >= TRIES {
            let found = own.best;
            (own.tried, own.tries, own.best) = (vec![longest], 0, 0);
            own.next = Millis(now.0 + LENGTHS_LAST);
            return (vec![], Some(found));
        }
        own.tries += 1;
        own.next = Millis(now.0 + BETWEEN);
        let wanted: Vec<u16> =
            own.tried.iter().copied().filter(|length| *length > own.best).collect();
        (wanted.into_iter().map(|length| self.ask(place, Some(length))).collect(), None)
    }

    fn ask(&mut self, place: SocketAddr, length: Option<u16>) -> Ask {
        self.number = self.number.wrapping_add(1);
        let ask = Ask { number: self.number, place, length };
        if self.asked.len() >= MOST_ASKED {
            self.asked.pop_front();
        }
        self.asked.push_back(ask);
        ask
    }

    /// The number of a ping that is sent now.
    pub fn ping(&mut self, now: Instant) -> u32 {
        self.number = self.number.wrapping_add(1);
        if self.pings.len() >= MOST_PINGS {
            self.pings.pop_front();
        }
        self.pings.push_back(Ping { number: self.number, sent: now, took: None });
        self.number
    }

    /// Notes that an answer has come, if it is that of a ping.
    pub fn note_pong(&mut self, now: Instant, number: u32) {
        let awaited = |ping: &&mut Ping| ping.number == number && ping.took.is_none();
        if let Some(ping) = self.pings.iter_mut().find(awaited) {
            ping.took = Some(now.saturating_duration_since(ping.sent));
        }
    }

    /// How long the answer to a ping took, once it is there.
    pub fn pong(&self, number: u32) -> Option<Duration> {
        self.pings.iter().find(|ping| ping.number == number)?.took
    }

    /// Whether no ping of late was answered, though there was time.
    pub fn pings_are_lost(&self, now: Instant, patience: Duration) -> bool {
        let last = self.pings.back();
        last.is_some_and(|ping| {
            ping.took.is_none() && now.saturating_duration_since(ping.sent) > patience
        })
    }

    /// Takes an answer: what it proves. Each is taken once.
    pub fn answered(&mut self, number: u32) -> Option<Proof> {
        let at = self.asked.iter().position(|ask| ask.number == number)?;
        let ask = self.asked.remove(at)?;
        let Some(length) = ask.length else { return Some(Proof::Way(ask.place)) };
        let lengths = self.lengths.as_mut().filter(|own| own.place == ask.place)?;
        lengths.best = lengths.best.max(length);
        Some(Proof::Length(length))
    }
}

/// The lengths that are tried where the longest does not pass.
fn steps(longest: u16) -> Vec<u16> {
    let step = |length: &u16| Some(length - if *length > 2000 { length / 6 } else { length / 40 });
    let mut steps: Vec<u16> = std::iter::successors(Some(longest), step)
        .take_while(|length| *length > SHORTEST)
        .collect();
    steps.extend(COMMON.into_iter().filter(|length| *length < longest));
    steps.push(SHORTEST.min(longest));
    steps.sort_unstable_by(|a, b| b.cmp(a));
    steps.dedup();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What is found out on a path that passes packets of up to `passes` bytes.
    fn find(
        ways: &mut Ways,
        begin: u64,
        place: SocketAddr,
        longest: u16,
        passes: u16,
    ) -> (u16, u64, usize) {
        let mut sent = 0;
        for at in 0.. {
            let now = begin + at * 250;
            let (asks, found) = ways.lengths(Millis(now), place, longest);
            if let Some(found) = found {
                return (found, now - begin, sent);
            }
            sent += asks.len();
            for ask in asks {
                if ask.length.unwrap() <= passes {
                    assert!(matches!(ways.answered(ask.number), Some(Proof::Length(_))));
                }
            }
        }
        unreachable!()
    }

    #[test]
    fn the_length_that_passes_is_found_out() {
        let (mut ways, a, b) = (Ways::default(), place("192.0.2.1:1"), place("192.0.2.2:1"));
        assert_eq!(
            find(&mut ways, 0, a, 1420, 1420),
            (1420, 250, 1),
            "one probe, where all is well"
        );
        assert!(ways.lengths(Millis(5_000), a, 1420).0.is_empty(), "it is known now");
        let (found, after, sent) = find(&mut ways, 6_000, b, 1420, 1225);
        assert!((1220..=1225).contains(&found), "{found}");
        assert!(after <= 1750 && sent < 50, "{after} {sent}");
        assert_eq!(find(&mut ways, 20_000, a, 1420, 0).0, 0, "nobody answers");
        let jumbo = find(&mut ways, 30_000, b, 8920, 1425).0;
        assert!((1380..=1425).contains(&jumbo), "{jumbo}");
        assert_eq!(
            find(&mut ways, 30_000 + LENGTHS_LAST + 5_000, b, 8920, 8920).0,
            8920,
            "it may have changed"
        );
    }

    #[test]
    fn a_ping_is_answered_once_and_few_are_remembered() {
        let (mut ways, start) = (Ways::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let first = ways.ping(start);
        assert_eq!(ways.answered(first), None, "it proves nothing of a way");
        assert!(!ways.pings_are_lost(at(99), Duration::from_millis(100)));
        assert!(ways.pings_are_lost(at(101), Duration::from_millis(100)));
        ways.note_pong(at(7), first + 1);
        assert_eq!(ways.pong(first), None);
        ways.note_pong(at(7), first);
        ways.note_pong(at(9), first);
        assert_eq!(ways.pong(first), Some(Duration::from_millis(7)));
        assert!(!ways.pings_are_lost(at(1000), Duration::from_millis(100)));
        let numbers: Vec<u32> = (0..100).map(|_| ways.ping(start)).collect();
        assert!(ways.pings.len() <= MOST_PINGS && !numbers.contains(&first));
    }

    #[test]
    fn other_ways_are_tried_less_and_less_often_and_each_answer_counts_once() {
        let (mut ways, a) = (Ways::default(), place("192.0.2.1:1"));
        let mut times = Vec::new();
        for at in (0..10_000).step_by(50) {
            let asks = ways.others(Millis(at), [a].into_iter());
            if let Some(ask) = asks.first() {
                assert_eq!(ways.answered(ask.number), Some(Proof::Way(a)));
                assert_eq!(ways.answered(ask.number), None);
                times.push(at);
            }
        }
        assert_eq!(times, [0, 250, 750, 1750, 3750, 7750]);
        ways.rest();
        assert_eq!(ways.others(Millis(10_000), [a].into_iter()).len(), 1);
        for at in 0..1000 {
            ways.others(Millis(100_000 * at), [a].into_iter());
        }
        assert!(ways.asked.len() <= MOST_ASKED);
    }
}
