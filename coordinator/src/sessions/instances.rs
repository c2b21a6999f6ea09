//! Starts of nodes' daemons, by which a second machine with a node's identity (a copy of its disk)
//! is told apart from a daemon that was restarted.

use meshward_control_proto::InstanceId;
use meshward_runtime::sources::{Bucket, Rate};
use meshward_types::NodeName;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The number of superseded starts that are remembered for each node.
const MAX_SUPERSEDED: usize = 8;
/// The time for which `status` reports that a duplicate was refused.
const DUPLICATE_SHOWN: Duration = Duration::from_mins(10);

/// A machine that gets no session, because another one has the same node's identity and a session.
#[derive(Debug, Clone)]
pub(crate) struct Duplicate {
    /// The address of the machine that has the session.
    pub(crate) other: IpAddr,
    /// `true` unless this machine was refused before, within the last minutes.
    pub(crate) is_new: bool,
}

impl Duplicate {
    /// Returns the reason why the machine gets no session, and how to mend it.
    pub(crate) fn reason(&self) -> String {
        format!(
            "another machine, at {}, has this node's identity and a session: this one is a copy of \
            its disk. To make it a node of its own, stop the daemon, remove its data folder, and \
            run `meshward-node join` with a new token",
            self.other
        )
    }
}

/// The starts of daemons that the coordinator knows of, by node.
#[derive(Default)]
pub(super) struct Instances {
    by_node: Mutex<HashMap<NodeName, NodeInstances>>,
    /// The number of duplicates refused since the start.
    duplicates: AtomicU64,
}

#[derive(Default)]
struct NodeInstances {
    /// Starts that others have come after, the oldest first.
    superseded: VecDeque<InstanceId>,
    /// The duplicate that was refused last.
    duplicate: Option<RefusedDuplicate>,
    /// The rate of new sessions.
    sessions: Option<Bucket>,
}

#[derive(Clone, Copy)]
struct RefusedDuplicate {
    instance: InstanceId,
    from: IpAddr,
    at: Instant,
}

impl Instances {
    /// Returns `true` if a node may begin another session now, and counts it.
    pub(super) fn may_begin_session(&self, node: &NodeName, rate: Rate, now: Instant) -> bool {
        let mut by_node = self.by_node.lock();
        let sessions = &mut by_node.entry(node.clone()).or_default().sessions;
        sessions.get_or_insert_with(|| Bucket::full(rate, now)).take(rate, 1.0, now)
    }

    /// Returns `true` if another start of the node's daemon has come after this one.
    pub(super) fn is_superseded(&self, node: &NodeName, instance: InstanceId) -> bool {
        let by_node = self.by_node.lock();
        by_node.get(node).is_some_and(|known| known.superseded.contains(&instance))
    }

    /// Records that a start of the node's daemon has ended, and another one has the session.
    pub(super) fn note_superseded(&self, node: &NodeName, instance: InstanceId) {
        let mut by_node = self.by_node.lock();
        let superseded = &mut by_node.entry(node.clone()).or_default().superseded;
        if !superseded.contains(&instance) {
            superseded.push_back(instance);
        }
        if superseded.len() > MAX_SUPERSEDED {
            superseded.pop_front();
        }
    }

    /// Records that the session of a node was refused to a duplicate at `from`, because the machine
    /// at `other` has it.
    pub(super) fn note_duplicate(
        &self,
        node: &NodeName,
        instance: InstanceId,
        from: IpAddr,
        other: IpAddr,
    ) -> Duplicate {
        let mut by_node = self.by_node.lock();
        let known = by_node.entry(node.clone()).or_default();
        let is_new = known.duplicate.is_none_or(|before| {
            before.instance != instance || before.at.elapsed() > DUPLICATE_SHOWN
        });
        known.duplicate = Some(RefusedDuplicate { instance, from, at: Instant::now() });
        known.superseded.retain(|before| *before != instance);
        if is_new {
            self.duplicates.fetch_add(1, Ordering::Relaxed);
        }
        Duplicate { other, is_new }
    }

    /// Returns the address of a duplicate that was refused within the last minutes.
    pub(super) fn recent_duplicate(&self, node: &NodeName) -> Option<IpAddr> {
        let by_node = self.by_node.lock();
        let duplicate = by_node.get(node)?.duplicate?;
        (duplicate.at.elapsed() < DUPLICATE_SHOWN).then_some(duplicate.from)
    }

    /// Returns the number of duplicates refused since the start.
    pub(super) fn duplicate_count(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// Removes everything about a node that is no longer a member.
    pub(super) fn forget(&self, node: &NodeName) {
        self.by_node.lock().remove(node);
    }
}
