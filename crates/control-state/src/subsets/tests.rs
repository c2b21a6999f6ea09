use super::{
    Client, Instance, Linked, Moves, SLACK, Subsets, hash,
    limits::{Census, Held, Limits},
    nearness::{Classes, Locality, is_near, mix},
};
use meshward_types::{Nearness, NodeName, Serving, Weight, WorkloadId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NODE_THEN_SITE: &[Nearness] = &[Nearness::Node, Nearness::Site];

fn node(at: u32) -> NodeName {
    format!("node-{at}").parse().unwrap()
}

fn instance(at: u32) -> WorkloadId {
    format!("api-{at}").parse().unwrap()
}

fn number(id: &WorkloadId) -> u32 {
    id.as_str().trim_start_matches("api-").parse().unwrap()
}

fn linked(subsets: &Subsets) -> BTreeSet<Linked> {
    let of = |client| {
        subsets.of(client).map(move |instance| Linked { instance: instance.clone(), client })
    };
    subsets.clients().flat_map(of).collect()
}

/// A client or an instance of a test: on the node of its number, unless `on` says another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    site: u32,
    on: u32,
    fan_out: usize,
    weight: u16,
    serving: Serving,
}

impl Member {
    fn client(fan_out: usize) -> Self {
        Self { fan_out, ..Self::instance(0, 100) }
    }

    fn instance(on: u32, weight: u16) -> Self {
        Self { site: 0, on, fan_out: 0, weight, serving: Serving::Ready }
    }

    fn at(self, site: u32) -> Self {
        Self { site, ..self }
    }

    fn site(&self) -> Option<String> {
        (self.site > 0).then(|| format!("site-{}", self.site))
    }
}

/// Subsets, and who is there.
#[derive(Debug, Default)]
struct Fleet {
    subsets: Subsets,
    prefer: Vec<Nearness>,
    clients: BTreeMap<u32, Member>,
    instances: BTreeMap<u32, Member>,
}

impl Fleet {
    fn prefer(&mut self, prefer: &[Nearness]) {
        self.prefer = prefer.to_vec();
        self.subsets.set_prefer(prefer);
    }

    fn put_client(&mut self, at: u32, member: Member) {
        self.clients.insert(at, member);
        let (name, site) = (node(at), member.site());
        let fan_out = member.fan_out;
        let client = Client { index: at, name: &name, site: site.as_deref(), fan_out };
        self.subsets.put_client(client);
    }

    fn remove_client(&mut self, at: u32) {
        self.clients.remove(&at);
        self.subsets.remove_client(at);
    }

    fn put_instance(&mut self, at: u32, member: Member) {
        self.instances.insert(at, member);
        let (id, site) = (instance(at), member.site());
        self.subsets.put_instance(Instance {
            id: &id,
            node: member.on,
            site: site.as_deref(),
            weight: Weight::new(member.weight).unwrap(),
            serving: member.serving,
        });
    }

    fn remove_instance(&mut self, at: u32) {
        self.instances.remove(&at);
        self.subsets.remove_instance(&instance(at));
    }

    /// Makes subsets of `clients` nodes, `fan_out` of `instances` instances each.
    fn even(clients: u32, instances: u32, fan_out: usize) -> Self {
        let mut fleet = Self::default();
        (0..instances).for_each(|at| fleet.put_instance(at, Member::instance(at, 100)));
        (0..clients).for_each(|at| fleet.put_client(at, Member::client(fan_out)));
        fleet.subsets.settle();
        fleet
    }

    /// Makes 1,000 clients with subsets of 20 of 100 instances, which have sites and weights by
    /// chance.
    fn random(seed: u64, sites: u32, weights: &[u16]) -> Self {
        let mut chance = Chance(seed);
        let mut fleet = Self::default();
        fleet.prefer(NODE_THEN_SITE);
        for at in 0..100 {
            let site = chance.below(u64::from(sites)) as u32 + 1;
            let weight = weights[chance.below(weights.len() as u64) as usize];
            // Every other one is on a node of its site that has a client as well.
            let on = if at % 2 == 0 { at } else { 5000 + at };
            fleet.put_instance(at, Member::instance(on, weight).at(site));
            if at % 2 == 0 {
                fleet.put_client(at, Member::client(20).at(site));
            }
        }
        for at in (0..1000).filter(|at| *at >= 100 || at % 2 == 1) {
            let site = chance.below(u64::from(sites)) as u32 + 1;
            fleet.put_client(at, Member::client(20).at(site));
        }
        fleet.subsets.settle();
        fleet
    }

