//! Simulations of choices, with what instances and clients do.

use super::*;
use crate::services::directory::hash_of_address;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::atomic::Ordering::Relaxed,
};

use crate::services::load::UsualTime;

const SECOND: u64 = 1_000_000;

fn instance(number: u16, distance: Distance) -> Instance {
    let address = IpAddr::from([10, 42, (number >> 8) as u8, number as u8]);
    Instance {
        address,
        hash: hash_of_address(address),
        distance,
        identity: IdentityId(1),
        serving: Serving::Ready,
        is_open: true,
        weight: Weight::default(),
        load: Arc::default(),
    }
}

fn instances(count: u16) -> Vec<Instance> {
    (0..count).map(|number| instance(number, 0)).collect()
}

fn choose(instances: &[Instance], hash: u64, now: Micros, usual: u64) -> Option<&Instance> {
    let is_even = instances.iter().all(|instance| instance.weight == Weight::default());
    let ranking = if is_even { Ranking::Even } else { Ranking::Weighted };
    Choice { hash, now, usual, ranking, without: &[], reaches: |_| true }.choose(instances)
}

/// Returns the hash of a connection.
fn connection(client: u64, number: u64) -> u64 {
    mix(mix(client, 77), number)
}

/// Clients that connect at a rate to instances that answer after some time, for some seconds.
struct Simulation {
    instances: Vec<Instance>,
    /// Microseconds until an instance answers, by its number.
    answers: Vec<u64>,
    /// Connects per second.
    rate: u64,
    usual: UsualTime,
    now: Micros,
    next: u64,
    open: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl Simulation {
    fn new(answers: &[u64], rate: u64) -> Self {
        Self {
            instances: instances(answers.len() as u16),
            answers: answers.to_vec(),
            rate,
            usual: UsualTime::default(),
            now: Micros(1),
            next: 0,
            open: BinaryHeap::new(),
        }
    }

    /// Runs for some seconds. Returns the connections of each instance.
    fn run(&mut self, seconds: u64) -> Vec<u64> {
        let mut counts = vec![0; self.instances.len()];
        for _ in 0..seconds * self.rate {
            self.now = Micros(self.now.0 + SECOND / self.rate);
            self.close();
            self.next += 1;
            let hash = connection(1, self.next);
            let chosen = choose(&self.instances, hash, self.now, self.usual.get()).unwrap();
            let number =
                self.instances.iter().position(|own| own.address == chosen.address).unwrap();
            chosen.load.begin();
            counts[number] += 1;
            // Some take a little longer than others.
            let takes = self.answers[number] * (90 + hash % 20) / 100;
            self.open.push(Reverse((self.now.0 + takes, takes, number)));
        }
        counts
    }

    fn close(&mut self) {
        while let Some(&Reverse((at, took, number))) = self.open.peek() {
            if at > self.now.0 {
                break;
            }
            self.open.pop();
            self.usual.note(took);
            self.instances[number].load.note_answer(Micros(at), took);
            self.instances[number].load.end();
        }
    }
}

fn most_over_mean(counts: impl Iterator<Item = u64> + Clone) -> f64 {
    let (sum, count) = counts.clone().fold((0, 0), |(sum, count), own| (sum + own, count + 1));
    counts.max().unwrap() as f64 * f64::from(count) / sum as f64
}

#[test]
fn a_thousand_clients_with_twenty_instances_each_load_a_hundred_alike() {
    let mut counts = [0u64; 100];
    for client in 0..1000u16 {
        // As a ring gives out subsets.
        let own: Vec<Instance> =
            (0..20).map(|at| instance((client * 37 + at * 5) % 100, 0)).collect();
        for number in 0..50 {
            let hash = connection(u64::from(client), number);
            let chosen = choose(&own, hash, Micros(1), 0).unwrap();
            chosen.load.begin();
            let IpAddr::V4(address) = chosen.address else { panic!("these have IPv4") };
            counts[usize::from(address.octets()[3])] += 1;
        }
    }
    let ratio = most_over_mean(counts.into_iter());
    println!("most over mean: {ratio:.3}");
    assert!(ratio <= 1.1, "{ratio}");
}

#[test]
fn open_connections_are_spread_evenly_over_the_instances_of_one_client() {
    let own = instances(20);
    for number in 0..4000 {
        choose(&own, connection(1, number), Micros(1), 0).unwrap().load.begin();
    }
    let ratio = most_over_mean(own.iter().map(|instance| u64::from(instance.load.open())));
    println!("most over mean: {ratio:.3}");
    assert!(ratio <= 1.15, "{ratio}");
}

#[test]
fn an_instance_that_answers_slowly_gets_hardly_anything_within_two_seconds() {
    for rate in [50, 300, 2000] {
        let mut simulation = Simulation::new(&[200_000, 1000, 1000, 1000, 1000], rate);
        simulation.run(2);
        let counts = simulation.run(20);
        let share = counts[0] as f64 / counts.iter().sum::<u64>() as f64;
        println!("{rate} a second: {share:.4} of all, {counts:?}");
        assert!(share < 0.01, "{share} at {rate} a second");
        let ratio = most_over_mean(counts[1..].iter().copied());
        assert!(ratio < 1.25, "the others share: {ratio}");
    }
}

#[test]
fn two_slow_instances_of_five_are_avoided_too() {
    let mut simulation = Simulation::new(&[200_000, 200_000, 1000, 1000, 1000], 500);
    simulation.run(2);
    let counts = simulation.run(20);
    let share = (counts[0] + counts[1]) as f64 / counts.iter().sum::<u64>() as f64;
    assert!(share < 0.01, "{share}: {counts:?}");
}

#[test]
fn an_instance_that_is_fast_again_gets_its_share_again() {
    let mut simulation = Simulation::new(&[200_000, 1000, 1000, 1000, 1000], 500);
    simulation.run(10);
    simulation.answers[0] = 1000;
    simulation.run(60);
    let counts = simulation.run(20);
    let share = counts[0] as f64 / counts.iter().sum::<u64>() as f64;
    assert!(share > 0.15, "{share}: {counts:?}");
}

#[test]
fn a_new_instance_begins_with_less_and_comes_to_its_share() {
    let mut simulation = Simulation::new(&[1000, 1000, 1000, 1000], 1000);
    simulation.run(5);
    simulation.instances.push(Instance {
        load: Arc::new(InstanceLoad::joined_at(simulation.now)),
        ..instance(4, 0)
    });
    simulation.answers.push(1000);
    let share = |counts: Vec<u64>| counts[4] as f64 / counts.iter().sum::<u64>() as f64;
    let (first, _, last) =
        (share(simulation.run(4)), simulation.run(30), share(simulation.run(10)));
    println!("{first:.3}, then {last:.3}");
    assert!((0.03..0.12).contains(&first), "{first}");
    assert!((0.17..0.23).contains(&last), "{last}");
}

#[test]
fn after_a_restart_nearly_all_connections_have_the_same_instance() {
    let own = instances(20);
    let before: Vec<IpAddr> = (0..4000)
        .map(|number| {
            let chosen = choose(&own, connection(1, number), Micros(1), 0).unwrap();
            chosen.load.begin();
            chosen.address
        })
        .collect();
    let fresh = instances(20);
    let same = before.iter().enumerate().filter(|(number, address)| {
        let hash = connection(1, *number as u64);
        choose(&fresh, hash, Micros(1), 0).unwrap().address == **address
    });
    let part = same.count() as f64 / before.len() as f64;
    println!("{part:.3} have the same instance");
    assert!(part > 0.85, "{part}");
}

#[test]
fn when_one_of_a_hundred_goes_only_its_own_connections_move() {
    let all = instances(100);
    let without: Vec<Instance> = all.iter().skip(1).cloned().collect();
    let (mut moved, mut own) = (0, 0);
    for number in 0..20_000 {
        let hash = connection(1, number);
        let before = choose(&all, hash, Micros(1), 0).unwrap().address;
        let after = choose(&without, hash, Micros(1), 0).unwrap().address;
        own += usize::from(before == all[0].address);
        moved += usize::from(before != after && before != all[0].address);
    }
    println!("{own} of its own, {moved} others");
    assert!(own > 100);
    assert_eq!(moved, 0);
}

#[test]
fn an_instance_that_has_failed_gets_nothing_for_some_seconds() {
    let own = instances(3);
    let failed = &own[1];
    failed.load.note_failure(Micros(10 * SECOND));
    let counts = |now: u64| {
        let chosen = (0..300).map(|number| {
            choose(&own, connection(1, number), Micros(now * SECOND), 0).unwrap().address
        });
        chosen.filter(|address| *address == failed.address).count()
    };
    assert_eq!(counts(11), 0);
    assert!(counts(13) > 50);
    for instance in &own {
        instance.load.note_failure(Micros(20 * SECOND));
    }
    assert!(counts(21) > 50, "when all have failed, none is spared");
    assert_eq!(failed.load.refused.load(Relaxed), 0);
}

#[test]
fn near_instances_come_first_until_they_are_full() {
    let own = [instance(0, 0), instance(1, 1), instance(2, 1)];
    let near = own[0].address;
    let mut counts: HashMap<IpAddr, u32> = HashMap::new();
    for number in 0..1000 {
        let chosen = choose(&own, connection(1, number), Micros(1), 0).unwrap();
        chosen.load.begin();
        *counts.entry(chosen.address).or_default() += 1;
        if number == 10 {
            assert_eq!(counts.len(), 1, "the near one alone");
        }
    }
    assert!((500..900).contains(&counts[&near]), "{counts:?}");
}

#[test]
fn what_drains_is_never_chosen_and_what_is_unhealthy_only_if_nothing_else_is_left() {
    let mut own = instances(3);
    own[0].serving = Serving::Draining;
    own[1].serving = Serving::Unhealthy;
    let all = |own: &[Instance]| -> Vec<Option<IpAddr>> {
        let chosen = (0..100).map(|number| {
            choose(own, connection(1, number), Micros(1), 0).map(|instance| instance.address)
        });
        chosen.collect()
    };
    assert!(all(&own).iter().all(|chosen| *chosen == Some(own[2].address)));
    own[2].is_open = false;
    assert!(all(&own).iter().all(|chosen| *chosen == Some(own[1].address)));
    own[1].serving = Serving::Draining;
    assert!(all(&own).iter().all(Option::is_none));
}

#[test]
fn only_instances_that_the_rules_let_the_client_reach_are_chosen() {
    let mut own = instances(4);
    for (number, instance) in own.iter_mut().enumerate() {
        instance.identity = IdentityId(number as u32 * 4);
    }
    for number in 0..100 {
        let reaches = |identity| identity == IdentityId(8);
        let choice = Choice {
            hash: connection(1, number),
            now: Micros(1),
            usual: 0,
            ranking: Ranking::Even,
            without: &[],
            reaches,
        };
        assert_eq!(choice.choose(&own).unwrap().address, own[2].address);
    }
}

/// Instances with these weights.
fn weighted(weights: &[u16]) -> Vec<Instance> {
    let one = |(number, weight): (usize, &u16)| Instance {
        weight: Weight::new(*weight).unwrap(),
        ..instance(number as u16, 0)
    };
    weights.iter().enumerate().map(one).collect()
}

/// Returns the shares of connections that stay open, or end at once.
fn shares(own: &[Instance], stay_open: bool) -> Vec<f64> {
    let mut counts = vec![0; own.len()];
    for number in 0..20_000 {
        let chosen = choose(own, connection(1, number), Micros(1), 0).unwrap();
        if stay_open {
            chosen.load.begin();
        }
        counts[own.iter().position(|own| own.address == chosen.address).unwrap()] += 1;
    }
    counts.iter().map(|count| f64::from(*count) / 20_000.0).collect()
}

#[test]
fn instances_share_connections_in_proportion_to_their_weights() {
    for stay_open in [true, false] {
        let weights = [100, 100, 300, 5, 0];
        let shares = shares(&weighted(&weights), stay_open);
        println!("{shares:.4?}");
        for (weight, share) in weights.iter().zip(&shares) {
            let due = f64::from(*weight) / 505.0;
            assert!((share - due).abs() <= 0.12 * due, "{share} of {due}: {shares:?}");
        }
    }
}

#[test]
fn without_other_instances_one_of_weight_zero_gets_nothing_either() {
    let own = weighted(&[0, 0]);
    assert!(choose(&own, connection(1, 1), Micros(1), 0).is_none());
}

#[test]
fn a_changed_weight_moves_only_the_connections_that_it_must() {
    let (before, after) = (weighted(&[100, 100, 100, 100]), weighted(&[100, 100, 100, 50]));
    let mut moved = 0;
    for number in 0..20_000 {
        let hash = connection(1, number);
        let old = choose(&before, hash, Micros(1), 0).unwrap().address;
        let new = choose(&after, hash, Micros(1), 0).unwrap().address;
        assert!(old == new || old == before[3].address, "only those of the lighter one move");
        moved += usize::from(old != new);
    }
    let due = 0.25 - 50.0 / 350.0;
    assert!((moved as f64 / 20_000.0 - due).abs() < 0.01, "{moved} of {due}");
}
