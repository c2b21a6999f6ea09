//! Under which address others see the endpoint: asked of STUN servers from its own socket, which keeps what a NAT has made
//! of that address alive, too.

use meshward_model::stun::{self, Transaction};
use ring::digest::{SHA256, digest};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How often is asked once there was an answer. NATs forget what was silent for thirty seconds (RFC 4787 §4.3 wants two minutes
/// at the least, but many keep to less).
const REPEAT: Duration = Duration::from_secs(20);
/// How often before.
const RETRY: Duration = Duration::from_secs(1);

/// What is known.
#[derive(Default)]
pub(crate) struct Reflexive {
    servers: Vec<SocketAddr>,
    /// What transactions are made of, so that nobody can guess them.
    seed: [u8; 32],
    asked: u64,
    transaction: Transaction,
    next: Option<Instant>,
    answered: bool,
    address: Option<SocketAddr>,
}

impl Reflexive {
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed, ..Self::default() }
    }

    pub fn set_servers(&mut self, servers: Vec<SocketAddr>) {
        if servers != self.servers {
            (self.servers, self.next, self.answered) = (servers, None, false);
        }
    }

    /// Has the next tick ask.
    pub fn ask_again(&mut self) {
        self.next = None;
    }

    /// The address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Asks, if it is time.
    pub fn tick(&mut self, now: Instant, send: &mut dyn FnMut(SocketAddr, &[u8])) {
        if self.servers.is_empty() || self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + if self.answered { REPEAT } else { RETRY });
        self.answered = false;
        self.asked += 1;
        let unguessable = digest(&SHA256, &[&self.seed[..], &self.asked.to_le_bytes()].concat());
        self.transaction.copy_from_slice(&unguessable.as_ref()[..12]);
        for server in &self.servers {
            send(*server, &stun::request(&self.transaction));
        }
    }

    /// Takes an answer; `false` if nobody asked for it.
    pub fn take(&mut self, now: Instant, message: &[u8]) -> bool {
        let Some(address) = stun::read_response(message, &self.transaction) else { return false };
        self.address = Some(address);
        self.answered = true;
        self.next = Some(now + REPEAT);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_until_it_knows_and_again_before_a_nat_forgets() {
        let (mut reflexive, start) = (Reflexive::new([1; 32]), Instant::now());
        let asked = |reflexive: &mut Reflexive, at: u64| {
            let mut sent = Vec::new();
            reflexive.tick(start + Duration::from_secs(at), &mut |to, message: &[u8]| {
                sent.push((to, message.to_vec()));
            });
            sent
        };
        assert!(asked(&mut reflexive, 0).is_empty(), "there is nobody to ask");
        let server: SocketAddr = "192.0.2.1:3478".parse().unwrap();
        reflexive.set_servers(vec![server]);
        let first = asked(&mut reflexive, 0);
        assert_eq!(first[0].0, server);
        assert!(asked(&mut reflexive, 0).is_empty());
        let second = asked(&mut reflexive, 1);
        let seen: SocketAddr = "198.51.100.7:4000".parse().unwrap();
        let answer = |request: &[u8]| stun::response(&stun::read_request(request).unwrap(), seen);
        let now = start + Duration::from_secs(1);
        assert!(!reflexive.take(now, &answer(&first[0].1)), "it is not the last that was asked");
        assert!(reflexive.take(now, &answer(&second[0].1)));
        assert_eq!(reflexive.address(), Some(seen));
        assert!(asked(&mut reflexive, 20).is_empty());
        assert_eq!(asked(&mut reflexive, 21).len(), 1);
        assert_eq!(asked(&mut reflexive, 22).len(), 0, "it was answered the last time");
    }
}
