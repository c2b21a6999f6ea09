//! The change log: the entries of the API's lists that each of the last revisions has changed. It
//! is bounded: a reader that is too far behind reads the whole list. It is in memory only.

use crate::{
    records::{ApprovalRecord, Mutation, Record, RecordKey, WorkloadRef},
    world::World,
};
use meshward_types::Revision;
use std::collections::{BTreeSet, VecDeque};

/// The largest number of changed entries in the log: some ten megabytes.
const MAX_TOUCHED: usize = 100_000;

/// A list of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    /// `/v1/audit`, by revision.
    Audit,
    /// `/v1/credentials`, by name.
    Credentials,
    /// `/v1/devices`, by network and name.
    Devices,
    /// `/v1/drains`, by kind and name.
    Drains,
    /// `/v1/links`.
    Links,
    /// `/v1/networks`, by name.
    Networks,
    /// `/v1/nodes`, by name.
    Nodes,
    /// `/v1/policies`, by network.
    Policies,
    /// `/v1/quarantines`, by id.
    Quarantines,
    /// `/v1/relays`, by name.
    Relays,
    /// `/v1/routes`, by network, node and prefix.
    Routes,
    /// `/v1/services`, by network and name.
    Services,
    /// `/v1/tokens`, by id.
    Tokens,
    /// `/v1/workloads`, by id.
    Workloads,
}

/// A change of a list by a revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// The entry with this key was added, changed or removed.
    Entry(ListKind, String),
    /// Any entries may have changed, but none was added or removed.
    Any(ListKind),
}

/// The changes of one list by several revisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Since {
    /// The newest of these revisions.
    pub revision: Revision,
    /// The keys of entries that were added, changed or removed.
    pub keys: BTreeSet<String>,
    /// `true` if any other entries may have changed.
    pub any: bool,
}

/// The changes of lists by the last revisions, bounded by [`MAX_TOUCHED`].
#[derive(Debug, Default)]
pub struct ChangeLog {
    /// The revision after which the log begins.
    after: Revision,
    revisions: VecDeque<(Revision, Vec<Touched>)>,
    touched: usize,
}

impl ChangeLog {
    /// Makes a log that begins after a revision.
    pub fn starting_after(revision: Revision) -> Self {
        Self { after: revision, ..Self::default() }
    }

    /// Appends the changes of a revision.
    pub fn append(&mut self, revision: Revision, touched: BTreeSet<Touched>) {
        self.touched += touched.len() + 1;
        self.revisions.push_back((revision, touched.into_iter().collect()));
        while self.touched > MAX_TOUCHED {
            let Some((oldest, touched)) = self.revisions.pop_front() else { break };
            self.touched -= touched.len() + 1;
            self.after = oldest;
        }
    }

    /// Returns the changes of a list after a revision; `None` if the log begins later, or the
    /// revision is in the future.
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

/// Returns the changes of lists by mutations that are not applied yet.
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
                entry(ListKind::Nodes, name.to_string());
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
                for workload in new.into_iter().chain(before.workload(id)) {
                    let (network, node) = (workload.network(), workload.node());
                    entry(ListKind::Nodes, node.to_string());
                    entry(ListKind::Devices, format!("{network}/{}", workload.name()));
                    for prefix in workload.prefixes() {
                        entry(ListKind::Routes, format!("{network}/{node}/{prefix}"));
                    }
                }
            }
            RecordKey::Drain(_) => {
                entry(ListKind::Drains, key.stored().name);
                touched.insert(Touched::Any(ListKind::Workloads));
            }
            RecordKey::Service(..) => entry(ListKind::Services, key.stored().name),
            RecordKey::Identity(_) | RecordKey::Image(_) => {}
        }
        touched.extend(lists_of(&key, mutation));
    }
    touched
}

/// Returns the lists of which a mutation may have changed any entries.
fn lists_of(key: &RecordKey, mutation: &Mutation) -> impl Iterator<Item = Touched> {
    let is_workload = matches!(key, RecordKey::Workload(_));
    let is_rule = matches!(key, RecordKey::Policy(_) | RecordKey::Quarantine(_));
    let is_network = matches!(mutation, Mutation::Put(Record::Network(_)));
    let is_identity = matches!(key, RecordKey::Identity(_));
    let is_drain = matches!(key, RecordKey::Drain(_));
    let linked = is_workload || is_rule || is_network || is_identity;
    let serves = is_workload || is_rule || is_drain;
    let lists =
        [(linked, ListKind::Links), (serves, ListKind::Services), (serves, ListKind::Drains)];
    lists.into_iter().filter(|(is_touched, _)| *is_touched).map(|(_, list)| Touched::Any(list))
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
