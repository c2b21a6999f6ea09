//! The change log: which entries of which lists each of the last revisions has touched. It is
//! bounded; whoever is too far behind lists anew.

use crate::{
    records::{ApprovalRecord, Mutation, Record, RecordKey, WorkloadRef},
    world::World,
};
use meshward_types::Revision;
use std::collections::{BTreeSet, VecDeque};

/// The most touched entries that are remembered: some ten megabytes.
const MAX_TOUCHED: usize = 100_000;

/// A list of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    Audit,
    Credentials,
    Devices,
    Links,
    Networks,
    Nodes,
    Policies,
    Quarantines,
    Relays,
    Routes,
    Tokens,
    Workloads,
}

/// What a revision has touched of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// One entry: it is new, has changed, or is gone.
    Entry(ListKind, String),
    /// Any entries may have changed; none is new or gone for it.
    Any(ListKind),
}

/// The entries of one list that some revisions have touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Since {
    /// The newest of these revisions.
    pub revision: Revision,
    pub keys: BTreeSet<String>,
    /// Whether any other entries may have changed.
    pub any: bool,
}

/// The entries of lists that the last revisions have touched, bounded by [`MAX_TOUCHED`].
#[derive(Debug, Default)]
pub struct ChangeLog {
    /// What came after this revision is remembered.
    after: Revision,
    revisions: VecDeque<(Revision, Vec<Touched>)>,
    touched: usize,
}

impl ChangeLog {
    /// A log that begins after a revision.
    pub fn starting_after(revision: Revision) -> Self {
        Self { after: revision, ..Self::default() }
    }

    /// Appends what a revision has touched.
    pub fn append(&mut self, revision: Revision, touched: BTreeSet<Touched>) {
        self.touched += touched.len() + 1;
        self.revisions.push_back((revision, touched.into_iter().collect()));
        while self.touched > MAX_TOUCHED {
            let Some((oldest, touched)) = self.revisions.pop_front() else { break };
            self.touched -= touched.len() + 1;
            self.after = oldest;
        }
    }

    /// Returns what was touched of a list after a revision; `None` if that is not remembered any
    /// more, or yet to come.
    pub fn since(&self, kind: ListKind, revision: Revision) -> Option<Since> {
        let newest = self.revisions.back().map_or(self.after, |(newest, _)| *newest);
        if revision < self.after || revision > newest {
            return None;
        }
        let mut since = Since { revision: newest, ..Since::default() };
        let from = self.revisions.partition_point(|(own, _)| *own <= revision);
        for (own, touched) in self.revisions.range(from..) {
            if kind == ListKind::Audit {
                since.keys.insert(own.to_string());
            }
            for one in touched {
                match one {
                    Touched::Entry(own, key) if *own == kind => {
                        since.keys.insert(key.clone());
                    }
                    Touched::Any(own) if *own == kind => since.any = true,
                    _ => {}
                }
            }
        }
        Some(since)
    }
}

/// What mutations touch, seen before they are applied.
pub fn touched(before: &World, mutations: &[Mutation]) -> BTreeSet<Touched> {
    let mut touched = BTreeSet::new();
    for mutation in mutations {
        let key = match mutation {
            Mutation::Put(record) => record.key(),
            Mutation::Delete(key) => key.clone(),
        };
        let mut entry = |kind, key: String| {
            touched.insert(Touched::Entry(kind, key));
        };
        match &key {
            RecordKey::Network(name) => {
                entry(ListKind::Networks, name.to_string());
                entry(ListKind::Policies, name.to_string());
            }
            RecordKey::Node(name) | RecordKey::ApprovedNode(name) => {
                entry(ListKind::Nodes, name.to_string())
            }
            RecordKey::Relay(name) => entry(ListKind::Relays, name.to_string()),
            RecordKey::Approval(ApprovalRecord { network, node, prefix }) => {
                entry(ListKind::Routes, format!("{network}/{node}/{prefix}"));
            }
            RecordKey::Token(id) => entry(ListKind::Tokens, id.clone()),
            RecordKey::Credential(name) => entry(ListKind::Credentials, name.clone()),
            RecordKey::Policy(name) => entry(ListKind::Policies, name.to_string()),
            RecordKey::Quarantine(id) => {
                entry(ListKind::Quarantines, id.clone());
                touched.insert(Touched::Any(ListKind::Workloads));
            }
            RecordKey::Workload(id) => {
                entry(ListKind::Workloads, id.to_string());
                let new = match mutation {
                    Mutation::Put(record) => WorkloadRef::of(record),
                    Mutation::Delete(_) => None,
                };
                for standing in new.into_iter().chain(before.workload(id)) {
                    let (network, node) = (standing.network(), standing.node());
                    entry(ListKind::Nodes, node.to_string());
                    entry(ListKind::Devices, format!("{network}/{}", standing.name()));
                    let prefixes = standing.prefixes().iter();
                    prefixes.for_each(|prefix| {
                        entry(ListKind::Routes, format!("{network}/{node}/{prefix}"))
                    });
                }
            }
            RecordKey::Identity(_) | RecordKey::Image(_) => {}
        }
        let linked = matches!(
            key,
            RecordKey::Workload(_)
                | RecordKey::Identity(_)
                | RecordKey::Policy(_)
                | RecordKey::Quarantine(_)
        );
        if linked || matches!(mutation, Mutation::Put(Record::Network(_))) {
            touched.insert(Touched::Any(ListKind::Links));
        }
    }
    touched
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(log: &mut ChangeLog, revision: u64, key: &str) {
        log.append(Revision(revision), [Touched::Entry(ListKind::Nodes, key.into())].into());
    }

    #[test]
    fn what_was_touched_since_a_revision_is_remembered_list_by_list() {
        let mut log = ChangeLog::starting_after(Revision(7));
        note(&mut log, 8, "a");
        log.append(Revision(9), [Touched::Any(ListKind::Workloads)].into());
        note(&mut log, 10, "b");
        let since = |kind, revision| log.since(kind, Revision(revision)).unwrap();
        assert_eq!(since(ListKind::Nodes, 7).keys, ["a", "b"].map(String::from).into());
        assert_eq!(since(ListKind::Nodes, 8).keys, ["b"].map(String::from).into());
        assert!(since(ListKind::Workloads, 8).any && !since(ListKind::Workloads, 9).any);
        assert_eq!(
            since(ListKind::Tokens, 10),
            Since { revision: Revision(10), ..Since::default() }
        );
    }

    #[test]
    fn what_is_too_long_ago_or_yet_to_come_is_not_known() {
        let mut log = ChangeLog::starting_after(Revision(7));
        assert!(log.since(ListKind::Nodes, Revision(6)).is_none());
        assert!(log.since(ListKind::Nodes, Revision(8)).is_none());
        for revision in 8..MAX_TOUCHED as u64 {
            note(&mut log, revision, "a");
        }
        assert!(log.since(ListKind::Nodes, Revision(9)).is_none());
        assert!(log.since(ListKind::Nodes, Revision(MAX_TOUCHED as u64 - 10)).is_some());
        assert!(log.touched <= MAX_TOUCHED);
        let log = ChangeLog::starting_after(Revision(1 << 20));
        assert!(log.since(ListKind::Nodes, Revision(MAX_TOUCHED as u64 - 1)).is_none());
    }
}
