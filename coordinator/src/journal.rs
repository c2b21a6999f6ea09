//! What has changed of late: which entries of which lists each revision has touched. It is bounded;
//! who is too far behind lists anew.

use crate::{
    records::{ApprovalRecord, Mutation, Record, RecordKey},
    world::World,
};
use meshward_types::Revision;
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use tokio::sync::watch;

/// The most touched entries that are remembered: some ten megabytes.
const MAX_TOUCHED: usize = 100_000;

/// A list of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
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
    Entry(Kind, String),
    /// Any entries may have changed; none is new or gone for it.
    Any(Kind),
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

/// The last revisions.
#[derive(Debug)]
pub struct Journal {
    state: Mutex<State>,
    newest: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct State {
    /// What came after this revision is remembered.
    after: Revision,
    revisions: VecDeque<(Revision, Vec<Touched>)>,
    touched: usize,
}

impl Journal {
    /// One that begins after a revision.
    pub fn from(revision: Revision) -> Self {
        let state = State { after: revision, ..State::default() };
        Self { state: Mutex::new(state), newest: watch::channel(revision).0 }
    }

    /// Notes what a revision has touched.
    pub fn note(&self, revision: Revision, touched: BTreeSet<Touched>) {
        let mut state = self.state.lock();
        state.touched += touched.len() + 1;
        state.revisions.push_back((revision, touched.into_iter().collect()));
        while state.touched > MAX_TOUCHED {
            let Some((oldest, touched)) = state.revisions.pop_front() else { break };
            state.touched -= touched.len() + 1;
            state.after = oldest;
        }
        drop(state);
        self.newest.send_replace(revision);
    }

    /// Forgets everything: what led to this revision is not known.
    pub fn begin_anew(&self, revision: Revision) {
        *self.state.lock() = State { after: revision, ..State::default() };
        self.newest.send_replace(revision);
    }

    /// Wakes with every revision.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.newest.subscribe()
    }

    /// What was touched of a list after a revision; `None` if that is not remembered any more, or
    /// yet to come.
    pub fn since(&self, kind: Kind, revision: Revision) -> Option<Since> {
        let state = self.state.lock();
        let newest = state.revisions.back().map_or(state.after, |(newest, _)| *newest);
        if revision < state.after || revision > newest {
            return None;
        }
        let mut since = Since { revision: newest, ..Since::default() };
        let from = state.revisions.partition_point(|(own, _)| *own <= revision);
        for (own, touched) in state.revisions.range(from..) {
            if kind == Kind::Audit {
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
                entry(Kind::Networks, name.to_string());
                entry(Kind::Policies, name.to_string());
            }
            RecordKey::Node(name) | RecordKey::ApprovedNode(name) => {
                entry(Kind::Nodes, name.to_string())
            }
            RecordKey::Relay(name) => entry(Kind::Relays, name.to_string()),
            RecordKey::Approval(ApprovalRecord { network, node, prefix }) => {
                entry(Kind::Routes, format!("{network}/{node}/{prefix}"));
            }
            RecordKey::Token(id) => entry(Kind::Tokens, id.clone()),
            RecordKey::Credential(name) => entry(Kind::Credentials, name.clone()),
            RecordKey::Policy(name) => entry(Kind::Policies, name.to_string()),
            RecordKey::Quarantine(id) => {
                entry(Kind::Quarantines, id.clone());
                touched.insert(Touched::Any(Kind::Workloads));
            }
            RecordKey::Workload(id) => {
                entry(Kind::Workloads, id.to_string());
                let new = match mutation {
                    Mutation::Put(record) => crate::records::Standing::of(record),
                    Mutation::Delete(_) => None,
                };
                for standing in new.into_iter().chain(before.standing(id)) {
                    let (network, node) = (standing.network(), standing.node());
                    entry(Kind::Nodes, node.to_string());
                    entry(Kind::Devices, format!("{network}/{}", standing.name()));
                    let prefixes = standing.prefixes().iter();
                    prefixes.for_each(|prefix| {
                        entry(Kind::Routes, format!("{network}/{node}/{prefix}"))
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
            touched.insert(Touched::Any(Kind::Links));
        }
    }
    touched
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(journal: &Journal, revision: u64, key: &str) {
        journal.note(Revision(revision), [Touched::Entry(Kind::Nodes, key.into())].into());
    }

    #[test]
    fn what_was_touched_since_a_revision_is_remembered_list_by_list() {
        let journal = Journal::from(Revision(7));
        note(&journal, 8, "a");
        journal.note(Revision(9), [Touched::Any(Kind::Workloads)].into());
        note(&journal, 10, "b");
        let since = |kind, revision| journal.since(kind, Revision(revision)).unwrap();
        assert_eq!(since(Kind::Nodes, 7).keys, ["a", "b"].map(String::from).into());
        assert_eq!(since(Kind::Nodes, 8).keys, ["b"].map(String::from).into());
        assert!(since(Kind::Workloads, 8).any && !since(Kind::Workloads, 9).any);
        assert_eq!(since(Kind::Tokens, 10), Since { revision: Revision(10), ..Since::default() });
    }

    #[test]
    fn what_is_too_long_ago_or_yet_to_come_is_not_known() {
        let journal = Journal::from(Revision(7));
        assert!(journal.since(Kind::Nodes, Revision(6)).is_none());
        assert!(journal.since(Kind::Nodes, Revision(8)).is_none());
        for revision in 8..MAX_TOUCHED as u64 {
            note(&journal, revision, "a");
        }
        assert!(journal.since(Kind::Nodes, Revision(9)).is_none());
        assert!(journal.since(Kind::Nodes, Revision(MAX_TOUCHED as u64 - 10)).is_some());
        assert!(journal.state.lock().touched <= MAX_TOUCHED);
        journal.begin_anew(Revision(1 << 20));
        assert!(journal.since(Kind::Nodes, Revision(MAX_TOUCHED as u64 - 1)).is_none());
    }
}
