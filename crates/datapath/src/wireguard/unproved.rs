//! How much is sent to addresses that have not answered. Where a peer may be, the peer says, so it
//! can name anybody: what is sent there is bounded, or every member would be a reflector (RFC 9000
//! §21.5.3 has the same worry).

use super::Millis;
use std::net::SocketAddr;

/// So many messages go to an address at first: those of four handshakes, with their copies ...
const FIRST: u32 = 24;
/// ... and then one after each of these pauses, in milliseconds, of which each is twice as long as
/// the one before.
const PAUSE: u64 = 5_000;
const LONGEST_PAUSE: u64 = 300_000;
/// So many more go to each when the peer has called, which it may do this often.
const CALLED: u32 = 6;
const BETWEEN_CALLS: u64 = 5_000;
/// The most addresses of a peer that are tried; what is known of others is forgotten, the oldest
/// first.
const MOST_PLACES: usize = 24;

/// So much at once, and so much more each second.
#[derive(Debug)]
pub(super) struct Bucket {
    most: u64,
    each_second: u64,
    /// In thousandths of a message.
    left: u64,
    at: Millis,
}

impl Bucket {
    /// For all peers of an endpoint together.
    pub fn of_endpoint() -> Self {
        Self::new(4_000, 1_000)
    }

    pub fn new(most: u64, each_second: u64) -> Self {
        Self { most, each_second, left: most * 1000, at: Millis(0) }
    }

    /// Takes one, if there is one left.
    pub fn take_one(&mut self, now: Millis) -> bool {
        let has = self.has_one(now);
        if has {
            self.take();
        }
        has
    }

    /// Whether there is one left.
    pub fn has_one(&mut self, now: Millis) -> bool {
        self.refill(now);
        self.has()
    }

    fn refill(&mut self, now: Millis) {
        let more = now.since(self.at).saturating_mul(self.each_second);
        self.left = self.left.saturating_add(more).min(self.most * 1000);
        self.at = now;
    }

    fn has(&self) -> bool {
        self.left >= 1000
    }

    fn take(&mut self) {
        self.left -= 1000;
    }
}

#[derive(Debug)]
struct Place {
    address: SocketAddr,
    /// How many messages may go there at once.
    left: u32,
    pause: u64,
    next: Millis,
}

/// What was sent to a peer's addresses that have not answered.
#[derive(Debug)]
pub(super) struct Unproved {
    places: Vec<Place>,
    all: Bucket,
    called: Option<Millis>,
}

impl Default for Unproved {
    fn default() -> Self {
        Self { places: Vec::new(), all: Bucket::new(300, 30), called: None }
    }
}

impl Unproved {
    /// Whether a message may go to an address now; if so, it counts. `all`: that of the endpoint.
    pub fn may_send(&mut self, now: Millis, address: SocketAddr, all: &mut Bucket) -> bool {
        self.all.refill(now);
        all.refill(now);
        if !self.all.has() || !all.has() {
            return false;
        }
        let place = self.place(address);
        if place.left > 0 {
            place.left -= 1;
        } else if now >= place.next {
            place.next = Millis(now.0.saturating_add(place.pause));
            place.pause = (place.pause * 2).min(LONGEST_PAUSE);
        } else {
            return false;
        }
        self.all.take();
        all.take();
        true
    }

    /// Notes that an address has answered.
    pub fn note_answer(&mut self, address: SocketAddr) {
        self.places.retain(|place| place.address != address);
    }

    /// Notes that the peer has called: a NAT on its side is open now.
    pub fn note_call(&mut self, now: Millis) {
        if self.called.is_some_and(|last| now.since(last) < BETWEEN_CALLS) {
            return;
        }
        self.called = Some(now);
        self.places.iter_mut().for_each(|place| place.left = place.left.max(CALLED));
    }

    fn place(&mut self, address: SocketAddr) -> &mut Place {
        let at =
            self.places.iter().position(|place| place.address == address).unwrap_or_else(|| {
                if self.places.len() >= MOST_PLACES {
                    self.places.remove(0);
                }
                self.places.push(Place { address, left: FIRST, pause: PAUSE, next: Millis(0) });
                self.places.len() - 1
            });
        &mut self.places[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    #[test]
    fn an_address_that_does_not_answer_gets_ever_less() {
        let (mut own, mut all) = (Unproved::default(), Bucket::of_endpoint());
        let sent = |own: &mut Unproved, all: &mut Bucket, from: u64, to: u64| {
            (from..to).step_by(100).filter(|at| own.may_send(Millis(*at), place(1), all)).count()
                as u32
        };
        // Two minutes of somebody who wants to send all the time, then a day.
        let first = sent(&mut own, &mut all, 0, 120_000);
        assert!((FIRST..FIRST + 6).contains(&first), "{first}");
        let day = sent(&mut own, &mut all, 120_000, 86_400_000);
        assert!(day <= 300, "{day}");
        own.note_answer(place(1));
        assert_eq!(
            sent(&mut own, &mut all, 86_400_000, 86_401_000),
            10,
            "who has answered is not doubted"
        );
    }

    #[test]
    fn a_peer_that_names_ever_new_addresses_or_calls_all_the_time_is_bounded_too() {
        let (mut own, mut all) = (Unproved::default(), Bucket::of_endpoint());
        let mut sent = 0;
        for at in (0..60_000).step_by(10) {
            own.note_call(Millis(at));
            sent += (0..50)
                .filter(|n| own.may_send(Millis(at), place((at % 60_000) as u16 + n), &mut all))
                .count();
        }
        assert!(sent <= 300 + 30 * 60, "{sent}");
    }

    #[test]
    fn all_peers_together_are_bounded() {
        let mut all = Bucket::of_endpoint();
        let mut peers: Vec<Unproved> = (0..10_000).map(|_| Unproved::default()).collect();
        let mut sent = 0;
        for at in [0, 1_000] {
            for own in &mut peers {
                sent += (0..5).filter(|n| own.may_send(Millis(at), place(*n), &mut all)).count();
            }
        }
        assert_eq!(sent, 4_000 + 1_000);
    }
}
