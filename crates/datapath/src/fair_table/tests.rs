use super::{
    entry::{Evictable, EvictionClass},
    ledger::{Account, Ledger, MAX_BATCH, MIN_OWED, OWED_PART},
    table::FairTable,
};
use crate::{
    index::{PeerIndex, WorkloadIndex},
    owner::QuotaOwner,
};
use proptest::prelude::*;
use std::sync::Arc;

struct Thing {
    class: EvictionClass,
    until: u32,
    used: bool,
}

impl Evictable for Thing {
    fn eviction_class(&self) -> EvictionClass {
        self.class
    }
    fn expires_at(&self) -> u32 {
        self.until
    }
    fn reset_referenced(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }
}

fn thing(class: EvictionClass) -> Thing {
    Thing { class, until: 10, used: false }
}

fn add(table: &mut FairTable<u32, Thing>, key: u32, owner: QuotaOwner) {
    table.insert(key, key, owner, thing(EvictionClass::Fleeting));
}

fn has(table: &FairTable<u32, Thing>, key: u32) -> bool {
    table.find(key, &key).is_some()
}

#[test]
fn an_owner_over_its_share_loses_its_own_oldest() {
    let mut table = FairTable::new(100);
    let [flooder, quiet] =
        [QuotaOwner::Workload(WorkloadIndex(1)), QuotaOwner::Workload(WorkloadIndex(2))];
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
    let mut table = FairTable::new(100);
    (0..20).for_each(|key| {
        add(&mut table, key, QuotaOwner::Remote { peer: PeerIndex(7), workload: 1 });
    });
    (100..140).for_each(|key| add(&mut table, key, QuotaOwner::Workload(WorkloadIndex(7))));
    (1000..2000).for_each(|key| {
        add(&mut table, key, QuotaOwner::Remote { peer: PeerIndex(7), workload: 2 });
    });
    (2000..3000).for_each(|key| {
        add(&mut table, key, QuotaOwner::Remote { peer: PeerIndex(7), workload: 3 });
    });
    assert!((0..20).chain(100..140).all(|key| has(&table, key)));
    assert_eq!((1000..3000).filter(|key| has(&table, *key)).count(), 40);
    assert_eq!((2000..3000).filter(|key| has(&table, *key)).count(), 20);
}

