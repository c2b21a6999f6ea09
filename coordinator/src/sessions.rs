//! The nodes that are connected: waking them, waiting for them, asking them.

use crate::world::Touched;
use futures::future::join_all;
use meshward_daemon::frames;
use meshward_model::{
    NodeName, Revision,
    control::{Answer, MAX_FRAME, Question},
};
use parking_lot::Mutex;
use quinn::Connection;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// For how long a node may think about a question.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// One node's session.
pub struct Session {
    pub node: NodeName,
    pub version: String,
    pub connection: Connection,
    /// Told when the node's view may have changed. A slow node misses no change: it gets the sum of them.
    pub wake: Notify,
    enforced: AtomicU64,
}

impl Session {
    /// A session whose node has not said anything about what it enforces.
    pub fn new(node: NodeName, version: String, connection: Connection) -> Self {
        Self { node, version, connection, wake: Notify::new(), enforced: AtomicU64::new(0) }
    }

    /// The revision that the node says it enforces.
    pub fn enforced(&self) -> Revision {
        Revision(self.enforced.load(Ordering::Acquire))
    }

    /// Where the node's packets come from.
    pub fn address(&self) -> SocketAddr {
        let seen = self.connection.remote_address();
        SocketAddr::new(seen.ip().to_canonical(), seen.port())
    }

    async fn ask(&self, question: Question) -> Option<Answer> {
        let ask = async {
            let (mut send, mut receive) = self.connection.open_bi().await.ok()?;
            frames::send(&mut send, &question).await.ok()?;
            send.finish().ok()?;
            frames::receive(&mut receive, MAX_FRAME).await.ok()
        };
        tokio::time::timeout(ANSWER_TIME, ask).await.ok()?
    }
}

/// All sessions.
#[derive(Default)]
pub struct Sessions {
    by_node: Mutex<HashMap<NodeName, Arc<Session>>>,
    progress: Notify,
}

impl Sessions {
    /// Adds a session; an older one of the same node ends.
    pub fn add(&self, session: Arc<Session>) {
        let before = self.by_node.lock().insert(session.node.clone(), session);
        if let Some(before) = before {
            before.connection.close(1u32.into(), b"the node has a newer session");
        }
    }

    /// Removes a session, if it is still the node's.
    pub fn remove(&self, session: &Arc<Session>) {
        let mut by_node = self.by_node.lock();
        if by_node.get(&session.node).is_some_and(|current| Arc::ptr_eq(current, session)) {
            by_node.remove(&session.node);
        }
        drop(by_node);
        self.progress.notify_waiters();
    }

    /// A node's session.
    pub fn get(&self, node: &NodeName) -> Option<Arc<Session>> {
        self.by_node.lock().get(node).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_node.lock().len()
    }

    /// Has nodes told what is new for them.
    pub fn wake(&self, touched: &Touched) {
        let by_node = self.by_node.lock();
        for session in touched.iter().filter_map(|node| by_node.get(node)) {
            session.wake.notify_one();
        }
    }

    /// Ends a node's session.
    pub fn end(&self, node: &NodeName, why: &str) {
        if let Some(session) = self.by_node.lock().remove(node) {
            session.connection.close(2u32.into(), why.as_bytes());
        }
    }

    /// Notes that a node enforces a revision.
    pub fn note_enforced(&self, session: &Session, revision: Revision) {
        session.enforced.fetch_max(revision.0, Ordering::AcqRel);
        self.progress.notify_waiters();
    }

    /// Waits until the connected ones of `nodes` enforce `revision`, for at most `patience`, and counts those that do.
    pub async fn wait_enforced(&self, nodes: &Touched, revision: Revision, patience: Duration) -> usize {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            // Registered before counting, so that no progress goes unnoticed in between.
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let connected: Vec<_> = nodes.iter().filter_map(|node| self.get(node)).collect();
            let enforcing = connected.iter().filter(|session| session.enforced() >= revision).count();
            if enforcing == connected.len() {
                return enforcing;
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return enforcing;
            }
        }
    }

    /// Asks every connected node.
    pub async fn ask_all(&self, question: Question) -> Vec<(NodeName, Option<Answer>)> {
        let sessions: Vec<_> = self.by_node.lock().values().cloned().collect();
        join_all(
            sessions.into_iter().map(async |session| (session.node.clone(), session.ask(question).await)),
        )
        .await
    }
}
