//! Large transfers on every kind of path, with a hop that has an MTU of 1,280 bytes.

use crate::{
    gateways::{FAR, behind},
    nat::Pair,
    support::{Echo, connect, mesh},
};
use anyhow::{Context, Result, ensure};
use meshward_lab::{Hop, Uplink};
use meshward_netns::Netns;
use std::{
    io::{Read, Write},
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The length of a transfer, in bytes.
const SENT: usize = 2_000_000;
/// The longest permitted stall.
const STALL: Duration = Duration::from_secs(1);
/// The longest permitted stall with 3 % packet loss: TCP itself waits for a second if its SYN is
/// lost, and for as long if a segment is lost three times (RFC 6298).
const STALL_OF_LOSS: Duration = Duration::from_secs(4);
/// The time after which a transfer has failed.
const NEVER: Duration = Duration::from_secs(15);
/// The number of pairs that are tested at a time.
const AT_ONCE: usize = 2;
const NARROW: u32 = 1280;
const WIDE: u32 = 1500;
const POLICY: &str = "network: shop
routes: [{ name: dc, within: [10.8.0.0/16, fd08::/32] }]
rules: [{ name: all, from: {}, to: {}, allow: [any] }]
";

/// The position of the hop with the small MTU.
#[derive(Debug, Clone, Copy)]
enum HopPosition {
    Sender,
    Middle,
    Receiver,
}

const POSITIONS: [HopPosition; 3] =
    [HopPosition::Sender, HopPosition::Middle, HopPosition::Receiver];

/// Sends bytes to an echo server and back, and returns the longest stall.
fn transfer(from: &Netns, to: IpAddr, port: u16) -> Result<Duration> {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut stream = connect(from, to, port, NEVER).context("no connection")?;
    let sent: Vec<u8> = (0..SENT).map(|at| (at * 7 + at / 251) as u8).collect();
    let (mut writer, copy) = (stream.try_clone()?, sent.clone());
    let writing = thread::spawn(move || writer.write_all(&copy));
    let (mut back, mut received) = (vec![0; SENT], 0);
    while received < SENT {
        let length = stream
            .read(&mut back[received..])
            .with_context(|| format!("after {received} bytes"))?;
        ensure!(length > 0, "it ended after {received} bytes");
        received += length;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    writing.join().ok().context("the sender panicked")??;
    ensure!(back == sent, "something else came back");
    Ok(longest)
}

/// Transfers data between a pair of uplinks, and to machines behind a gateway, with the hop in
/// place from the start. Returns the failures.
fn transfers(uplinks: [Uplink; 2], position: HopPosition, number: usize) -> Vec<String> {
    let mut mesh = mesh();
    mesh.internet.add_providers();
    let (site, hop) = match position {
        HopPosition::Sender => (0, Hop::Own),
        HopPosition::Middle => (number % 2, Hop::Last),
        HopPosition::Receiver => (1, Hop::Own),
    };
    let pair = Pair::made(mesh, uplinks, |internet, at, name| {
        if at == site {
            internet.set_mtu(name, hop, NARROW).unwrap();
        }
    });
    pair.mesh.apply(POLICY).unwrap();
    let mtu = if number.is_multiple_of(2) { [NARROW, WIDE] } else { [WIDE, NARROW] };
    let behind = behind(&pair.mesh, &pair.nodes[1], mtu);
    pair.nodes[1].advertise("shop", &["10.8.0.0/24", "fd08::/64"], "dc=dc1").unwrap();
    let _far = Echo::start(&behind.far, 7000);
    let most = if uplinks.contains(&Uplink::Lossy) { STALL_OF_LOSS } else { STALL };
    let mut said = Vec::new();
    for to in [pair.api.v4(), pair.api.v6(), FAR[0], FAR[1]] {
        let name = format!("{} and {}, {position:?}, {to}", uplinks[0], uplinks[1]);
        match transfer(&pair.web.netns, to, 7000) {
            Ok(stall) if stall <= most => println!("{name}: {} ms", stall.as_millis()),
            Ok(stall) => said.push(format!("{name}: nothing came for {stall:?}")),
            Err(error) => said.push(format!("{name}: {error:#}")),
        }
    }
    // Before what is behind the gateway: it would route what is still under way by its uplink.
    drop(pair);
    said
}

/// With `TEST_EVERY_PAIR`: all pairs, with the hop at each position. Otherwise: each uplink with
/// two others, with the hop at one position.
#[test]
fn large_transfers_pass_with_a_hop_of_1280_bytes_wherever_it_is() {
    let every = std::env::var_os("TEST_EVERY_PAIR").is_some();
    let numbers = 0..Uplink::ALL.len();
    let pairs: Vec<[Uplink; 2]> = numbers
        .clone()
        .flat_map(|a| numbers.clone().map(move |b| (a, b)))
        .filter(|(a, b)| if every { a <= b } else { (a + 4) % Uplink::ALL.len() == *b })
        .map(|(a, b)| [Uplink::ALL[a], Uplink::ALL[b]])
        .collect();
    let positions =
        |at: usize| if every { POSITIONS.to_vec() } else { vec![POSITIONS[at % POSITIONS.len()]] };
    let all: Vec<([Uplink; 2], HopPosition)> = pairs
        .iter()
        .enumerate()
        .flat_map(|(at, pair)| positions(at).into_iter().map(move |position| (*pair, position)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut said = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((pair, position)) = all.get(at) else { return said };
            said.extend(transfers(*pair, *position, at));
        }
    };
    let said: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(said.is_empty(), "{} of {} transfers:\n{}", said.len(), 4 * all.len(), said.join("\n"));
}
