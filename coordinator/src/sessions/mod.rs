//! The sessions of all connected nodes: delivering deltas to them, waiting until they enforce a
//! revision, asking them.

mod backlog;
mod instances;
mod session;

pub(crate) use backlog::NextStep;
pub(crate) use instances::Duplicate;
pub(crate) use session::{ConnectedNode, HolePunch, Session};

use backlog::QueuedDelta;
use futures::future::join_all;
use instances::Instances;
use meshward_control_proto::{
    Answer, CLOSE_REMOVED, EncodedChanges, InstanceId, Question, relay::NodeInstance,
};
use meshward_control_state::world::{Deltas, NodeIndex, NodeSet};
use meshward_runtime::sources::Rate;
use meshward_types::{NodeName, Revision};
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// The time for which a delta that is not urgent is held back, for each session that there is: ten
/// thousand nodes together get some seven thousand messages a second at most, whatever churns.
const PACE_PER_SESSION: Duration = Duration::from_micros(200);
/// The maximum time for which a delta is held back.
const MAX_PACE: Duration = Duration::from_secs(2);
/// The time between two updates of the nodes' last-seen times. A node sends a keep-alive every
/// three seconds.
const LAST_SEEN_INTERVAL: Duration = Duration::from_secs(2);
/// Time limit for a node that has a session to prove that it is alive, when another start of its
/// daemon asks for the session.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The sessions.
#[derive(Default)]
pub struct Sessions {
    table: RwLock<Table>,
    instances: Instances,
    /// The newest revision of which every backlog has all deltas.
    published: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_node: HashMap<NodeName, Arc<Session>>,
    by_index: HashMap<NodeIndex, Arc<Session>>,
    /// The times at which nodes without a session were last seen by this process.
    last_seen: HashMap<NodeName, OffsetDateTime>,
}

/// A node's answer to a question; `None` if it did not answer in time.
pub(crate) struct NodeAnswer {
    /// The node.
    pub(crate) node: NodeName,
    /// The answer.
    pub(crate) answer: Option<Answer>,
}

impl Sessions {
    /// Returns `true` if a node may begin another session now, and counts it.
    pub(crate) fn may_begin(&self, node: &NodeName, rate: Rate, now: Instant) -> bool {
        self.instances.may_begin_session(node, rate, now)
    }

    /// Decides whether a start of a node's daemon may have the node's session. It may not while
    /// another machine has the session that is alive and came first: disks are copied. A daemon
    /// that was restarted finds the one before it dead.
    ///
    /// # Errors
    /// [`Duplicate`], if another machine keeps the session.
    pub(crate) async fn admit(
        &self,
        node: &NodeName,
        instance: InstanceId,
        from: SocketAddr,
    ) -> Result<(), Duplicate> {
        // A machine whose memory was copied, too, speaks as the same start of the daemon, but from
        // elsewhere.
        let is_other = |other: &Arc<Session>| {
            other.node.instance != instance || other.node.address.ip() != from.ip()
        };
        let Some(other) = self.get(node).filter(is_other) else { return Ok(()) };
        let is_alive = tokio::time::timeout(ALIVE_TIMEOUT, other.ask(&Question::Alive)).await;
        if !matches!(is_alive, Ok(Some(Answer::Alive))) || other.connection.close_reason().is_some()
        {
            if other.node.instance != instance {
                self.instances.note_superseded(node, other.node.instance);
            }
            return Ok(());
        }
        let other_address = other.node.address.ip();
        if !self.instances.is_superseded(node, instance) {
            return Err(self.instances.note_duplicate(node, instance, from.ip(), other_address));
        }
        // This one was first, and the other machine got the session while it was away: the other
        // one is refused when it comes again.
        self.remove(&other);
        let reason = Duplicate { other: from.ip(), is_new: true }.reason();
        other.connection.close(6u32.into(), reason.as_bytes());
        Ok(())
    }

    /// Returns the address of a second machine with the node's identity that was refused within the
    /// last minutes.
    pub(crate) fn recent_duplicate(&self, node: &NodeName) -> Option<IpAddr> {
        self.instances.recent_duplicate(node)
    }

    /// Returns the number of machines refused as duplicates since the start.
    pub(crate) fn duplicate_count(&self) -> u64 {
        self.instances.duplicate_count()
    }

    /// Adds a session; an older one of the same node ends.
    pub(crate) fn add(&self, session: Arc<Session>) {
        let mut table = self.table.write();
        table.last_seen.remove(&session.node.name);
        table.by_index.insert(session.node.index, session.clone());
        let before = table.by_node.insert(session.node.name.clone(), session);
        if let Some(before) = before {
            before.connection.close(1u32.into(), b"the node has a newer session");
        }
    }

    /// Returns the starts of daemons that have sessions, with their nodes.
    pub(crate) fn instances(&self) -> Vec<NodeInstance> {
        let table = self.table.read();
        let sessions = table.by_node.iter();
        sessions
            .map(|(node, session)| NodeInstance {
                node: node.clone(),
                instance: session.node.instance,
            })
            .collect()
    }

    /// Removes a session, if it is still the node's.
    pub(crate) fn remove(&self, session: &Arc<Session>) {
        let mut table = self.table.write();
        let node = &session.node;
        if table.by_node.get(&node.name).is_some_and(|current| Arc::ptr_eq(current, session)) {
            table.by_node.remove(&node.name);
            table.by_index.remove(&node.index);
            table.last_seen.insert(node.name.clone(), session.last_seen());
        }
    }

