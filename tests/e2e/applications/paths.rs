//! Large transfers by every kind of path, with a hop that takes only 1,280 bytes.

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

/// How much goes there and back at once, in bytes.
const SENT: usize = 2_000_000;
/// The longest time in which nothing comes.
const STALL: Duration = Duration::from_secs(1);
/// The same where three packets in a hundred are lost: TCP itself waits for a second if its SYN is
/// lost, and for as long if a segment is lost three times (RFC 6298).
const STALL_OF_LOSS: Duration = Duration::from_secs(4);
/// What comes so late does not come.
const NEVER: Duration = Duration::from_secs(15);
/// How many pairs are looked at at a time.
const AT_ONCE: usize = 2;
const NARROW: u32 = 1280;
const WIDE: u32 = 1500;
const POLICY: &str = "network: shop
routes: [{ name: dc, within: [10.8.0.0/16, fd08::/32] }]
rules: [{ name: all, from: {}, to: {}, allow: [any] }]
";

/// Where the hop is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Sender,
    Middle,
    Receiver,
}

const PLACES: [Place; 3] = [Place::Sender, Place::Middle, Place::Receiver];

/// Sends bytes to an echo and back, and gives the longest time in which nothing came.
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

/// Transfers of a pair of uplinks, with the hop at a place from the beginning; of other routes,
/// behind the second node, too.
fn transfers(uplinks: [Uplink; 2], place: Place, number: usize) -> Vec<String> {
    let mut mesh = mesh();
    mesh.internet.add_providers();
    let (site, hop) = match place {
        Place::Sender => (0, Hop::Own),
        Place::Middle => (number % 2, Hop::Last),
        Place::Receiver => (1, Hop::Own),
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
        let name = format!("{} and {}, {place:?}, {to}", uplinks[0], uplinks[1]);
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

/// All pairs with the hop at each place, if `TEST_EVERY_PAIR` is set; otherwise each uplink with
/// two others, and the hop at one.
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
    let places = |at: usize| if every { PLACES.to_vec() } else { vec![PLACES[at % PLACES.len()]] };
    let all: Vec<([Uplink; 2], Place)> = pairs
        .iter()
        .enumerate()
        .flat_map(|(at, pair)| places(at).into_iter().map(move |place| (*pair, place)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut said = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((pair, place)) = all.get(at) else { return said };
            said.extend(transfers(*pair, *place, at));
        }
    };
    let said: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(said.is_empty(), "{} of {} transfers:\n{}", said.len(), 4 * all.len(), said.join("\n"));
}
