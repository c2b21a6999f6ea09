//! Home relays: those by which other nodes reach this one, the nearest by measured latency.

use super::Reachability;
use anyhow::Result;
use futures::future::join_all;
use meshward_control_proto::relay::MAX_HOME_RELAYS;
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
use tracing::info;

/// The interval between measurements.
const MEASURE: Duration = Duration::from_mins(1);
/// The time within which an answer must come, and the number of requests; the quickest answer
/// counts.
const PATIENCE: Duration = Duration::from_millis(600);
const TRIES: usize = 3;
/// The penalty of a relay that is reached by TCP alone: it is a last resort.
const BY_TCP: Duration = Duration::from_millis(100);
/// A home relay is kept while no other is nearer by a quarter of its latency and this.
const SLACK: Duration = Duration::from_millis(3);
/// The time for a lost relay's connection to come back before others are chosen.
const LOST: Duration = Duration::from_millis(200);

/// Chooses the home relays, for ever.
pub async fn choose(reachability: Arc<Reachability>) {
    let mut specs = reachability.relays.subscribe();
    loop {
        let known = specs.borrow_and_update().clone();
        let mut measured = vec![];
        if !known.is_empty() {
            let coordinator =
                (RelayNumber::COORDINATOR, vec![reachability.membership.coordinator.clone()], PORT);
            let all =
                known.iter().map(|spec| (spec.number, spec.addresses.clone(), spec.stun_port));
            let measure =
                async |(number, addresses, stun_port): (RelayNumber, Vec<String>, u16)| {
                    Some((number, latency(&addresses, stun_port).await?))
                };
            let measures = all.chain([coordinator]).map(measure);
            measured = join_all(measures).await.into_iter().flatten().collect();
        }
        let before = reachability.home_relays.borrow().clone();
        let homes = nearest(&before, measured.clone());
        if homes != before {
            info!(home_relays = ?homes, ?measured, "the home relays have changed");
            reachability.set_home_relays(homes);
        }
        tokio::select! {
            () = tokio::time::sleep(MEASURE) => {}
            Ok(()) = specs.changed() => {}
            () = reachability.relay_lost.notified() => tokio::time::sleep(LOST).await,
        }
    }
}

/// Returns the home relays for these latencies: the present ones, unless others are clearly nearer.
fn nearest(before: &[RelayNumber], mut measured: Vec<(RelayNumber, Duration)>) -> Vec<RelayNumber> {
    if measured.is_empty() {
        return if before.is_empty() { vec![RelayNumber::COORDINATOR] } else { before.to_vec() };
    }
    let is_home = |number: &RelayNumber| before.contains(number);
    measured.sort_by_key(|(number, latency)| {
        let seen_as =
            if is_home(number) { latency.saturating_sub(*latency / 4 + SLACK) } else { *latency };
        (seen_as, !is_home(number), *number)
    });
    let mut homes: Vec<RelayNumber> =
        measured.into_iter().take(MAX_HOME_RELAYS).map(|(number, _)| number).collect();
    // Those that stay keep their order, so that nobody is told of nothing.
    homes.sort_by_key(|number| before.iter().position(|own| own == number).unwrap_or(usize::MAX));
    homes
}

/// Measures the round trip to a relay; `None` if it does not answer.
async fn latency(addresses: &[String], stun_port: u16) -> Option<Duration> {
    let mut found = vec![];
    for address in addresses {
        found.extend(lookup_host(address).await.into_iter().flatten());
    }
    let tries = found.iter().flat_map(|address| [*address; TRIES]);
    let by_udp =
        tries.map(async |address| ask(SocketAddr::new(address.ip(), stun_port)).await.ok());
    if let Some(quickest) = join_all(by_udp).await.into_iter().flatten().min() {
        return Some(quickest);
    }
    let by_tcp = found.iter().map(async |address| {
        let begun = Instant::now();
        tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await.ok()?.ok()?;
        Some(begun.elapsed() + BY_TCP)
    });
    join_all(by_tcp).await.into_iter().flatten().min()
}

async fn ask(server: SocketAddr) -> Result<Duration> {
    let any: IpAddr =
        if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let transaction: Transaction = random();
    let begun = Instant::now();
    socket.send(&request(&transaction)).await?;
    let mut buffer = [0; 256];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await??;
    anyhow::ensure!(
        read_response(&buffer[..length], &transaction).is_some(),
        "no answer to what was asked"
    );
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(before: &[u16], measured: &[(u16, u64)]) -> Vec<u16> {
        let before: Vec<RelayNumber> = before.iter().copied().map(RelayNumber).collect();
        let measured =
            measured.iter().map(|(number, ms)| (RelayNumber(*number), Duration::from_millis(*ms)));
        nearest(&before, measured.collect()).into_iter().map(|number| number.0).collect()
    }

    #[test]
    fn the_nearest_are_homes_and_stay_until_others_are_clearly_nearer() {
        assert_eq!(homes(&[], &[]), [1], "the coordinator, where there is nothing else");
        assert_eq!(homes(&[], &[(1, 80), (2, 20), (3, 30)]), [2, 3]);
        assert_eq!(homes(&[2, 3], &[(1, 80), (2, 32), (3, 30)]), [2, 3]);
        assert_eq!(homes(&[2, 3], &[(1, 28), (2, 32), (3, 30)]), [2, 3]);
        assert_eq!(homes(&[2, 3], &[(1, 10), (2, 32), (3, 30)]), [3, 1]);
        assert_eq!(homes(&[2, 3], &[(1, 80), (3, 30)]), [3, 1], "one is gone");
        assert_eq!(homes(&[2, 3], &[]), [2, 3], "nobody answers: it is we who are cut off");
    }
}
