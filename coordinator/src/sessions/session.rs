//! The session of one connected node, as the rest of the coordinator sees it.

use super::backlog::{Backlog, NextStep, QueuedDelta};
use meshward_control_proto::{Answer, FromCoordinator, InstanceId, MAX_FRAME, Question};
use meshward_control_state::world::NodeIndex;
use meshward_runtime::frames;
use meshward_types::{NetworkName, NodeName, Revision};
use parking_lot::Mutex;
use quinn::Connection;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

/// Time limit for the answer to a question.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// The maximum number of hole-punch requests that wait for one node; peers repeat theirs.
const MAX_HOLE_PUNCHES: usize = 256;
/// The maximum number of other messages that wait for one node.
const MAX_QUEUED_MESSAGES: usize = 16;
/// The maximum number of characters kept of what a node says about itself.
const MAX_REASON_CHARS: usize = 500;
/// The time for which `status` reports that a node was over a budget.
const BUDGET_WARNING_SHOWN: Duration = Duration::from_mins(10);

/// A node that has a session.
#[derive(Debug, Clone)]
pub(crate) struct ConnectedNode {
    /// The node's name.
    pub(crate) name: NodeName,
    /// The node's index in the world.
    pub(crate) index: NodeIndex,
    /// The version of its daemon.
    pub(crate) version: String,
    /// The start of the daemon that has the session.
    pub(crate) instance: InstanceId,
    /// The address from which the node's packets come.
    pub(crate) address: SocketAddr,
}

/// A peer's request that a node send packets to it, so that NATs on both sides open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HolePunch {
    /// The network in which the two are peers.
    pub(crate) network: NetworkName,
    /// The peer that asks.
    pub(crate) peer: NodeName,
}

/// A node's session.
pub(crate) struct Session {
    /// The node.
    pub(crate) node: ConnectedNode,
    /// The QUIC connection.
    pub(crate) connection: Connection,
    /// Woken when something waits to be sent.
    pub(crate) wake: Notify,
    /// The last message to the node that it is over a budget.
    over_budget: Mutex<Option<BudgetWarning>>,
    /// The difference between the node's clock and the coordinator's, in words.
    clock_problem: Mutex<Option<String>>,
    hole_punches: Mutex<Vec<HolePunch>>,
    /// Messages that are neither changes of the view nor hole-punch requests.
    messages: Mutex<Vec<FromCoordinator>>,
    backlog: Mutex<Backlog>,
    enforced: watch::Sender<Revision>,
    /// The reason why the node is degraded, in its own words.
    degraded: Mutex<Option<String>>,
    /// The newest revision that changes something for the node.
    newest_relevant: AtomicU64,
    last_seen: Mutex<LastSeen>,
}

struct BudgetWarning {
    text: String,
    at: Instant,
}

/// The last time at which anything came from a node, keep-alives included.
struct LastSeen {
    /// The number of UDP datagrams received by then.
    datagrams: u64,
    at: OffsetDateTime,
}

impl Session {
    /// Creates the session of a node that has not acknowledged any revision yet.
    pub(crate) fn new(node: ConnectedNode, connection: Connection) -> Self {
        Self {
            node,
            connection,
            wake: Notify::new(),
            over_budget: Mutex::default(),
            clock_problem: Mutex::default(),
            hole_punches: Mutex::default(),
            messages: Mutex::default(),
            backlog: Mutex::default(),
            enforced: watch::Sender::new(Revision(0)),
            degraded: Mutex::default(),
            newest_relevant: AtomicU64::new(0),
            last_seen: Mutex::new(LastSeen { datagrams: 0, at: OffsetDateTime::now_utc() }),
        }
    }