    fn subset(&self, client: u32) -> Vec<u32> {
        self.subsets.of(client).map(number).collect()
    }

    fn usual_weight(&self) -> f64 {
        let weights = self.instances.values().map(|own| f64::from(own.weight));
        weights.sum::<f64>() / self.instances.len() as f64
    }

    /// Returns the connections of each pair, if every client spreads one over its subset by weight.
    fn connections(&self) -> BTreeMap<Linked, f64> {
        let mut all = BTreeMap::new();
        for client in self.clients.keys().copied() {
            let subset = self.subset(client);
            let weight = |at: &u32| f64::from(self.instances[at].weight);
            let whole: f64 = subset.iter().map(weight).sum();
            all.extend(
                subset
                    .iter()
                    .map(|at| (Linked { instance: instance(*at), client }, weight(at) / whole)),
            );
        }
        all
    }

    /// Returns the connections of each instance in proportion to its weight, against the mean, if
    /// every client spreads as many over its subset by weight.
    fn loads(&self) -> Vec<f64> {
        let mut loads: BTreeMap<u32, f64> = self.serving().map(|at| (at, 0.0)).collect();
        for (pair, part) in self.connections() {
            *loads.get_mut(&number(&pair.instance)).unwrap() += part;
        }
        let whole: f64 = self.serving().map(|at| f64::from(self.instances[&at].weight)).sum();
        let usual = self.clients.len() as f64 / whole;
        loads.iter().map(|(at, load)| load / f64::from(self.instances[at].weight) / usual).collect()
    }

    /// Returns the instances that new connections go to.
    fn serving(&self) -> impl Iterator<Item = u32> {
        let of = |serving| {
            let weighty = self.instances.iter().filter(|(_, own)| own.weight > 0);
            weighty.filter(move |(_, own)| own.serving == serving).map(|(at, _)| *at)
        };
        let ready = of(Serving::Ready).collect::<Vec<_>>();
        if ready.is_empty() { of(Serving::Unhealthy).collect() } else { ready }.into_iter()
    }

    /// Returns the assignment by definition: the pairs of the highest scores first, while both have
    /// room; and for a client without any, the one of its highest score.
    fn by_definition(&self) -> BTreeSet<Linked> {
        let classes = Classes::new(&self.prefer);
        let locality = |node: u32, member: &Member| Locality { node, site: member.site };
        let of_client =
            |at: &u32| (hash("client", node(*at).as_str()), locality(*at, &self.clients[at]));
        let of_instance = |at: &u32| {
            let member = &self.instances[at];
            (hash("instance", instance(*at).as_str()), locality(member.on, member))
        };
        let mut census = Census::default();
        for at in self.serving() {
            let group = classes.group(of_instance(&at).1);
            census.add_instance(group, self.instances[&at].weight.into());
        }
        for (at, own) in &self.clients {
            census.add_client(classes.group(of_client(at).1), own.fan_out);
        }
        census.close();
        let mut pairs: Vec<(u64, u32, u32)> = Vec::new();
        for client in self.clients.keys() {
            let score = |at: u32| (classes.score(of_client(client), of_instance(&at)), *client, at);
            pairs.extend(self.serving().map(score));
        }
        pairs.sort_unstable();
        let (mut held, mut near, mut taken) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut linked = BTreeSet::new();
        for (score, client, at) in pairs.iter().rev().copied() {
            let (hash, locality) = of_client(&client);
            let limits =
                census.of_client(self.clients[&client].fan_out, hash, classes.group(locality));
            let room: Limits = census.of_instance(of_instance(&at).0);
            let held: &mut Held = held.entry(client).or_default();
            let near: &mut Held = near.entry(client).or_default();
            let taken: &mut Held = taken.entry(at).or_default();
            let has_near_room = !is_near(score) || limits.near.have_room(*near);
            if limits.all.have_room(*held) && has_near_room && room.have_room(*taken) {
                let weight = self.instances[&at].weight.into();
                held.add(weight);
                taken.add(0);
                if is_near(score) {
                    near.add(weight);
                }
                linked.insert(Linked { instance: instance(at), client });
            }
        }
        for (client, _) in self.clients.iter().filter(|(_, own)| own.fan_out > 0) {
            let is_bare = held.get(client).is_none_or(|held| held.links == 0);
            let best = pairs.iter().rev().find(|(_, own, _)| own == client);
            if let Some((_, _, at)) = best.filter(|_| is_bare) {
                linked.insert(Linked { instance: instance(*at), client: *client });
            }
        }
        linked
    }
}

