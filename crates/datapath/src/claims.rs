//! Claims of what only one may have: an address, a key. The coordinator sees to it that nothing is
//! claimed twice; should it happen all the same, the first claim holds, and the next one does once
//! the first is withdrawn.

use foldhash::fast::RandomState;
use hashbrown::{HashMap, hash_map::Entry};
use std::hash::Hash;

/// A claim: the claimant and the claimed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim<O, V> {
    owner: O,
    value: V,
}

/// Claims by what is claimed.
#[derive(Debug)]
pub(crate) struct Claims<K, O, V> {
    /// The claims that hold.
    first: HashMap<K, Claim<O, V>, RandomState>,
    /// The claims that wait, in their order: there are hardly ever any.
    waiting: HashMap<K, Vec<Claim<O, V>>>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { first: HashMap::default(), waiting: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, O: Copy + Eq, V: Copy> Claims<K, O, V> {
    /// Returns the value of the claim that holds.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.first.get(key).map(|claim| &claim.value)
    }

    /// Adds a claim, or replaces the value of the owner's own claim, which keeps its rank.
    /// `outranks`: `true` if the first value goes before the second, whichever was there first.
    pub(crate) fn put(&mut self, key: K, owner: O, value: V, outranks: impl Fn(&V, &V) -> bool) {
        let claim = Claim { owner, value };
        let first = match self.first.entry(key) {
            Entry::Vacant(free) => {
                free.insert(claim);
                return;
            }
            Entry::Occupied(taken) => taken.into_mut(),
        };
        if first.owner == owner {
            first.value = value;
            return;
        }
        let waiting = self.waiting.entry(key).or_default();
        if let Some(own) = waiting.iter_mut().find(|claim| claim.owner == owner) {
            own.value = value;
            return;
        }
        if outranks(&value, &first.value) {
            waiting.insert(0, std::mem::replace(first, claim));
            return;
        }
        let at = waiting.iter().position(|other| outranks(&value, &other.value));
        waiting.insert(at.unwrap_or(waiting.len()), claim);
    }

    /// Withdraws a claim. If it held, the next one holds from now on.
    pub(crate) fn remove(&mut self, key: &K, owner: O) {
        let Some(first) = self.first.get_mut(key) else { return };
        let next = match self.waiting.get_mut(key) {
            None => None,
            Some(waiting) if first.owner == owner => Some(waiting.remove(0)),
            Some(waiting) => {
                waiting.retain(|claim| claim.owner != owner);
                None
            }
        };
        match next {
            Some(next) => *first = next,
            None if first.owner == owner => drop(self.first.remove(key)),
            None => {}
        }
        if self.waiting.get(key).is_some_and(Vec::is_empty) {
            self.waiting.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Put { key: u8, owner: u8, value: u8 },
        Remove { key: u8, owner: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..3, 0u8..5, any::<u8>())
                .prop_map(|(key, owner, value)| Step::Put { key, owner, value }),
            2 => (0u8..3, 0u8..5).prop_map(|(key, owner)| Step::Remove { key, owner }),
        ]
    }

    proptest! {
        /// Beside a list of all claims in the order in which they came.
        #[test]
        fn the_first_of_those_that_stand_holds(steps in prop::collection::vec(step(), 0..60)) {
            // Even owners outrank odd ones.
            let outranks =
                |a: &(u8, u8), b: &(u8, u8)| a.0.is_multiple_of(2) && !b.0.is_multiple_of(2);
            let (mut claims, mut all) = (Claims::default(), Vec::<(u8, (u8, u8))>::new());
            for step in steps {
                match step {
                    Step::Put { key, owner, value } => {
                        claims.put(key, owner, (owner, value), outranks);
                        match all.iter_mut().find(|(own, claim)| *own == key && claim.0 == owner) {
                            Some((_, claim)) => claim.1 = value,
                            None => all.push((key, (owner, value))),
                        }
                    }
                    Step::Remove { key, owner } => {
                        claims.remove(&key, owner);
                        all.retain(|(own, claim)| *own != key || claim.0 != owner);
                    }
                }
                for key in 0..3 {
                    let mut own = all.iter().filter(|(own, _)| *own == key).map(|(_, claim)| claim);
                    let best =
                        own.clone().find(|claim| claim.0.is_multiple_of(2)).or_else(|| own.next());
                    prop_assert_eq!(claims.get(&key), best);
                }
            }
            prop_assert!(claims.waiting.values().all(|waiting| !waiting.is_empty()));
        }
    }
}