    /// Records that a revision changes something for the node.
    pub(crate) fn note_relevant(&self, revision: Revision) {
        self.newest_relevant.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// Returns `true` if the node enforces everything that changed for it up to a revision.
    pub(super) fn is_up_to_date(&self, revision: Revision) -> bool {
        self.enforced() >= self.required_revision(revision)
    }

    /// Returns the revision that the node has to enforce to be up to date at `revision`: later ones
    /// may not concern it, and are then not sent to it.
    fn required_revision(&self, revision: Revision) -> Revision {
        revision.min(Revision(self.newest_relevant.load(Ordering::Acquire)))
    }

    /// Returns the last time at which anything came from the node, rounded up to the time between
    /// two calls of [`Self::update_last_seen`].
    pub(super) fn last_seen(&self) -> OffsetDateTime {
        self.update_last_seen();
        self.last_seen.lock().at
    }

    /// Records the present time as that of the node's last packet, if any came since the last call.
    pub(super) fn update_last_seen(&self) {
        let datagrams = self.connection.stats().udp_rx.datagrams;
        let mut last = self.last_seen.lock();
        if last.datagrams != datagrams {
            *last = LastSeen { datagrams, at: OffsetDateTime::now_utc() };
        }
    }

    /// Records that the node is over a budget.
    pub(crate) fn note_over_budget(&self, budget: &str) {
        let warning = BudgetWarning { text: budget.to_owned(), at: Instant::now() };
        *self.over_budget.lock() = Some(warning);
    }

    /// Records the difference between the node's clock and the coordinator's.
    pub(crate) fn set_clock_problem(&self, problem: Option<String>) {
        *self.clock_problem.lock() = problem;
    }

    /// Returns the problems of the node that an operator should know of.
    pub(crate) fn problems(&self) -> Vec<String> {
        let over_budget = self.over_budget.lock();
        let recent = over_budget
            .as_ref()
            .filter(|warning| warning.at.elapsed() < BUDGET_WARNING_SHOWN)
            .map(|warning| warning.text.clone());
        self.clock_problem.lock().iter().cloned().chain(recent).collect()
    }

    /// Returns the newest revision that the node has acknowledged.
    pub(crate) fn enforced(&self) -> Revision {
        *self.enforced.borrow()
    }

    /// Records the revision that the node enforces.
    pub(crate) fn note_enforced(&self, revision: Revision) {
        self.enforced.send_if_modified(|known| {
            let is_newer = revision > *known;
            *known = revision.max(*known);
            is_newer
        });
    }

    /// Waits until the node is up to date at a revision, or its connection is closed.
    pub(super) async fn wait_up_to_date(&self, revision: Revision) {
        let revision = self.required_revision(revision);
        let mut enforced = self.enforced.subscribe();
        tokio::select! {
            _ = enforced.wait_for(|known| *known >= revision) => {}
            _ = self.connection.closed() => {}
        }
    }

    /// Records the reason why the node cannot write its state; `None` if it can.
    pub(crate) fn note_degraded(&self, reason: Option<String>) {
        let reason = reason.map(|reason| reason.chars().take(MAX_REASON_CHARS).collect::<String>());
        if *self.degraded.lock() == reason {
            return;
        }
        match &reason {
            Some(reason) => warn!(node = %self.node.name, "degraded: {reason}"),
            None => info!(node = %self.node.name, "no longer degraded"),
        }
        *self.degraded.lock() = reason;
    }

    /// Returns the reason why the node is degraded; it enforces policy all the same.
    pub(crate) fn degraded(&self) -> Option<String> {
        self.degraded.lock().clone()
    }

    /// Queues a peer's hole-punch request, unless the same one waits already.
    pub(crate) fn request_hole_punch(&self, request: HolePunch) {
        let mut waiting = self.hole_punches.lock();
        if waiting.len() < MAX_HOLE_PUNCHES && !waiting.contains(&request) {
            waiting.push(request);
            drop(waiting);
            self.wake.notify_one();
        }
    }

    /// Returns the hole-punch requests that wait, and removes them.
    pub(crate) fn drain_hole_punches(&self) -> Vec<HolePunch> {
        std::mem::take(&mut *self.hole_punches.lock())
    }

    /// Queues a message; the oldest one is dropped if too many wait.
    pub(crate) fn queue_message(&self, message: FromCoordinator) {
        let mut messages = self.messages.lock();
        if messages.len() >= MAX_QUEUED_MESSAGES {
            messages.remove(0);
        }
        messages.push(message);
        drop(messages);
        self.wake.notify_one();
    }

    /// Returns the messages that wait, and removes them.
    pub(crate) fn drain_messages(&self) -> Vec<FromCoordinator> {
        std::mem::take(&mut *self.messages.lock())
    }

    /// Returns `true` if a delta waits that must not be held back.
    pub(crate) fn is_urgent(&self) -> bool {
        self.backlog.lock().is_urgent()
    }

    /// Queues a delta. Returns `true` if the session has to be woken.
    pub(super) fn push(&self, delta: QueuedDelta) -> bool {
        self.note_relevant(delta.revision);
        self.backlog.lock().push(delta)
    }

    /// Drops the deltas that wait, and has the node's view compared with the world.
    pub(super) fn require_comparison(&self) {
        *self.backlog.lock() = Backlog::of_comparison();
        self.wake.notify_one();
    }

    /// Removes the deltas of `published` and earlier revisions, and returns the step that they
    /// demand.
    pub(super) fn next_step(&self, published: Revision) -> NextStep {
        let mut backlog = self.backlog.lock();
        let next = backlog.next_step(published);
        if backlog.has_deltas() {
            // They belong to a revision that is being delivered just now, and nobody else wakes
            // the session for them.
            self.wake.notify_one();
        }
        next
    }

    /// Drops the deltas that wait: the node's view is about to be compared with a world that has
    /// them all.
    pub(crate) fn clear_backlog(&self) {
        *self.backlog.lock() = Backlog::default();
    }

    /// Asks the node a question. Returns `None` if it does not answer in time.
    pub(crate) async fn ask(&self, question: &Question) -> Option<Answer> {
        let ask = async {
            let (mut send, mut receive) = self.connection.open_bi().await.ok()?;
            frames::send(&mut send, question).await.ok()?;
            send.finish().ok()?;
            let mut answer: Answer = frames::receive(&mut receive, MAX_FRAME).await.ok()?;
            // Further parts come until the stream ends.
            while let Some(part) = frames::receive_or_end(&mut receive, MAX_FRAME).await.ok()? {
                if !answer.add(part) {
                    return None;
                }
            }
            Some(answer)
        };
        tokio::time::timeout(ANSWER_TIME, ask).await.ok()?
    }
}
