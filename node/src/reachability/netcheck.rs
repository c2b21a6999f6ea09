//! The network around this node: whether UDP passes, the NAT, which relays answer
//! and how quickly, whether the router maps ports. Only what the mesh has named is asked: the
//! coordinator, its relays, and the STUN servers of the configuration.

use super::{Reachability, host_addresses, port_mapping};
use futures::future::join_all;
use meshward_api_types::diagnosis::{NatMapping, NatProfile, Netcheck, PortMappings, RelayCheck};
use meshward_runtime::random;
use meshward_types::{
    relay::RelayNumber,
    stun::{PORT, Transaction, read_response, request},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::{TcpStream, UdpSocket, lookup_host};

/// The time within which an answer must come, and the number of requests; the quickest answer
/// counts.
const PATIENCE: Duration = Duration::from_millis(700);
const TRIES: usize = 3;
/// The time within which a name must be resolved.
const RESOLVING: Duration = Duration::from_secs(2);
/// The largest number of servers, and of addresses of one.
const MOST_SERVERS: usize = 64;
const MOST_ADDRESSES: usize = 8;

/// A server that is asked.
struct Server {
    /// The relay that it is, if it is one.
    relay: Option<RelayNumber>,
    /// The configured name.
    name: String,
    /// The addresses for TCP.
    addresses: Vec<SocketAddr>,
    stun_port: u16,
}

/// A server's answer.
#[derive(Clone, Copy)]
struct Answer {
    /// The server's address.
    by: IpAddr,
    /// The socket's address as the server sees it.
    seen: SocketAddr,
    round_trip: Duration,
}

/// The answers that one socket has received.
#[derive(Default)]
struct SocketAnswers {
    /// The socket's own port.
    port: u16,
    /// The answers by the servers' order.
    answers: Vec<Option<Answer>>,
}

impl SocketAnswers {
    fn all(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().flatten()
    }

    fn round_trip(&self, server: usize) -> Option<Duration> {
        self.answers.get(server)?.map(|answer| answer.round_trip)
    }

    fn seen(&self) -> Option<SocketAddr> {
        let outside = self.all().find(|answer| !answer.by.is_loopback());
        outside.or(self.all().next()).map(|answer| answer.seen)
    }
}

/// Runs the check, which takes three seconds at the most.
pub async fn check(reachability: &Arc<Reachability>) -> Netcheck {
    let servers = servers(reachability).await;
    let (v4, v6) = tokio::join!(
        ask_all(Ipv4Addr::UNSPECIFIED.into(), &servers),
        ask_all(Ipv6Addr::UNSPECIFIED.into(), &servers)
    );
    let tcp = join_all(servers.iter().map(connect)).await;
    let addresses = tokio::task::spawn_blocking(host_addresses).await.unwrap_or_default();
    let by_udp = |at: usize| [v4.round_trip(at), v6.round_trip(at)].into_iter().flatten().min();
    let relays = servers.iter().enumerate().filter_map(|(at, server)| {
        Some(RelayCheck {
            number: server.relay?,
            address: server.name.clone(),
            udp_us: by_udp(at).map(|took| took.as_micros() as u64),
            tcp_us: tcp[at].map(|took| took.as_micros() as u64),
        })
    });
    let mut relays: Vec<RelayCheck> = relays.collect();
    // Those that answer by UDP come first, then by TCP; the rest is out of reach.
    relays.sort_by_key(|relay| {
        (relay.udp_us.unwrap_or(u64::MAX), relay.tcp_us.unwrap_or(u64::MAX), relay.number)
    });
    // Where nobody answers by TCP either, it is not UDP that is blocked.
    let udp = match v4.seen().or(v6.seen()) {
        Some(_) => Some(true),
        None => tcp.iter().any(Option::is_some).then_some(false),
    };
    let answered = if v4.seen().is_some() { &v4 } else { &v6 };
    Netcheck {
        node: reachability.membership.name.clone(),
        connected: reachability.link.is_connected(),
        udp,
        ipv4: v4.seen(),
        ipv6: v6.seen(),
        has_ipv6: addresses.iter().any(is_global_v6),
        nat: nat_profile(answered, &addresses),
        port_mapping: mappings(reachability).await,
        relays,
        home_relays: reachability.home_relays.borrow().clone(),
        addresses,
    }
}

/// Returns the profile of the NAT that one socket's answers show.
fn nat_profile(heard: &SocketAnswers, own: &[IpAddr]) -> NatProfile {
    let mapping = nat_mapping(heard, own);
    let translated = !matches!(mapping, NatMapping::None | NatMapping::Unknown);
    let preserves_port = heard.seen().filter(|_| translated).map(|seen| seen.port() == heard.port);
    NatProfile { mapping, preserves_port }
}

/// Returns the mapping behaviour, from how servers at several addresses saw one socket. Equal
/// answers from one address prove nothing: mapping may be address-dependent (RFC 4787 §4.1).
fn nat_mapping(heard: &SocketAnswers, own: &[IpAddr]) -> NatMapping {
    // No NAT is on the way to a server on this machine.
    let here = |ip: &IpAddr| ip.is_loopback() || own.contains(ip);
    let outside = || heard.all().filter(|answer| !here(&answer.by));
    let Some(first) = outside().next() else { return NatMapping::Unknown };
    if outside().any(|answer| own.contains(&answer.seen.ip())) {
        return NatMapping::None;
    }
    let alike = outside().all(|answer| answer.seen == first.seen);
    let elsewhere = outside().any(|answer| answer.by != first.by);
    match (alike, elsewhere) {
        (false, _) => NatMapping::EndpointDependent,
        (true, true) => NatMapping::EndpointIndependent,
        (true, false) => NatMapping::Undetermined,
    }
}

async fn servers(reachability: &Reachability) -> Vec<Server> {
    let relays = reachability.relays.borrow().clone();
    let coordinator =
        (Some(RelayNumber::COORDINATOR), vec![reachability.membership.coordinator.clone()], PORT);
    let relays =
        relays.iter().map(|spec| (Some(spec.number), spec.addresses.clone(), spec.stun_port));
    let stun = reachability.config.stun.iter().map(|server| {
        let port = server.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(PORT);
        (None, vec![server.clone()], port)
    });
    let all = [coordinator].into_iter().chain(relays).chain(stun).take(MOST_SERVERS);
    join_all(all.map(async |(relay, names, stun_port)| {
        let mut addresses = Vec::new();
        for name in &names {
            let found = tokio::time::timeout(RESOLVING, lookup_host(name)).await;
            addresses.extend(found.into_iter().flatten().flatten());
        }
        addresses.truncate(MOST_ADDRESSES);
        Server { relay, name: names.into_iter().next().unwrap_or_default(), addresses, stun_port }
    }))
    .await
}

/// Asks every server from one socket how it is seen.
async fn ask_all(from: IpAddr, servers: &[Server]) -> SocketAnswers {
    let Ok(socket) = UdpSocket::bind((from, 0)).await else { return SocketAnswers::default() };
    let port = socket.local_addr().map_or(0, |own| own.port());
    let mut heard = SocketAnswers { port, answers: vec![None; servers.len()] };
    let mut asked: Vec<SentRequest> = Vec::new();
    for _ in 0..TRIES {
        for (at, server) in servers.iter().enumerate() {
            for address in
                server.addresses.iter().filter(|address| address.is_ipv4() == from.is_ipv4())
            {
                let transaction: Transaction = random();
                let to = SocketAddr::new(address.ip(), server.stun_port);
                // What cannot be sent has no answer.
                if socket.send_to(&request(&transaction), to).await.is_ok() {
                    asked.push(SentRequest {
                        transaction,
                        server: at,
                        by: address.ip(),
                        at: Instant::now(),
                    });
                }
            }
        }
        receive_answers(&socket, &asked, &mut heard.answers).await;
    }
    heard
}

/// A request to a server.
struct SentRequest {
    transaction: Transaction,
    server: usize,
    by: IpAddr,
    at: Instant,
}

/// Receives answers until all requests are answered, or the time is over.
async fn receive_answers(
    socket: &UdpSocket,
    asked: &[SentRequest],
    answers: &mut [Option<Answer>],
) {
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut buffer = [0; 256];
    let mut left = asked.len();
    while left > 0 {
        let Ok(Ok(length)) = tokio::time::timeout_at(until, socket.recv(&mut buffer)).await else {
            return;
        };
        let found = asked.iter().find_map(|asked| {
            let seen = read_response(&buffer[..length], &asked.transaction)?;
            Some((asked.server, Answer { by: asked.by, seen, round_trip: asked.at.elapsed() }))
        });
        let Some((server, answer)) = found else { continue };
        left -= 1;
        let known = &mut answers[server];
        if known.as_ref().is_none_or(|before| answer.round_trip < before.round_trip) {
            *known = Some(answer);
        }
    }
}

/// Measures the time to connect to a relay by TCP, the quickest of its addresses.
async fn connect(server: &Server) -> Option<Duration> {
    server.relay?;
    let tries = server.addresses.iter().map(async |address| {
        let begun = Instant::now();
        tokio::time::timeout(2 * PATIENCE, TcpStream::connect(address)).await.ok()?.ok()?;
        Some(begun.elapsed())
    });
    join_all(tries).await.into_iter().flatten().min()
}

async fn mappings(reachability: &Arc<Reachability>) -> PortMappings {
    PortMappings {
        wanted: reachability.config.port_mapping,
        router: if reachability.config.port_mapping {
            port_mapping::router_outside().await
        } else {
            None
        },
        mapped: reachability.mapped(),
    }
}

/// Returns `true` if an address is valid beyond its link and its site (RFC 4291, RFC 4193).
fn is_global_v6(address: &IpAddr) -> bool {
    matches!(
        address,
        IpAddr::V6(ip) if !ip.is_loopback()
            && !ip.is_unicast_link_local()
            && !ip.is_unique_local()
            && !ip.is_unspecified()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nats_mapping_follows_from_how_servers_see_one_socket_and_nothing_is_guessed() {
        let own: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let heard = |all: &[(&str, &str)]| {
            let answer = |(by, seen): &(&str, &str)| {
                Some(Answer {
                    by: by.parse().unwrap(),
                    seen: seen.parse().unwrap(),
                    round_trip: Duration::ZERO,
                })
            };
            SocketAnswers {
                port: 5,
                answers: [None].into_iter().chain(all.iter().map(answer)).collect(),
            }
        };
        let cases: [(&[(&str, &str)], NatMapping); 10] = [
            (&[], NatMapping::Unknown),
            (&[("127.0.0.1", "127.0.0.1:5"), ("192.0.2.1", "192.0.2.1:5")], NatMapping::Unknown),
            (
                &[("127.0.0.1", "127.0.0.1:5"), ("203.0.113.1", "198.51.100.1:5")],
                NatMapping::Undetermined,
            ),
            (&[("203.0.113.1", "192.0.2.1:5")], NatMapping::None),
            (&[("203.0.113.1", "198.51.100.1:5")], NatMapping::Undetermined),
            (
                &[("203.0.113.1", "198.51.100.1:5"), ("203.0.113.2", "198.51.100.1:5")],
                NatMapping::EndpointIndependent,
            ),
            (
                &[("203.0.113.1", "198.51.100.1:5"), ("203.0.113.1", "198.51.100.1:5")],
                NatMapping::Undetermined,
            ),
            (
                &[("203.0.113.1", "198.51.100.1:5"), ("203.0.113.2", "198.51.100.1:6")],
                NatMapping::EndpointDependent,
            ),
            (
                &[("203.0.113.1", "198.51.100.1:5"), ("203.0.113.1", "198.51.100.1:6")],
                NatMapping::EndpointDependent,
            ),
            (
                &[("203.0.113.1", "198.51.100.1:5"), ("203.0.113.2", "198.51.100.2:5")],
                NatMapping::EndpointDependent,
            ),
        ];
        for (all, mapping) in cases {
            assert_eq!(nat_mapping(&heard(all), &own), mapping, "{all:?}");
        }
    }
}