#[test]
fn lasting_entries_go_last_and_used_ones_have_another_chance() {
    let mut table = FairTable::new(10);
    let owner = QuotaOwner::Workload(WorkloadIndex(0));
    (0..5).for_each(|key| _ = table.insert(key, key, owner, thing(EvictionClass::Lasting)));
    (5..10).for_each(|key| add(&mut table, key, owner));
    let used = table.find(5, &5).unwrap();
    table.value(used).used = true;
    (10..14).for_each(|key| add(&mut table, key, owner));
    assert!((0..6).all(|key| has(&table, key)) && !(6..10).any(|key| has(&table, key)));
    (20..60).for_each(|key| _ = table.insert(key, key, owner, thing(EvictionClass::Lasting)));
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

fn owner(number: u32) -> QuotaOwner {
    if number < 3 {
        QuotaOwner::Workload(WorkloadIndex(number))
    } else {
        QuotaOwner::Remote { peer: PeerIndex(number % 2), workload: number }
    }
}

fn class(number: u8) -> EvictionClass {
    [EvictionClass::Fleeting, EvictionClass::Denied, EvictionClass::Lasting][usize::from(number)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Beside a list of who has what: nothing is lost but by eviction, and nobody who holds less
    /// than a fair share loses anything.
    #[test]
    fn nobody_below_its_share_loses_anything(
        limit in 1..40usize,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut table = FairTable::new(limit);
        let mut model: Vec<(u32, u32, u32)> = Vec::new();
        let group = |number: u32| match owner(number) {
            QuotaOwner::Workload(WorkloadIndex(workload)) => (false, workload),
            QuotaOwner::Remote { peer: PeerIndex(peer), .. } => (true, peer),
        };
        for step in steps {
            match step {
                Step::Add(key, own, kind, until) if !has(&table, key) => {
                    table.insert(
                        key,
                        key,
                        owner(own),
                        Thing { class: class(kind), until, used: kind == 1 },
                    );
                    model.push((key, own, until));
                    if model.len() > limit {
                        let gone: Vec<_> =
                            model.iter().filter(|(key, ..)| !has(&table, *key)).copied().collect();
                        prop_assert_eq!(gone.len(), 1);
                        let (lost, loser, _) = gone[0];
                        prop_assert!(lost != key);
                        let count_of = |of: u32| {
                            model.iter().filter(|(_, own, _)| group(*own) == group(of)).count()
                        };
                        let groups: std::collections::HashSet<_> =
                            model.iter().map(|(_, own, _)| group(*own)).collect();
                        prop_assert!(
                            count_of(loser) * groups.len() >= limit,
                            "{loser} lost {lost} for {own}"
                        );
                        let of = |of: u32| model.iter().filter(|(_, own, _)| *own == of).count();
                        let within: std::collections::HashSet<_> = model
                            .iter()
                            .filter(|(_, own, _)| group(*own) == group(loser))
                            .map(|(_, own, _)| *own)
                            .collect();
                        prop_assert!(of(loser) * within.len() >= count_of(loser) - 1);
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
                        table.reclassify(id);
                    }
                }
                Step::Sweep(now) => {
                    while !table.expire(now, 3) {}
                    model.retain(|(.., until)| *until > now);
                }
                Step::Add(..) => {}
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert!(model.iter().all(|(key, ..)| has(&table, *key)));
            let classes = [EvictionClass::Fleeting, EvictionClass::Denied, EvictionClass::Lasting];
            prop_assert_eq!(
                classes.map(|class| table.len_of(class)).iter().sum::<usize>(),
                model.len()
            );
            prop_assert!(!model.is_empty() || (table.owners.is_empty()));
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Add { table: usize, owner: u32, count: u32 },
    Remove { table: usize, owner: u32, count: u32 },
    Pay(usize),
}

const TABLES: usize = 5;

fn a_move() -> impl Strategy<Value = Move> {
    let entry = || (0..TABLES, 0..9u32, 1..200u32);
    prop_oneof![
        5 => entry().prop_map(|(table, owner, count)| Move::Add { table, owner, count }),
        2 => entry().prop_map(|(table, owner, count)| Move::Remove { table, owner, count }),
        1 => (0..TABLES).prop_map(Move::Pay),
    ]
}

fn count_of(table: &FairTable<u32, Thing>, own: u32) -> usize {
    table.owners.get(&owner(own)).map_or(0, |id| table.owned[*id as usize].count as usize)
}

/// Returns the number of entries that an owner may add without asking the ledger.
fn spare(table: &FairTable<u32, Thing>, own: u32) -> usize {
    table.owners.get(&owner(own)).map_or(0, |id| table.owned[*id as usize].credit as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Tables that share a bound: what they hold and may add without asking is what the ledger
    /// says, the bound holds but for what is owed, who asks for less than a fair share gets it, and
    /// nobody who holds less loses anything to another.
    #[test]
    fn tables_share_a_bound(
        limit in 1..3000usize,
        moves in prop::collection::vec(a_move(), 1..40),
    ) {
        let ledger = Arc::new(Ledger::new(limit));
        let mut tables: Vec<FairTable<u32, Thing>> =
            (0..TABLES).map(|_| FairTable::with_ledger(ledger.clone())).collect();
        let all = |tables: &[FairTable<u32, Thing>], own| {
            tables.iter().map(|table| count_of(table, own)).sum::<usize>()
        };
        let (mut key, mut keys) = (0, Vec::<(usize, u32, u32)>::new());
        for change in moves {
            match change {
                Move::Add { table, owner: own, count } => {
                    for _ in 0..count {
                        let before: [usize; 9] =
                            std::array::from_fn(|own| all(&tables, own as u32));
                        key += 1;
                        tables[table].insert(key, key, owner(own), thing(EvictionClass::Fleeting));
                        prop_assert!(
                            has(&tables[table], key),
                            "the new one is not the one that goes"
                        );
                        keys.push((table, own, key));
                        for other in (0..9).filter(|other| *other != own) {
                            let now = all(&tables, other);
                            // Who owes was over its share when it came to owe, by no more than what
                            // it had not used yet. The least share is a third of a fifth: there are
                            // three workloads, and two peers with three each.
                            let spare: usize = tables.iter().map(|table| spare(table, other)).sum();
                            let slack = spare + 4 * TABLES + MAX_BATCH;
                            prop_assert!(
                                now >= before[other as usize]
                                    || (before[other as usize] + slack) * 15 >= limit
                            );
                        }
                    }
                }
                Move::Remove { table, owner: own, count } => {
                    let those = keys.iter().filter(|(at, by, key)| {
                        (*at, *by) == (table, own) && has(&tables[table], *key)
                    });
                    let those: Vec<u32> =
                        those.map(|(.., key)| *key).take(count as usize).collect();
                    for key in those {
                        let id = tables[table].find(key, &key).unwrap();
                        tables[table].remove(id);
                    }
                }
                Move::Pay(table) => while tables[table].pay_debts() {},
            }
            keys.retain(|(table, _, key)| has(&tables[*table], *key));
            let length: usize = tables.iter().map(FairTable::len).sum();
            prop_assert_eq!(length, keys.len());
            for own in 0..9 {
                let used =
                    all(&tables, own) + tables.iter().map(|table| spare(table, own)).sum::<usize>();
                let Account { granted, owed } = ledger.account(owner(own));
                prop_assert_eq!(used, granted + owed, "owner {}", own);
            }
            prop_assert!(length <= limit + ledger.owed());
            prop_assert!(
                ledger.owed() <= (limit / OWED_PART).max(MIN_OWED) + MAX_BATCH + 9 * TABLES
            );
        }
        for table in &mut tables {
            while table.pay_debts() {}
        }
        prop_assert_eq!(ledger.owed(), 0);
        prop_assert!(tables.iter().map(FairTable::len).sum::<usize>() <= limit);
        for (table, _, key) in keys {
            if let Some(id) = tables[table].find(key, &key) {
                tables[table].remove(id);
            }
        }
        prop_assert!(
            tables.iter().all(|table| table.len() == 0 && table.owners.is_empty())
                && ledger.is_empty()
        );
    }
}

#[test]
fn an_owner_that_fills_one_table_makes_room_for_others_in_another() {
    let ledger = Arc::new(Ledger::new(10_000));
    let [mut first, mut second] =
        [FairTable::with_ledger(ledger.clone()), FairTable::with_ledger(ledger.clone())];
    (0..20_000).for_each(|key| add(&mut first, key, QuotaOwner::Workload(WorkloadIndex(1))));
    assert_eq!(first.len(), 10_000);
    (0..600).for_each(|key| add(&mut second, key, QuotaOwner::Workload(WorkloadIndex(2))));
    assert_eq!((second.len(), ledger.owes()), (600, true), "nothing of the quiet one went");
    add(&mut first, 20_000, QuotaOwner::Workload(WorkloadIndex(1)));
    while first.pay_debts() {}
    assert!(first.len() + second.len() <= 10_000 && first.len() > 9_300);
    assert!(has(&first, 20_000) && (0..600).all(|key| has(&second, key)));
}
