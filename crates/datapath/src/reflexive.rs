//! Server-reflexive addresses: those under which others see the endpoint (RFC 8445 §4). STUN
//! servers are asked from its own socket, which keeps what a NAT has made of them alive, too.

use meshward_types::stun::{self, Transaction};
use ring::digest::{SHA256, digest};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Time between requests once there was an answer. NATs forget what was silent for thirty seconds
/// (RFC 4787 §4.3 wants two minutes at the least, but many keep to less).
const REPEAT: Duration = Duration::from_secs(20);
/// Time between requests before.
const RETRY: Duration = Duration::from_secs(1);

/// The server-reflexive addresses of an endpoint.
#[derive(Default)]
pub(crate) struct ReflexiveAddresses {
    servers: Vec<Server>,
    /// The secret that transaction ids are derived from, so that nobody can guess them.
    seed: [u8; 32],
    asked: u64,
    next: Option<Instant>,
}

struct Server {
    /// The address that requests are sent to.
    target: SocketAddr,
    transaction: Transaction,
    /// `true` if it has answered the last request.
    answered: bool,
    address: Option<SocketAddr>,
}

impl ReflexiveAddresses {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { seed, ..Self::default() }
    }

    pub(crate) fn set_servers(&mut self, servers: &[SocketAddr]) {
        if self.servers.iter().map(|server| server.target).eq(servers.iter().copied()) {
            return;
        }
        let known = std::mem::take(&mut self.servers);
        let address = |wanted| known.iter().find(|known| known.target == wanted)?.address;
        let server = |server: &SocketAddr| Server {
            target: *server,
            transaction: Transaction::default(),
            answered: false,
            address: address(*server),
        };
        self.servers = servers.iter().map(server).collect();
        self.next = None;
    }

    /// Has all servers asked at the next tick.
    pub(crate) fn ask_again(&mut self) {
        self.next = None;
    }

    /// Returns the addresses, one for each IP: behind some NATs every server sees another port, and
    /// the first's is kept to.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in self.servers.iter().filter_map(|server| server.address) {
            if !addresses.iter().any(|known| known.ip() == address.ip()) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Asks, if it is time.
    pub(crate) fn tick(&mut self, now: Instant, send: &mut dyn FnMut(SocketAddr, &[u8])) {
        if self.servers.is_empty() || self.next.is_some_and(|next| now < next) {
            return;
        }
        let any = self.servers.iter().any(|server| server.answered);
        self.next = Some(now + if any { REPEAT } else { RETRY });
        for server in &mut self.servers {
            if any && !server.answered {
                // It is gone; others know better.
                server.address = None;
            }
            server.answered = false;
            self.asked += 1;
            let unguessable =
                digest(&SHA256, &[&self.seed[..], &self.asked.to_le_bytes()].concat());
            server.transaction.copy_from_slice(&unguessable.as_ref()[..12]);
            send(server.target, &stun::request(&server.transaction));
        }
    }

    /// Receives a response. Returns false if nobody has asked for it.
    pub(crate) fn receive_response(&mut self, now: Instant, message: &[u8]) -> bool {
        for server in &mut self.servers {
            if let Some(address) = stun::read_response(message, &server.transaction) {
                (server.address, server.answered) = (Some(address), true);
                self.next = Some(now + REPEAT);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        reflexive: ReflexiveAddresses,
        start: Instant,
    }

    impl Bench {
        fn asked(&mut self, at: u64) -> Vec<(SocketAddr, Vec<u8>)> {
            let mut sent = Vec::new();
            self.reflexive.tick(self.start + Duration::from_secs(at), &mut |to, message: &[u8]| {
                sent.push((to, message.to_vec()));
            });
            sent
        }

        fn answer(&mut self, at: u64, request: &[u8], seen: &str) -> bool {
            let answer = stun::response(&stun::read_request(request).unwrap(), address(seen));
            self.reflexive.receive_response(self.start + Duration::from_secs(at), &answer)
        }
    }

    fn bench() -> Bench {
        Bench { reflexive: ReflexiveAddresses::new([1; 32]), start: Instant::now() }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn it_asks_until_it_knows_and_again_before_a_nat_forgets() {
        let mut bench = bench();
        assert!(bench.asked(0).is_empty(), "there is nobody to ask");
        let server = address("192.0.2.1:3478");
        bench.reflexive.set_servers(&[server]);
        let first = bench.asked(0);
        assert_eq!(first[0].0, server);
        assert!(bench.asked(0).is_empty());
        let second = bench.asked(1);
        assert!(
            !bench.answer(1, &first[0].1, "198.51.100.7:4000"),
            "it is not the last that was asked"
        );
        assert!(bench.answer(1, &second[0].1, "198.51.100.7:4000"));
        assert_eq!(bench.reflexive.addresses(), [address("198.51.100.7:4000")]);
        assert!(bench.asked(20).is_empty());
        assert_eq!(bench.asked(21).len(), 1);
        assert_eq!(bench.asked(22).len(), 0, "it was answered the last time");
    }

    #[test]
    fn of_several_servers_each_ip_counts_once_and_one_that_is_gone_not_at_all() {
        let mut bench = bench();
        let servers = ["192.0.2.1:3478", "192.0.2.2:3478", "[2001:db8::1]:3478"].map(address);
        bench.reflexive.set_servers(&servers);
        let asked = bench.asked(0);
        for (at, seen) in
            [(1, "198.51.100.7:4001"), (2, "[2001:db8::7]:51820"), (0, "198.51.100.7:4000")]
        {
            assert!(bench.answer(0, &asked[at].1, seen));
        }
        let seen = ["198.51.100.7:4000", "[2001:db8::7]:51820"].map(address);
        assert_eq!(bench.reflexive.addresses(), seen);
        let asked = bench.asked(20);
        assert!(bench.answer(20, &asked[1].1, "198.51.100.7:4001"));
        assert_eq!(bench.reflexive.addresses(), seen, "it may come late");
        bench.asked(40);
        assert_eq!(bench.reflexive.addresses(), [address("198.51.100.7:4001")]);
    }
}
