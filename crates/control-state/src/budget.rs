//! The budget of a node: limits of what it uses of the coordinator, and its usage.

use meshward_control_proto::{WorkloadReport, encoded_size};
use meshward_types::WorkloadId;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
};

/// The limits of each node: the `[nodes]` table of the configuration. A node that exceeds one gets
/// an error that names it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeBudget {
    /// The number of workloads.
    pub workloads: usize,
    /// The number of addresses and prefixes of all workloads together.
    pub addresses: usize,
    /// The number of different label sets, each of which is an identity.
    pub label_sets: usize,
    /// The size of the reports of its workloads, in KiB.
    pub reported_kib: usize,
    /// The rate of messages that change something, per second, with bursts of twenty times as many.
    /// Further ones wait.
    pub changes_per_second: f64,
    /// The rate of new sessions, per minute.
    pub sessions_per_minute: f64,
    /// The size of its messages that wait for processing, in KiB.
    pub waiting_kib: usize,
}

impl Default for NodeBudget {
    fn default() -> Self {
        Self {
            workloads: 4096,
            addresses: 16_384,
            label_sets: 1024,
            reported_kib: 4096,
            changes_per_second: 200.0,
            sessions_per_minute: 60.0,
            waiting_kib: 2048,
        }
    }
}

/// The usage of a node's workloads during a session, which begins with a report of all of them.
#[derive(Debug, Default)]
pub struct Usage {
    workloads: HashMap<WorkloadId, Share>,
    label_sets: HashMap<u64, usize>,
    total: Share,
    hasher: RandomState,
}

/// The usage of one workload, or of all.
#[derive(Debug, Default, Clone, Copy)]
struct Share {
    addresses: usize,
    bytes: usize,
    label_set: u64,
}

impl Usage {
    /// Counts a report, in place of an earlier one of the same workload.
    ///
    /// # Errors
    /// Names the limit that it exceeds. Then the workload is not counted.
    pub fn add(&mut self, report: &WorkloadReport, budget: &NodeBudget) -> Result<(), String> {
        self.remove(&report.id);
        let share = Share {
            addresses: report.addresses.len() + report.prefixes.len(),
            bytes: encoded_size(report),
            label_set: self.hasher.hash_one((&report.network, &report.labels, &report.accepts)),
        };
        let over = |name: &str, most: usize, of: &str| {
            Err(format!(
                "the node is over its budget of {most} {of} (`nodes.{name}` in the coordinator's \
                configuration)"
            ))
        };
        let is_new_set = !self.label_sets.contains_key(&share.label_set);
        if self.workloads.len() >= budget.workloads {
            return over("workloads", budget.workloads, "workloads");
        }
        if self.total.addresses + share.addresses > budget.addresses {
            return over("addresses", budget.addresses, "addresses and prefixes");
        }
        if is_new_set && self.label_sets.len() >= budget.label_sets {
            return over("label_sets", budget.label_sets, "sets of labels");
        }
        if self.total.bytes + share.bytes > budget.reported_kib << 10 {
            return over("reported_kib", budget.reported_kib, "KiB of reports");
        }
        self.total.addresses += share.addresses;
        self.total.bytes += share.bytes;
        *self.label_sets.entry(share.label_set).or_default() += 1;
        self.workloads.insert(report.id.clone(), share);
        Ok(())
    }

    /// Removes a workload.
    pub fn remove(&mut self, id: &WorkloadId) {
        let Some(share) = self.workloads.remove(id) else { return };
        self.total.addresses -= share.addresses;
        self.total.bytes -= share.bytes;
        if let Entry::Occupied(mut count) = self.label_sets.entry(share.label_set) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(id: u32, label: u32, addresses: usize) -> WorkloadReport {
        WorkloadReport::of_process(
            format!("w-{id}").parse().unwrap(),
            "shop".parse().unwrap(),
            "web".parse().unwrap(),
            format!("app=a{label}").parse().unwrap(),
            vec!["10.42.0.1".parse().unwrap(); addresses],
        )
    }

    proptest! {
        #[test]
        fn a_node_never_has_more_than_its_budget_and_gets_back_what_it_gives_up(
            steps in prop::collection::vec((0u32..12, 0u32..6, 1usize..4, any::<bool>()), 0..200),
        ) {
            let budget = NodeBudget {
                workloads: 8,
                addresses: 14,
                label_sets: 3,
                reported_kib: 1,
                ..Default::default()
            };
            let mut usage = Usage::default();
            let mut counted: HashMap<u32, WorkloadReport> = HashMap::new();
            for (id, label, addresses, starts) in steps {
                let report = report(id, label, addresses);
                counted.remove(&id);
                match starts {
                    true => {
                        if usage.add(&report, &budget).is_ok() {
                            counted.insert(id, report);
                        }
                    }
                    false => usage.remove(&report.id),
                }
                let labels: std::collections::HashSet<_> =
                    counted.values().map(|report| report.labels.to_string()).collect();
                let all: usize = counted.values().map(|report| report.addresses.len()).sum();
                prop_assert!(counted.len() <= 8 && labels.len() <= 3 && all <= 14);
                prop_assert_eq!(
                    (usage.workloads.len(), usage.label_sets.len(), usage.total.addresses),
                    (counted.len(), labels.len(), all)
                );
            }
        }
    }

    #[test]
    fn the_budget_that_stands_against_it_is_named() {
        let budget = NodeBudget {
            workloads: 2,
            addresses: 4,
            label_sets: 1,
            reported_kib: 1,
            ..Default::default()
        };
        let mut usage = Usage::default();
        usage.add(&report(1, 1, 1), &budget).unwrap();
        usage.add(&report(1, 1, 2), &budget).unwrap();
        for (report, name) in [(report(2, 2, 1), "label_sets"), (report(2, 1, 3), "addresses")] {
            let said = usage.add(&report, &budget).unwrap_err();
            assert!(said.contains(&format!("nodes.{name}")), "{said}");
        }
        let long = WorkloadReport { objection: Some("x".repeat(2000)), ..report(2, 1, 1) };
        assert!(usage.add(&long, &budget).unwrap_err().contains("nodes.reported_kib"));
        usage.add(&report(2, 1, 1), &budget).unwrap();
        assert!(usage.add(&report(3, 1, 1), &budget).unwrap_err().contains("nodes.workloads"));
    }
}
