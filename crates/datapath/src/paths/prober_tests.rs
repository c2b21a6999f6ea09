use super::prober::{MtuStep, PathProber, Proof};
use meshward_wireguard::Millis;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The result of path MTU discovery.
struct Discovery {
    found: u16,
    /// In milliseconds.
    took: u64,
    probes: usize,
}

/// Runs path MTU discovery, from `begin` milliseconds on, on a path that carries packets of up to
/// `path_mtu` bytes.
fn discover(
    prober: &mut PathProber,
    begin: u64,
    address: SocketAddr,
    network_mtu: u16,
    path_mtu: u16,
) -> Discovery {
    let mut probes = 0;
    for at in 0.. {
        let now = begin + at * 250;
        let MtuStep { challenges, found } = prober.discover_mtu(Millis(now), address, network_mtu);
        if let Some(found) = found {
            return Discovery { found, took: now - begin, probes };
        }
        probes += challenges.len();
        for challenge in challenges {
            if challenge.padded_to.unwrap() <= path_mtu {
                let proof = prober.accept_response(challenge.number);
                assert!(matches!(proof, Some(Proof::Length(_))));
            }
        }
    }
    unreachable!()
}

#[test]
fn the_path_mtu_is_found_out() {
    let mut prober = PathProber::default();
    let (a, b) = (address("192.0.2.1:1"), address("192.0.2.2:1"));
    let first = discover(&mut prober, 0, a, 1420, 1420);
    assert_eq!((first.found, first.took, first.probes), (1420, 250, 1), "one probe is enough");
    assert!(prober.discover_mtu(Millis(5_000), a, 1420).challenges.is_empty(), "it is known now");
    let narrow = discover(&mut prober, 6_000, b, 1420, 1225);
    assert!((1220..=1225).contains(&narrow.found), "{}", narrow.found);
    assert!(narrow.took <= 1750 && narrow.probes < 50, "{} {}", narrow.took, narrow.probes);
    assert_eq!(discover(&mut prober, 20_000, a, 1420, 0).found, 0, "no probe is answered");
    let jumbo = discover(&mut prober, 30_000, b, 8920, 1425).found;
    assert!((1380..=1425).contains(&jumbo), "{jumbo}");
    let later = discover(&mut prober, 635_000, b, 8920, 8920).found;
    assert_eq!(later, 8920, "the path may have changed");
}

#[test]
fn a_ping_is_answered_once_and_few_are_remembered() {
    let (mut prober, start) = (PathProber::default(), Instant::now());
    let at = |ms| start + Duration::from_millis(ms);
    let first = prober.begin_ping(start);
    assert_eq!(prober.accept_response(first), None, "it proves nothing of a path");
    assert!(!prober.last_ping_is_lost(at(499)));
    assert!(prober.last_ping_is_lost(at(501)));
    prober.note_ping_response(at(7), first + 1);
    assert_eq!(prober.ping_rtt(first), None);
    prober.note_ping_response(at(7), first);
    prober.note_ping_response(at(9), first);
    assert_eq!(prober.ping_rtt(first), Some(Duration::from_millis(7)));
    assert!(!prober.last_ping_is_lost(at(1000)));
    let numbers: Vec<u32> = (0..100).map(|_| prober.begin_ping(start)).collect();
    assert!(prober.remembered()[1] <= 32 && !numbers.contains(&first));
}

#[test]
fn other_paths_are_challenged_less_and_less_often_and_each_response_counts_once() {
    let (mut prober, a) = (PathProber::default(), address("192.0.2.1:1"));
    let mut times = Vec::new();
    for at in (0..10_000).step_by(50) {
        let challenges = prober.challenge_others(Millis(at), [a].into_iter());
        if let Some(challenge) = challenges.first() {
            assert_eq!(prober.accept_response(challenge.number), Some(Proof::Path(a)));
            assert_eq!(prober.accept_response(challenge.number), None);
            times.push(at);
        }
    }
    assert_eq!(times, [0, 250, 750, 1750, 3750, 7750]);
    prober.reset_interval();
    assert_eq!(prober.challenge_others(Millis(10_000), [a].into_iter()).len(), 1);
    for at in 0..1000 {
        prober.challenge_others(Millis(100_000 * at), [a].into_iter());
    }
    assert!(prober.remembered()[0] <= 64);
}