/// Numbers by chance: `SplitMix64`.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }
}

#[derive(Debug, Clone)]
enum Step {
    Client(u32, Member),
    ClientGoes(u32),
    Instance(u32, Member),
    InstanceGoes(u32),
    Prefer(Vec<Nearness>),
    Settle,
}

fn member() -> impl Strategy<Value = Member> {
    let serving = prop_oneof![
        6 => Just(Serving::Ready),
        1 => Just(Serving::Draining),
        1 => Just(Serving::Unhealthy),
    ];
    let weight = prop_oneof![4 => Just(100), 1 => Just(0), 3 => 1u16..=1000];
    (0u32..4, 0u32..30, 0usize..9, weight, serving).prop_map(
        |(site, on, fan_out, weight, serving)| Member { site, on, fan_out, weight, serving },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let prefer = prop_oneof![
        Just(vec![]),
        Just(vec![Nearness::Node]),
        Just(vec![Nearness::Site]),
        Just(NODE_THEN_SITE.to_vec()),
        Just(vec![Nearness::Site, Nearness::Node]),
    ];
    prop_oneof![
        6 => (0u32..24, member()).prop_map(|(at, member)| Step::Client(at, member)),
        2 => (0u32..24).prop_map(Step::ClientGoes),
        6 => (0u32..24, member()).prop_map(|(at, member)| Step::Instance(at, member)),
        2 => (0u32..24).prop_map(Step::InstanceGoes),
        1 => prefer.prop_map(Step::Prefer),
        4 => Just(Step::Settle),
    ]
}

proptest! {
    #[test]
    fn subsets_follow_from_who_is_there(steps in prop::collection::vec(step(), 1..80)) {
        let mut fleet = Fleet::default();
        let mut before = BTreeSet::new();
        for step in steps.into_iter().chain([Step::Settle]) {
            match step {
                Step::Client(at, member) => fleet.put_client(at, member),
                Step::ClientGoes(at) => fleet.remove_client(at),
                Step::Instance(at, member) => fleet.put_instance(at, member),
                Step::InstanceGoes(at) => fleet.remove_instance(at),
                Step::Prefer(prefer) => fleet.prefer(&prefer),
                Step::Settle => {
                    let Moves { gained, lost } = fleet.subsets.settle();
                    let now = fleet.by_definition();
                    prop_assert_eq!(&linked(&fleet.subsets), &now);
                    prop_assert_eq!(gained, now.difference(&before).cloned().collect());
                    prop_assert_eq!(lost, before.difference(&now).cloned().collect());
                    let back: BTreeSet<Linked> = fleet.instances.keys().map(|at| instance(*at))
                        .flat_map(|instance| fleet.subsets.clients_of(&instance)
                            .map(|client| Linked { instance: instance.clone(), client })
                            .collect::<Vec<_>>())
                        .collect();
                    prop_assert_eq!(&back, &now);
                    before = now;
                }
            }
        }
    }

    #[test]
    fn every_client_has_an_instance_if_one_serves(
        clients in prop::collection::vec(member(), 1..60),
        instances in prop::collection::vec(member(), 1..60),
    ) {
        let mut fleet = Fleet::default();
        fleet.prefer(NODE_THEN_SITE);
        for (at, member) in (0..).zip(clients) {
            fleet.put_client(at, Member { fan_out: member.fan_out.max(1), ..member });
        }
        for (at, member) in (0..).zip(instances) {
            fleet.put_instance(at, member);
        }
        fleet.subsets.settle();
        let serving: BTreeSet<u32> = fleet.serving().collect();
        for client in fleet.clients.keys() {
            let subset = fleet.subset(*client);
            prop_assert_eq!(subset.is_empty(), serving.is_empty());
            prop_assert!(subset.iter().all(|at| serving.contains(at)), "{:?}", subset);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn connections_are_balanced_and_near_instances_come_first(
        seed in any::<u64>(), sites in 1u32..8, heavy in 100u16..=400,
    ) {
        let fleet = Fleet::random(seed, sites, &[100, 100, heavy, 50]);
        let loads = fleet.loads();
        let most = loads.iter().copied().fold(0.0, f64::max);
        prop_assert!(most <= 1.1, "the most loaded has {most} times the mean");
        let usual = fleet.usual_weight();
        for (client, member) in &fleet.clients {
            let subset = fleet.subset(*client);
            let weight: f64 = subset.iter().map(|at| f64::from(fleet.instances[at].weight)).sum();
            let is_full = weight <= 20.0 * usual + 400.0 || subset.len() == 11;
            prop_assert!(is_full, "{weight} of {usual} each");
            let is_near = |at: &u32| fleet.instances[at].site == member.site;
            let near = subset.iter().filter(|at| is_near(at)).count();
            // A far one is taken only if no near one has room, or near ones have their part.
            let refusing = fleet.instances.keys().filter(|at| is_near(at) && !subset.contains(at));
            let part: f64 = subset.iter().filter(|at| is_near(at))
                .map(|at| f64::from(fleet.instances[at].weight)).sum();
            let most_clients = fleet.clients.len() as f64 * 20.0 / 100.0 * (1.0 + SLACK);
            for at in refusing {
                let has = fleet.subsets.clients_of(&instance(*at)).count() as f64;
                prop_assert!(
                    part >= 13.0 * usual || near >= 30 || has >= most_clients,
                    "{near} near ones weigh {part} of {usual} each; {at} has {has} clients"
                );
            }
        }
        // What is on the client's own node comes before all others.
        let on_own = fleet.instances.iter().filter(|(_, own)| fleet.clients.contains_key(&own.on));
        for (at, own) in on_own {
            prop_assert!(fleet.subset(own.on).contains(at));
        }
    }

    #[test]
    fn few_connections_move_whatever_the_sites_are(seed in any::<u64>(), sites in 1u32..8) {
        check_moves(Fleet::random(seed, sites, &[100]), 0.015)?;
    }

    #[test]
    fn few_connections_move_with_random_sites_and_weights(
        seed in any::<u64>(), sites in 1u32..8, heavy in 100u16..=400,
    ) {
        // The usual weight changes with an instance that has another one: that moves some as well.
        check_moves(Fleet::random(seed, sites, &[100, 100, heavy]), 0.02)?;
    }
}

/// Checks that few connections move when instances go and come: `beyond` is the limit beyond its
/// own for one of the usual weight. A heavier one is as many usual ones.
fn check_moves(mut fleet: Fleet, beyond: f64) -> Result<(), TestCaseError> {
    let usual = fleet.usual_weight();
    for at in 0..8 {
        let (member, before) = (fleet.instances[&at], fleet.connections());
        fleet.remove_instance(at);
        let gone = fleet.subsets.settle();
        let others = gone.lost.iter().filter(|own| own.instance != instance(at));
        let moved = part_of(&before, others);
        let usual_ones = (f64::from(member.weight) / usual).max(1.0);
        prop_assert!(moved < beyond * usual_ones, "{moved} moved as {at} went");
        fleet.put_instance(at, member);
        let come = fleet.subsets.settle();
        let moved = part_of(&fleet.connections(), come.gained.iter());
        prop_assert!(moved <= 0.04 * usual_ones, "{moved} moved as {at} came");
        prop_assert_eq!((come.gained, come.lost), (gone.lost, gone.gained), "all is as before");
    }
    Ok(())
}

/// Returns the part of all connections that pairs have.
fn part_of<'a>(of: &BTreeMap<Linked, f64>, pairs: impl Iterator<Item = &'a Linked>) -> f64 {
    pairs.map(|pair| of[pair]).sum::<f64>() / of.values().sum::<f64>()
}

#[test]
fn instances_have_about_as_many_clients_each() {
    for (clients, instances, fan_out) in [(1000, 100, 20), (1000, 300, 20), (500, 40, 8)] {
        let fleet = Fleet::even(clients, instances, fan_out);
        let all = linked(&fleet.subsets);
        assert_eq!(all.len(), clients as usize * fan_out, "every client has its fan-out");
        let mean = all.len() as f64 / f64::from(instances);
        for at in 0..instances {
            let own = fleet.subsets.clients_of(&instance(at)).count() as f64;
            assert!(own <= mean * (1.0 + SLACK) + 2.0, "{own} of {mean}");
            assert!(own >= mean * 0.6, "{own} of {mean}");
        }
    }
}

#[test]
fn few_pairs_move_when_an_instance_goes_or_comes() {
    let mut fleet = Fleet::even(1000, 100, 20);
    for at in 0..100 {
        fleet.remove_instance(at);
        let gone = fleet.subsets.settle();
        let beyond = gone.lost.iter().filter(|linked| linked.instance != instance(at)).count();
        assert!(beyond < 20_000 * 15 / 1000, "{beyond} pairs moved as instance {at} went");
        fleet.put_instance(at, Member::instance(at, 100));
        let come = fleet.subsets.settle();
        assert!(come.lost.len() < 20_000 * 2 / 100, "{} moved as {at} came", come.lost.len());
        assert_eq!((come.gained, come.lost), (gone.lost, gone.gained), "all is as before");
    }
}

#[test]
fn an_instance_of_twice_the_weight_gets_twice_the_connections() {
    let mut fleet = Fleet::even(1000, 100, 20);
    (0..50).for_each(|at| fleet.put_instance(at, Member::instance(at, 200)));
    fleet.subsets.settle();
    // In proportion to the weights, all are equal.
    for load in fleet.loads() {
        assert!((0.8..1.1).contains(&load), "{load}");
    }
}

#[test]
fn instances_that_do_not_serve_are_in_no_subset_while_others_do() {
    let mut fleet = Fleet::even(50, 30, 8);
    let well = linked(&fleet.subsets);
    let ill = |serving| Member { serving, ..Member::instance(0, 100) };
    fleet.put_instance(0, ill(Serving::Draining));
    fleet.put_instance(1, ill(Serving::Unhealthy));
    fleet.put_instance(2, Member::instance(2, 0));
    fleet.subsets.settle();
    for at in 0..3 {
        assert_eq!(fleet.subsets.clients_of(&instance(at)).count(), 0);
    }
    assert!((0..50).all(|client| fleet.subset(client).len() == 8));
    // If all checks fail, it is the checks that are in doubt.
    (1..30).for_each(|at| fleet.put_instance(at, ill(Serving::Unhealthy)));
    fleet.subsets.settle();
    assert!((0..50).all(|client| fleet.subset(client).len() == 8));
    assert_eq!(fleet.subsets.clients_of(&instance(0)).count(), 0, "it is drained");
    (0..30).for_each(|at| fleet.put_instance(at, Member::instance(at, 100)));
    fleet.subsets.settle();
    assert_eq!(linked(&fleet.subsets), well);
}

#[test]
fn a_quarter_of_a_subset_is_far_although_there_are_enough_near_instances() {
    let mut fleet = Fleet::even(0, 0, 0);
    fleet.prefer(NODE_THEN_SITE);
    (0..90).for_each(|at| fleet.put_instance(at, Member::instance(at, 100).at(at % 2 + 1)));
    (0..200).for_each(|at| fleet.put_client(at, Member::client(20).at(at % 2 + 1)));
    fleet.subsets.settle();
    for client in 0..200 {
        let near = |at: &u32| at % 2 == client % 2;
        let subset = fleet.subset(client);
        assert_eq!((subset.len(), subset.iter().copied().filter(near).count()), (20, 15));
    }
}

#[test]
fn a_client_that_comes_moves_few_pairs_of_others() {
    let mut fleet = Fleet::even(1000, 100, 20);
    for at in 1000..1050 {
        fleet.put_client(at, Member::client(20));
        let moves = fleet.subsets.settle();
        assert!(moves.lost.len() < 100, "{} moved as client {at} came", moves.lost.len());
    }
}

#[test]
fn a_fan_out_that_grows_keeps_what_was_linked() {
    let mut fleet = Fleet::even(100, 60, 8);
    let before: BTreeSet<u32> = fleet.subset(7).into_iter().collect();
    fleet.put_client(7, Member::client(16));
    fleet.subsets.settle();
    let after: BTreeSet<u32> = fleet.subset(7).into_iter().collect();
    assert_eq!(after.len(), 16);
    assert!(before.difference(&after).count() <= 1, "{before:?} {after:?}");
    fleet.put_client(7, Member::client(8));
    fleet.subsets.settle();
    assert_eq!(fleet.subset(7).into_iter().collect::<BTreeSet<_>>(), before);
}
