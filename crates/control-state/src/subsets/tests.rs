use super::{Linked, Moves, SLACK, Subsets, hash, matching::mix};
use meshward_types::{NodeName, WorkloadId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn node(at: u32) -> NodeName {
    format!("node-{at}").parse().unwrap()
}

fn instance(at: u32) -> WorkloadId {
    format!("api-{at}").parse().unwrap()
}

fn linked(subsets: &Subsets) -> BTreeSet<Linked> {
    let of = |client| {
        subsets.of(client).map(move |instance| Linked { instance: instance.clone(), client })
    };
    subsets.clients().flat_map(of).collect()
}

/// Makes subsets of `clients` nodes, `fan_out` of `instances` instances each.
fn subsets(clients: u32, instances: u32, fan_out: usize) -> Subsets {
    let mut subsets = Subsets::default();
    (0..instances).for_each(|at| subsets.add_instance(&instance(at)));
    (0..clients).for_each(|at| subsets.put_client(at, &node(at), fan_out));
    subsets.settle();
    subsets
}

/// The assignment by definition: the pairs of the highest scores first, while both have room.
fn by_definition(clients: &BTreeMap<u32, usize>, instances: &BTreeSet<u32>) -> BTreeSet<Linked> {
    let of_instance = |at: u32| hash("instance", instance(at).as_str());
    let total: usize = clients.values().map(|fan_out| *fan_out.min(&instances.len())).sum();
    let share = ((total as u128 * 21) << 16) / (instances.len().max(1) as u128 * 20);
    let places = |at: u32| ((share + u128::from(of_instance(at) >> 48)) >> 16).max(1) as usize;
    let mut room: BTreeMap<u32, usize> = instances.iter().map(|at| (*at, places(*at))).collect();
    let mut wanted = clients.clone();
    let mut pairs: Vec<(u64, u32, u32)> = Vec::new();
    for &client in clients.keys() {
        let own = hash("client", node(client).as_str());
        pairs.extend(instances.iter().map(|at| (mix(own ^ of_instance(*at)), client, *at)));
    }
    pairs.sort_unstable();
    let mut linked = BTreeSet::new();
    for (_, client, at) in pairs.into_iter().rev() {
        if wanted[&client] > 0 && room[&at] > 0 {
            *wanted.get_mut(&client).unwrap() -= 1;
            *room.get_mut(&at).unwrap() -= 1;
            linked.insert(Linked { instance: instance(at), client });
        }
    }
    linked
}

#[derive(Debug, Clone)]
enum Step {
    Client(u32, usize),
    ClientGoes(u32),
    Instance(u32),
    InstanceGoes(u32),
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u32..24, 0usize..9).prop_map(|(at, fan_out)| Step::Client(at, fan_out)),
        1 => (0u32..24).prop_map(Step::ClientGoes),
        3 => (0u32..24).prop_map(Step::Instance),
        1 => (0u32..24).prop_map(Step::InstanceGoes),
        2 => Just(Step::Settle),
    ]
}

proptest! {
    #[test]
    fn subsets_follow_from_who_is_there(steps in prop::collection::vec(step(), 1..80)) {
        let (mut subsets, mut clients, mut instances) =
            (Subsets::default(), BTreeMap::new(), BTreeSet::new());
        let mut before = BTreeSet::new();
        for step in steps.into_iter().chain([Step::Settle]) {
            match step {
                Step::Client(at, fan_out) => {
                    clients.insert(at, fan_out);
                    subsets.put_client(at, &node(at), fan_out);
                }
                Step::ClientGoes(at) => {
                    clients.remove(&at);
                    subsets.remove_client(at);
                }
                Step::Instance(at) => {
                    instances.insert(at);
                    subsets.add_instance(&instance(at));
                }
                Step::InstanceGoes(at) => {
                    instances.remove(&at);
                    subsets.remove_instance(&instance(at));
                }
                Step::Settle => {
                    let Moves { gained, lost } = subsets.settle();
                    let now = by_definition(&clients, &instances);
                    prop_assert_eq!(&linked(&subsets), &now);
                    prop_assert_eq!(gained, now.difference(&before).cloned().collect());
                    prop_assert_eq!(lost, before.difference(&now).cloned().collect());
                    let back: BTreeSet<Linked> = instances.iter().map(|at| instance(*at))
                        .flat_map(|instance| subsets.clients_of(&instance)
                            .map(|client| Linked { instance: instance.clone(), client })
                            .collect::<Vec<_>>())
                        .collect();
                    prop_assert_eq!(&back, &now);
                    before = now;
                }
            }
        }
    }
}

#[test]
fn instances_have_about_as_many_clients_each() {
    for (clients, instances, fan_out) in [(1000, 100, 20), (1000, 300, 20), (500, 40, 8)] {
        let subsets = subsets(clients, instances, fan_out);
        let all = linked(&subsets);
        assert_eq!(all.len(), clients as usize * fan_out, "every client has its fan-out");
        let mean = all.len() as f64 / f64::from(instances);
        for at in 0..instances {
            let own = subsets.clients_of(&instance(at)).count() as f64;
            assert!(own <= mean * (1.0 + SLACK) + 1.0, "{own} of {mean}");
            assert!(own >= mean * 0.6, "{own} of {mean}");
        }
    }
}

#[test]
fn few_pairs_move_when_an_instance_goes_or_comes() {
    let mut subsets = subsets(1000, 100, 20);
    for at in 0..100 {
        subsets.remove_instance(&instance(at));
        let gone = subsets.settle();
        let beyond = gone.lost.iter().filter(|linked| linked.instance != instance(at)).count();
        assert!(beyond < 20_000 * 15 / 1000, "{beyond} pairs moved as instance {at} went");
        subsets.add_instance(&instance(at));
        let come = subsets.settle();
        assert!(come.lost.len() < 20_000 * 2 / 100, "{} moved as {at} came", come.lost.len());
        assert_eq!((come.gained, come.lost), (gone.lost, gone.gained), "all is as before");
    }
}

#[test]
fn a_client_that_comes_moves_few_pairs_of_others() {
    let mut subsets = subsets(1000, 100, 20);
    for at in 1000..1050 {
        subsets.put_client(at, &node(at), 20);
        let moves = subsets.settle();
        assert!(moves.lost.len() < 100, "{} moved as client {at} came", moves.lost.len());
    }
}

#[test]
fn a_fan_out_that_grows_keeps_what_was_linked() {
    let mut subsets = subsets(100, 60, 8);
    let before: BTreeSet<WorkloadId> = subsets.of(7).cloned().collect();
    subsets.put_client(7, &node(7), 16);
    subsets.settle();
    let after: BTreeSet<WorkloadId> = subsets.of(7).cloned().collect();
    assert_eq!(after.len(), 16);
    assert!(before.difference(&after).count() <= 1, "{before:?} {after:?}");
    subsets.put_client(7, &node(7), 8);
    subsets.settle();
    assert_eq!(subsets.of(7).cloned().collect::<BTreeSet<_>>(), before);
}
