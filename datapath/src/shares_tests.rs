use super::*;
use proptest::prelude::*;

struct Thing {
    class: Class,
    until: u32,
    used: bool,
}

impl Kept for Thing {
    fn class(&self) -> Class {
        self.class
    }
    fn deadline(&self) -> u32 {
        self.until
    }
    fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }
}

fn thing(class: Class) -> Thing {
    Thing { class, until: 10, used: false }
}

fn add(table: &mut SharedTable<u32, Thing>, key: u32, owner: Owner) {
    table.insert(key, key, owner, thing(Class::Fleeting));
}

fn has(table: &SharedTable<u32, Thing>, key: u32) -> bool {
    table.find(key, &key).is_some()
}

#[test]
fn who_is_over_its_share_loses_its_own_oldest() {
    let mut table = SharedTable::new(100);
    let [flooder, quiet] = [Owner::Workload(1), Owner::Workload(2)];
    (0..40).for_each(|key| add(&mut table, key, quiet));
    (1000..2000).for_each(|key| add(&mut table, key, flooder));
    assert!((0..40).all(|key| has(&table, key)), "the other's stay");
    assert!((1940..2000).all(|key| has(&table, key)) && !has(&table, 1939));
    // The quiet one may have as much.
    (40..50).for_each(|key| add(&mut table, key, quiet));
    assert!((0..50).all(|key| has(&table, key)));
    add(&mut table, 50, quiet);
    assert!(!has(&table, 0) && has(&table, 50) && table.len() == 100);
}

#[test]
fn workloads_of_a_peer_have_shares_of_the_peers_share() {
    let mut table = SharedTable::new(100);
    (0..20).for_each(|key| add(&mut table, key, Owner::Peer(7, 1)));
    (100..140).for_each(|key| add(&mut table, key, Owner::Workload(7)));
    (1000..2000).for_each(|key| add(&mut table, key, Owner::Peer(7, 2)));
    (2000..3000).for_each(|key| add(&mut table, key, Owner::Peer(7, 3)));
    assert!((0..20).chain(100..140).all(|key| has(&table, key)));
    assert_eq!((1000..3000).filter(|key| has(&table, *key)).count(), 40);
    assert_eq!((2000..3000).filter(|key| has(&table, *key)).count(), 20);
}

#[test]
fn what_is_lasting_goes_last_and_what_is_used_has_another_chance() {
    let mut table = SharedTable::new(10);
    let owner = Owner::Workload(0);
    (0..5).for_each(|key| _ = table.insert(key, key, owner, thing(Class::Lasting)));
    (5..10).for_each(|key| add(&mut table, key, owner));
    let used = table.find(5, &5).unwrap();
    table.value(used).used = true;
    (10..14).for_each(|key| add(&mut table, key, owner));
    assert!((0..6).all(|key| has(&table, key)) && !(6..10).any(|key| has(&table, key)));
    (20..60).for_each(|key| _ = table.insert(key, key, owner, thing(Class::Lasting)));
    assert!((50..60).all(|key| has(&table, key)), "a new one is not the one that goes");
}

#[derive(Debug, Clone)]
enum Step {
    Add(u32, u32, u8, u32),
    Remove(u32),
    Become(u32, u8),
    Sweep(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..64u32, 0..9u32, 0..3u8, 1..9u32).prop_map(|(k, o, c, d)| Step::Add(k, o, c, d)),
        2 => (0..64u32).prop_map(Step::Remove),
        3 => (0..64u32, 0..3u8).prop_map(|(k, c)| Step::Become(k, c)),
        1 => (0..9u32).prop_map(Step::Sweep),
    ]
}

fn owner(number: u32) -> Owner {
    if number < 3 { Owner::Workload(number) } else { Owner::Peer(number % 2, number) }
}

fn class(number: u8) -> Class {
    [Class::Fleeting, Class::Denied, Class::Lasting][usize::from(number)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Beside a list of who has what: nothing is lost but by eviction, and nobody who holds less than a fair share
    /// loses anything.
    #[test]
    fn nobody_below_its_share_loses_anything(limit in 1..40usize, steps in prop::collection::vec(step(), 1..300)) {
        let mut table = SharedTable::new(limit);
        let mut model: Vec<(u32, u32, u32)> = Vec::new();
        let group = |number: u32| match owner(number) {
            Owner::Workload(slot) => (false, slot),
            Owner::Peer(peer, _) => (true, peer),
        };
        for step in steps {
            match step {
                Step::Add(key, own, kind, until) if !has(&table, key) => {
                    table.insert(key, key, owner(own), Thing { class: class(kind), until, used: kind == 1 });
                    model.push((key, own, until));
                    if model.len() > limit {
                        let gone: Vec<_> = model.iter().filter(|(key, ..)| !has(&table, *key)).copied().collect();
                        prop_assert_eq!(gone.len(), 1);
                        let (lost, loser, _) = gone[0];
                        prop_assert!(lost != key);
                        let held = |of: u32| model.iter().filter(|(_, own, _)| group(*own) == group(of)).count();
                        let groups: std::collections::HashSet<_> = model.iter().map(|(_, own, _)| group(*own)).collect();
                        prop_assert!(held(loser) * groups.len() >= limit, "{loser} lost {lost} for {own}");
                        let of = |of: u32| model.iter().filter(|(_, own, _)| *own == of).count();
                        let within: std::collections::HashSet<_> =
                            model.iter().filter(|(_, own, _)| group(*own) == group(loser)).map(|(_, own, _)| *own).collect();
                        prop_assert!(of(loser) * within.len() >= held(loser) - 1);
                        model.retain(|(key, ..)| *key != lost);
                    }
                }
                Step::Remove(key) => {
                    if let Some(id) = table.find(key, &key) {
                        table.remove(id);
                        model.retain(|(own, ..)| *own != key);
                    }
                }
                Step::Become(key, kind) => {
                    if let Some(id) = table.find(key, &key) {
                        table.value(id).class = class(kind);
                        table.settle(id);
                    }
                }
                Step::Sweep(now) => {
                    while !table.sweep(now, 3) {}
                    model.retain(|(.., until)| *until > now);
                }
                Step::Add(..) => {}
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert!(model.iter().all(|(key, ..)| has(&table, *key)));
            let classes = [Class::Fleeting, Class::Denied, Class::Lasting];
            prop_assert_eq!(classes.map(|class| table.len_of(class)).iter().sum::<usize>(), model.len());
            prop_assert!(!model.is_empty() || (table.owners.is_empty() && table.groups.is_empty()));
        }
    }
}