    /// Returns the time at which anything last came from a node; `None` if it has had no session
    /// since this process began.
    pub(crate) fn last_seen(&self, node: &NodeName) -> Option<OffsetDateTime> {
        let table = self.table.read();
        table
            .by_node
            .get(node)
            .map(|session| session.last_seen())
            .or_else(|| table.last_seen.get(node).copied())
    }

    /// Records that a node that joins, and has no session yet, was seen now.
    pub(crate) fn note_joining(&self, node: &NodeName) {
        let mut table = self.table.write();
        if !table.by_node.contains_key(node) {
            table.last_seen.insert(node.clone(), OffsetDateTime::now_utc());
        }
    }

    /// Forgets a machine that was refused to join.
    pub(crate) fn forget_joining(&self, node: &NodeName) {
        self.table.write().last_seen.remove(node);
    }

    /// Keeps the nodes' last-seen times up to date, forever.
    pub async fn track_last_seen(&self) {
        loop {
            tokio::time::sleep(LAST_SEEN_INTERVAL).await;
            let all: Vec<Arc<Session>> = self.table.read().by_node.values().cloned().collect();
            for session in all {
                session.update_last_seen();
            }
        }
    }

    /// Returns a node's session.
    pub(crate) fn get(&self, node: &NodeName) -> Option<Arc<Session>> {
        self.table.read().by_node.get(node).cloned()
    }

    /// Returns the number of sessions.
    pub(crate) fn count(&self) -> usize {
        self.table.read().by_node.len()
    }

    /// Returns the time for which a session holds back deltas that are not urgent: between half of
    /// the pace and all of it, another time for each node, so that a delta for all nodes does not
    /// go to all of them at one moment.
    pub(crate) fn pace(&self, session: &Session) -> Duration {
        let pace = (PACE_PER_SESSION * self.count() as u32).min(MAX_PACE);
        // Fibonacci hashing: neighbours get times far from each other.
        let part = session.node.index.0.wrapping_mul(2_654_435_769) >> 16;
        pace / 2 + pace / 2 * part / (1 << 16)
    }

    /// Queues the deltas of a revision for the sessions that they concern. Called in the order of
    /// the revisions; delays nobody, and is delayed by nobody.
    pub(crate) fn deliver(&self, revision: Revision, deltas: &Deltas) {
        let table = self.table.read();
        let mut woken = Vec::new();
        for delta in &deltas.all {
            let mut encoded = None;
            for session in delta.nodes.iter().filter_map(|node| table.by_index.get(&node)) {
                let changes = encoded.get_or_insert_with(|| EncodedChanges::of(&delta.changes));
                let (changes, is_urgent) = (changes.clone(), delta.urgent);
                if session.push(QueuedDelta { revision, changes, is_urgent }) {
                    woken.push(session);
                }
            }
        }
        self.published.store(revision.0, Ordering::Release);
        for session in woken {
            session.wake.notify_one();
        }
    }

    /// Has every node's view compared with the world.
    pub(crate) fn compare_all(&self) {
        self.table.read().by_node.values().for_each(|session| session.require_comparison());
    }

    /// Returns the next step of a session.
    pub(crate) fn next_step(&self, session: &Session) -> NextStep {
        session.next_step(Revision(self.published.load(Ordering::Acquire)))
    }

    /// Ends the session of a node that is no longer a member, and gives it the reason.
    pub(crate) fn end(&self, node: &NodeName, reason: &str) {
        self.instances.forget(node);
        if let Some(session) = self.get(node) {
            self.remove(&session);
            session.connection.close(CLOSE_REMOVED.into(), reason.as_bytes());
        }
        self.table.write().last_seen.remove(node);
    }

    /// Waits until the connected ones of `nodes` enforce `revision`, for at most `timeout`, and
    /// returns those that do.
    pub(crate) async fn wait_enforced(
        &self,
        nodes: &NodeSet,
        revision: Revision,
        timeout: Duration,
    ) -> NodeSet {
        let all = async {
            // One after the other: the last of them to enforce is waited for in any order.
            for node in nodes.iter() {
                self.wait_for_node(node, revision).await;
            }
        };
        let _ = tokio::time::timeout(timeout, all).await;
        let table = self.table.read();
        let is_up_to_date = |node: &NodeIndex| {
            table.by_index.get(node).is_some_and(|session| session.is_up_to_date(revision))
        };
        nodes.iter().filter(is_up_to_date).collect()
    }

    /// Waits until a node enforces a revision, or has no session. If a restarted daemon begins a
    /// new session meanwhile, that one is waited for.
    async fn wait_for_node(&self, node: NodeIndex, revision: Revision) {
        loop {
            let Some(session) = self.table.read().by_index.get(&node).cloned() else { return };
            session.wait_up_to_date(revision).await;
            let current = self.table.read().by_index.get(&node).cloned();
            if session.is_up_to_date(revision)
                || current.is_none_or(|current| Arc::ptr_eq(&current, &session))
            {
                return;
            }
        }
    }

    /// Asks every connected node a question.
    pub(crate) async fn ask_all(&self, question: &Question) -> Vec<NodeAnswer> {
        let sessions: Vec<_> = self.table.read().by_node.values().cloned().collect();
        let ask = async |session: Arc<Session>| NodeAnswer {
            node: session.node.name.clone(),
            answer: session.ask(question).await,
        };
        join_all(sessions.into_iter().map(ask)).await
    }
}
