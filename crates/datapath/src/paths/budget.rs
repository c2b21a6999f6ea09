//! The budget of messages to addresses that are not validated. The addresses that a peer may have,
//! the peer names, so it can name anybody's: what is sent there is bounded, or every member of a
//! mesh would be a reflector (RFC 9000 §21.5.3 has the same concern).

use meshward_wireguard::{Millis, rate_limit::TokenBucket};
use std::{net::SocketAddr, time::Duration};

/// Messages that may go to an address at first: those of four handshakes, with their copies.
const FIRST_MESSAGES: u32 = 24;
/// Time between the messages after that; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// Messages that a hole-punch request of the peer allows to each of its addresses, and how often.
const HOLE_PUNCH_MESSAGES: u32 = 6;
const HOLE_PUNCH_INTERVAL: Duration = Duration::from_secs(5);
/// Addresses of one peer whose budgets are remembered at the most; the oldest is forgotten first.
const MAX_ADDRESSES: usize = 24;
/// Messages to all addresses of one peer: at once, and in a second.
const PEER_BURST: u64 = 300;
const PEER_PER_SECOND: u64 = 30;
/// Messages to addresses of all peers of an endpoint: at once, and in a second.
const ENDPOINT_BURST: u64 = 4_000;
const ENDPOINT_PER_SECOND: u64 = 1_000;

/// Returns the budget that all peers of an endpoint share.
pub(crate) fn endpoint_budget() -> TokenBucket {
    TokenBucket::new(ENDPOINT_BURST, ENDPOINT_PER_SECOND)
}

#[derive(Debug)]
struct AddressBudget {
    address: SocketAddr,
    /// Messages that may be sent at once.
    left: u32,
    pause: Duration,
    next: Millis,
}

/// The budget of one peer.
#[derive(Debug)]
pub(crate) struct UnvalidatedBudget {
    addresses: Vec<AddressBudget>,
    all: TokenBucket,
    last_hole_punch: Option<Millis>,
}

impl Default for UnvalidatedBudget {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            all: TokenBucket::new(PEER_BURST, PEER_PER_SECOND),
            last_hole_punch: None,
        }
    }
}

impl UnvalidatedBudget {
    /// Spends a message to an address. Returns false if none may be sent now. `endpoint` is
    /// [`endpoint_budget`].
    pub(crate) fn spend(
        &mut self,
        now: Millis,
        address: SocketAddr,
        endpoint: &mut TokenBucket,
    ) -> bool {
        let all_have_tokens = self.all.has_token(now) & endpoint.has_token(now);
        if !all_have_tokens {
            return false;
        }
        let own = self.of_address(address);
        if own.left > 0 {
            own.left -= 1;
        } else if now >= own.next {
            own.next = now + own.pause;
            own.pause = (own.pause * 2).min(MAX_PAUSE);
        } else {
            return false;
        }
        self.all.try_take(now) & endpoint.try_take(now)
    }

    /// Lifts the limit of an address that has answered.
    pub(crate) fn validate(&mut self, address: SocketAddr) {
        self.addresses.retain(|own| own.address != address);
    }

    /// Allows some more messages to each address: the peer has sent a hole-punch request, so a NAT
    /// on its side is open now.
    pub(crate) fn allow_hole_punch(&mut self, now: Millis) {
        if self.last_hole_punch.is_some_and(|last| !now.has_passed(HOLE_PUNCH_INTERVAL, last)) {
            return;
        }
        self.last_hole_punch = Some(now);
        self.addresses.iter_mut().for_each(|own| own.left = own.left.max(HOLE_PUNCH_MESSAGES));
    }

    fn of_address(&mut self, address: SocketAddr) -> &mut AddressBudget {
        let known = self.addresses.iter().position(|own| own.address == address);
        let at = known.unwrap_or_else(|| {
            if self.addresses.len() >= MAX_ADDRESSES {
                self.addresses.remove(0);
            }
            let (left, pause) = (FIRST_MESSAGES, FIRST_PAUSE);
            self.addresses.push(AddressBudget { address, left, pause, next: Millis(0) });
            self.addresses.len() - 1
        });
        &mut self.addresses[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn an_address_that_does_not_answer_gets_ever_less() {
        let (mut own, mut all) = (UnvalidatedBudget::default(), endpoint_budget());
        let sent = |own: &mut UnvalidatedBudget, all: &mut TokenBucket, from: u64, to: u64| {
            (from..to).step_by(100).filter(|at| own.spend(Millis(*at), address(1), all)).count()
                as u32
        };
        // Two minutes of somebody who wants to send all the time, then a day.
        let first = sent(&mut own, &mut all, 0, 120_000);
        assert!((FIRST_MESSAGES..FIRST_MESSAGES + 6).contains(&first), "{first}");
        let day = sent(&mut own, &mut all, 120_000, 86_400_000);
        assert!(day <= 300, "{day}");
        own.validate(address(1));
        let then = sent(&mut own, &mut all, 86_400_000, 86_401_000);
        assert_eq!(then, 10, "an address that has answered is not limited");
    }

    #[test]
    fn a_peer_that_names_ever_new_addresses_or_requests_all_the_time_is_bounded_too() {
        let (mut own, mut all) = (UnvalidatedBudget::default(), endpoint_budget());
        let mut sent = 0;
        for at in (0..60_000).step_by(10) {
            own.allow_hole_punch(Millis(at));
            sent += (0..50)
                .filter(|n| own.spend(Millis(at), address((at % 60_000) as u16 + n), &mut all))
                .count();
        }
        assert!(sent <= 300 + 30 * 60, "{sent}");
    }

    #[test]
    fn all_peers_together_are_bounded() {
        let mut all = endpoint_budget();
        let mut peers: Vec<UnvalidatedBudget> =
            (0..10_000).map(|_| UnvalidatedBudget::default()).collect();
        let mut sent = 0;
        for at in [0, 1_000] {
            for own in &mut peers {
                sent += (0..5).filter(|n| own.spend(Millis(at), address(*n), &mut all)).count();
            }
        }
        assert_eq!(sent, 4_000 + 1_000);
    }
}
