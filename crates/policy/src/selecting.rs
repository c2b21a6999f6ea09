//! Indices of selectors and labels: they find each other under a label that the selector requires,
//! without trying all.

use crate::budget::{Budget, Exhausted};
use meshward_types::{LabelKey, Labels, Selector, selector::Requirement};
use std::collections::{BTreeSet, HashMap};

/// Selectors by number, found by the labels that they match.
#[derive(Debug, Clone)]
pub(crate) struct Selecting<T> {
    by_value: HashMap<LabelKey, HashMap<String, Vec<(T, Selector)>>>,
    by_key: HashMap<LabelKey, Vec<(T, Selector)>>,
    /// The selectors that require no label.
    always: Vec<(T, Selector)>,
}

impl<T> Default for Selecting<T> {
    fn default() -> Self {
        Self { by_value: HashMap::new(), by_key: HashMap::new(), always: Vec::new() }
    }
}

/// Returns the requirement under which a selector is indexed: the one with the fewest values.
fn anchor(selector: &Selector) -> Option<(&LabelKey, &Requirement)> {
    let weight = |(_, requirement): &(&LabelKey, &Requirement)| match requirement {
        Requirement::In(values) => values.len(),
        _ => usize::MAX,
    };
    let present = |(_, requirement): &(_, &Requirement)| {
        matches!(requirement, Requirement::In(_) | Requirement::Exists)
    };
    selector.requirements().filter(present).min_by_key(weight)
}

impl<T: Copy + Ord> Selecting<T> {
    pub(crate) fn insert(&mut self, id: T, selector: &Selector) {
        self.visit_lists(selector, |list| list.push((id, selector.clone())));
    }

    pub(crate) fn remove(&mut self, id: T, selector: &Selector) {
        self.visit_lists(selector, |list| list.retain(|(own, _)| *own != id));
    }

    /// Visits the lists that have a selector, or are to have it: one for each value of the
    /// requirement under which it is indexed.
    fn visit_lists(&mut self, selector: &Selector, mut visit: impl FnMut(&mut Vec<(T, Selector)>)) {
        match anchor(selector) {
            Some((key, Requirement::In(values))) => {
                let values: BTreeSet<&String> = values.iter().collect();
                let by_value = self.by_value.entry(key.clone()).or_default();
                for value in values {
                    visit(by_value.entry(value.clone()).or_default());
                }
            }
            Some((key, _)) => visit(self.by_key.entry(key.clone()).or_default()),
            None => visit(&mut self.always),
        }
    }

    /// Returns the numbers of the selectors that match these labels, in ascending order.
    pub(crate) fn select(&self, labels: &Labels) -> Vec<T> {
        // Without a bound, this cannot fail.
        self.select_within(labels, &Budget::unlimited()).unwrap_or_default()
    }

    /// Returns the numbers of the matching selectors, within a budget.
    pub(crate) fn select_within(
        &self,
        labels: &Labels,
        budget: &Budget,
    ) -> Result<Vec<T>, Exhausted> {
        let by_label = labels.iter().flat_map(|(key, value)| {
            let by_value = self.by_value.get(key).and_then(|values| values.get(value));
            by_value.into_iter().chain(self.by_key.get(key)).flatten()
        });
        let mut selected = Vec::new();
        for (id, selector) in by_label.chain(&self.always) {
            budget.spend(selector.weight())?;
            if selector.matches(labels) {
                selected.push(*id);
            }
        }
        selected.sort_unstable();
        Ok(selected)
    }
}

/// Label sets by number, found by the selectors that match them.
#[derive(Debug, Clone)]
pub(crate) struct Selected<T>(HashMap<LabelKey, HashMap<String, BTreeSet<T>>>);

impl<T> Default for Selected<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Ord> Selected<T> {
    pub(crate) fn insert(&mut self, id: T, labels: &Labels) {
        for (key, value) in labels.iter() {
            self.0.entry(key.clone()).or_default().entry(value.to_owned()).or_default().insert(id);
        }
    }

    pub(crate) fn remove(&mut self, id: T, labels: &Labels) {
        for (key, value) in labels.iter() {
            if let Some(values) = self.0.get_mut(key)
                && let Some(ids) = values.get_mut(value)
            {
                ids.remove(&id);
                if ids.is_empty() {
                    values.remove(value);
                }
                if values.is_empty() {
                    self.0.remove(key);
                }
            }
        }
    }

    /// Returns numbers that include all that a selector matches. `all` are all numbers.
    pub(crate) fn candidates<'a>(
        &self,
        selector: &Selector,
        all: impl Iterator<Item = &'a T>,
    ) -> Vec<T>
    where
        T: 'a,
    {
        let under = |key: &LabelKey| self.0.get(key);
        match anchor(selector) {
            Some((key, Requirement::In(values))) => {
                let values: BTreeSet<&String> = values.iter().collect();
                let sets = values.into_iter().filter_map(|value| under(key)?.get(value));
                sets.flatten().copied().collect()
            }
            Some((key, _)) => {
                under(key).into_iter().flat_map(HashMap::values).flatten().copied().collect()
            }
            None => all.copied().collect(),
        }
    }
}
