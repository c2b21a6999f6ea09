//! The nodes that are connected: telling them what is new, waiting for them, asking them.

use futures::future::join_all;
use meshward_control_proto::{
    Answer, CLOSE_REMOVED, EncodedChanges, FromCoordinator, InstanceId, MAX_FRAME, Question,
};
use meshward_control_state::world::Deltas;
use meshward_runtime::{
    frames,
    sources::{Bucket, Rate},
};
use meshward_types::{NetworkName, NodeName, Revision};
use parking_lot::{Mutex, RwLock};
use quinn::Connection;
use roaring::RoaringBitmap;
use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

/// For how long a node may think about a question.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// The most changes that wait for one node. They are shared with the other nodes that they are for;
/// beyond this the node is compared with the world instead.
const BACKLOG: usize = 1 << 16;
/// For how long what is not urgent may be held back, for each session that there is: so ten
/// thousand nodes together get some seven thousand messages a second at the most, whatever churns.
const PACE: Duration = Duration::from_micros(200);
/// How often it is looked whether nodes were heard. They say something every three seconds.
const HEARING: Duration = Duration::from_secs(2);
/// The most calls that wait for one node; who calls, calls again.
const MOST_CALLS: usize = 256;
/// The most orders that wait for one node.
const MOST_ORDERS: usize = 16;
/// The most characters that are kept of what a node says of itself.
const MOST_SAID: usize = 500;
const LONGEST_PACE: Duration = Duration::from_secs(2);
/// A node that has a session and does not answer within this has lost it to another start of its
/// daemon.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);
/// Starts of a daemon that are remembered.
const KNOWN_INSTANCES: usize = 8;
/// For how long it is shown that a node was over a budget, or that a second machine was held.
const SHOWN_FOR: Duration = Duration::from_mins(10);

/// One node's session.
pub struct Session {
    pub node: NodeName,
    pub version: String,
    /// Where the node's packets come from.
    pub address: SocketAddr,
    pub connection: Connection,
    /// The start of the daemon that has the session.
    instance: InstanceId,
    /// What it was told of a budget last, and when.
    over_budget: Mutex<Option<(String, Instant)>>,
    /// How its clock differs from the coordinator's.
    clock_problem: Mutex<Option<String>>,
    /// Told when there is something new for the node.
    pub wake: Notify,
    index: u32,
    /// Who calls the node.
    calls: Mutex<Vec<(NetworkName, NodeName)>>,
    /// What else it is to be told.
    orders: Mutex<Vec<FromCoordinator>>,
    backlog: Mutex<Backlog>,
    enforced: watch::Sender<Revision>,
    /// Why the node is degraded, in its own words.
    degraded: Mutex<Option<String>>,
    /// The newest revision that changes something for the node.
    concerned: AtomicU64,
    heard: Mutex<Heard>,
}

/// When a node was heard last: anything that comes from it counts, keep-alives, too.
struct Heard {
    datagrams: u64,
    at: OffsetDateTime,
}

/// What waits for a node.
#[derive(Default)]
struct Backlog {
    deltas: VecDeque<(Revision, EncodedChanges)>,
    /// How many changes that are.
    changes: usize,
    urgent: bool,
    /// There was too much to keep: what the node has is to be compared.
    overflowed: bool,
}

/// What a session is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is new.
    Wait,
    /// To send these changes, and whether one of them is urgent.
    Send(Vec<EncodedChanges>, bool),
    /// To find out what the node has.
    Compare,
}

impl Backlog {
    /// Adds changes; gives whether the session has to be told: not if it knows already that
    /// something waits.
    fn push(&mut self, revision: Revision, changes: &EncodedChanges, urgent: bool) -> bool {
        let wakes = (urgent && !self.urgent) || (self.deltas.is_empty() && !self.overflowed);
        self.urgent |= urgent;
        self.changes += changes.count();
        if self.overflowed {
            return wakes;
        }
        if self.changes > BACKLOG {
            *self = Self { overflowed: true, urgent: self.urgent, ..Self::default() };
        } else {
            self.deltas.push_back((revision, changes.clone()));
        }
        wakes
    }

    /// Whether something waits.
    fn waits(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Takes what is of `published` and earlier revisions.
    fn next(&mut self, published: Revision) -> Next {
        if self.overflowed {
            self.urgent = false;
            return Next::Compare;
        }
        let mut changes = Vec::new();
        while let Some((_, delta)) =
            self.deltas.pop_front_if(|(revision, _)| *revision <= published)
        {
            self.changes -= delta.count();
            changes.push(delta);
        }
        let urgent = self.urgent;
        // What is of a revision that is still being delivered stays as urgent as it is.
        self.urgent &= self.waits();
        if changes.is_empty() { Next::Wait } else { Next::Send(changes, urgent) }
    }
}

impl Session {
    /// A session whose node has not said anything about what it enforces. `index`: the node's, in
    /// the world.
    pub fn new(
        node: NodeName,
        index: u32,
        version: String,
        instance: InstanceId,
        address: SocketAddr,
        connection: Connection,
    ) -> Self {
        Self {
            node,
            version,
            address,
            connection,
            instance,
            over_budget: Mutex::default(),
            clock_problem: Mutex::default(),
            wake: Notify::new(),
            index,
            calls: Mutex::default(),
            orders: Mutex::default(),
            backlog: Mutex::default(),
            enforced: watch::Sender::new(Revision(0)),
            degraded: Mutex::default(),
            concerned: AtomicU64::new(0),
            heard: Mutex::new(Heard { datagrams: 0, at: OffsetDateTime::now_utc() }),
        }
    }

    /// Notes that a revision changes something for the node.
    pub fn note_concerned(&self, revision: Revision) {
        self.concerned.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// Whether the node enforces what a revision changes for it.
    fn is_up_to(&self, revision: Revision) -> bool {
        self.enforced() >= self.due(revision)
    }

    /// What the node has to enforce to be up to a revision: what came later may have been no
    /// concern of it.
    fn due(&self, revision: Revision) -> Revision {
        revision.min(Revision(self.concerned.load(Ordering::Acquire)))
    }

    /// When the node was heard last, to [`HEARING`].
    pub fn heard(&self) -> OffsetDateTime {
        self.hear();
        self.heard.lock().at
    }

    /// Looks whether anything has come from the node since the last time.
    fn hear(&self) {
        let datagrams = self.connection.stats().udp_rx.datagrams;
        let mut heard = self.heard.lock();
        if heard.datagrams != datagrams {
            *heard = Heard { datagrams, at: OffsetDateTime::now_utc() };
        }
    }

    /// Notes that the node is over a budget.
    pub fn note_over_budget(&self, budget: &str) {
        *self.over_budget.lock() = Some((budget.to_owned(), Instant::now()));
    }

    /// Notes how the node's clock differs, if it does.
    pub fn set_clock_problem(&self, problem: Option<String>) {
        *self.clock_problem.lock() = problem;
    }

    /// What an operator should know of the node.
    pub fn problems(&self) -> Vec<String> {
        let over = self.over_budget.lock();
        let lately = over
            .as_ref()
            .filter(|(_, at)| at.elapsed() < SHOWN_FOR)
            .map(|(budget, _)| budget.clone());
        self.clock_problem.lock().iter().cloned().chain(lately).collect()
    }

    /// The revision that the node says it enforces.
    pub fn enforced(&self) -> Revision {
        *self.enforced.borrow()
    }

    /// Notes what keeps the node from writing down what it has to.
    pub fn note_degraded(&self, why: Option<String>) {
        let why = why.map(|why| why.chars().take(MOST_SAID).collect::<String>());
        if *self.degraded.lock() == why {
            return;
        }
        match &why {
            Some(why) => warn!(node = %self.node, "degraded: {why}"),
            None => info!(node = %self.node, "no longer degraded"),
        }
        *self.degraded.lock() = why;
    }

    /// The start of the daemon that has the session.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Why the node is degraded; it enforces all the same.
    pub fn degraded(&self) -> Option<String> {
        self.degraded.lock().clone()
    }

    /// Notes the revision that the node enforces.
    pub fn note_enforced(&self, revision: Revision) {
        self.enforced.send_if_modified(|known| {
            let newer = revision > *known;
            *known = revision.max(*known);
            newer
        });
    }

    /// Has the node told that a peer calls it.
    pub fn call(&self, network: NetworkName, peer: NodeName) {
        let mut calls = self.calls.lock();
        if calls.len() < MOST_CALLS && !calls.iter().any(|(own, by)| *own == network && *by == peer)
        {
            calls.push((network, peer));
            drop(calls);
            self.wake.notify_one();
        }
    }

    /// Has the node told something; what it has not been told yet of the same many times over gives
    /// way.
    pub fn order(&self, message: FromCoordinator) {
        let mut orders = self.orders.lock();
        if orders.len() >= MOST_ORDERS {
            orders.remove(0);
        }
        orders.push(message);
        drop(orders);
        self.wake.notify_one();
    }

    /// What the node is to be told, apart from what changes in the mesh.
    pub fn take_orders(&self) -> Vec<FromCoordinator> {
        std::mem::take(&mut *self.orders.lock())
    }

    /// Who has called since the last time.
    pub fn take_calls(&self) -> Vec<(NetworkName, NodeName)> {
        std::mem::take(&mut *self.calls.lock())
    }

    /// The node's index in the world.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether something waits that is not to wait.
    pub fn is_urgent(&self) -> bool {
        self.backlog.lock().urgent
    }

    /// Forgets what waits: the node is about to be compared with a world that has it all.
    pub fn forget_backlog(&self) {
        *self.backlog.lock() = Backlog::default();
    }

    async fn enforces(&self, revision: Revision) {
        let revision = self.due(revision);
        let mut enforced = self.enforced.subscribe();
        tokio::select! {
            _ = enforced.wait_for(|known| *known >= revision) => {}
            _ = self.connection.closed() => {}
        }
    }

    /// Asks the node; `None` if it does not answer in time.
    pub async fn ask(&self, question: &Question) -> Option<Answer> {
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

/// Why a machine that has a node's identity gets no session.
#[derive(Debug, Clone)]
pub struct Held {
    /// Where it is.
    pub from: IpAddr,
    /// Where the machine is that has the session.
    pub other: IpAddr,
    /// Whether it is held for the first time.
    pub is_new: bool,
}

impl Held {
    /// The reason, and the way out.
    pub fn reason(&self) -> String {
        format!(
            "another machine, at {}, has this node's identity and a session: this one is a copy of \
            its disk. To make it a node of its own, stop the daemon, remove its data folder, and \
            run `meshward-node join` with a new token",
            self.other
        )
    }
}

/// Which starts of a node's daemon have been seen.
#[derive(Default)]
struct Instances {
    /// Those that another has come after, the oldest first.
    before: VecDeque<InstanceId>,
    /// The one that is held, where, and when it last came.
    held: Option<(InstanceId, IpAddr, Instant)>,
    /// When sessions were begun.
    begun: Option<Bucket>,
}

/// All sessions.
#[derive(Default)]
pub struct Sessions {
    table: RwLock<Table>,
    instances: Mutex<HashMap<NodeName, Instances>>,
    /// Machines that were held since the start.
    held: AtomicU64,
    /// The newest revision of which every backlog has all.
    published: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_node: HashMap<NodeName, Arc<Session>>,
    by_index: HashMap<u32, Arc<Session>>,
    /// When the sessions of nodes ended that have none now, as far as this process knows.
    ended: HashMap<NodeName, OffsetDateTime>,
}

impl Sessions {
    /// Whether a node may begin another session now.
    pub fn may_begin(&self, node: &NodeName, rate: Rate, now: Instant) -> bool {
        let mut instances = self.instances.lock();
        let begun = &mut instances.entry(node.clone()).or_default().begun;
        begun.get_or_insert_with(|| Bucket::full(rate, now)).take(rate, 1.0, now)
    }

    /// Judges whether a start of a node's daemon may have the node's session. It may not while
    /// another machine has it that is alive and was there first: disks are copied. A daemon that
    /// was started again finds the one before it dead.
    ///
    /// # Errors
    /// [`Held`].
    pub async fn admit(
        &self,
        node: &NodeName,
        instance: InstanceId,
        from: SocketAddr,
    ) -> Result<(), Held> {
        // A machine whose memory was copied, too, speaks as the same start of the daemon from
        // elsewhere.
        let is_other =
            |other: &Arc<Session>| other.instance != instance || other.address.ip() != from.ip();
        let Some(other) = self.get(node).filter(is_other) else { return Ok(()) };
        let is_alive = tokio::time::timeout(ALIVE_WITHIN, other.ask(&Question::Alive)).await;
        if !matches!(is_alive, Ok(Some(Answer::Alive))) || other.connection.close_reason().is_some()
        {
            if other.instance != instance {
                self.note_succession(node, other.instance);
            }
            return Ok(());
        }
        let came_back = {
            let instances = self.instances.lock();
            instances.get(node).is_some_and(|known| known.before.contains(&instance))
        };
        if !came_back {
            return Err(self.note_held(node, instance, from.ip(), other.address.ip()));
        }
        // The first comes back, and the other took its place meanwhile: that one is held when it
        // comes again.
        self.remove(&other);
        let reason = Held { from: other.address.ip(), other: from.ip(), is_new: true }.reason();
        other.connection.close(6u32.into(), reason.as_bytes());
        Ok(())
    }

    fn note_succession(&self, node: &NodeName, before: InstanceId) {
        let mut instances = self.instances.lock();
        let known = &mut instances.entry(node.clone()).or_default().before;
        if !known.contains(&before) {
            known.push_back(before);
        }
        if known.len() > KNOWN_INSTANCES {
            known.pop_front();
        }
    }

    fn note_held(
        &self,
        node: &NodeName,
        instance: InstanceId,
        from: IpAddr,
        other: IpAddr,
    ) -> Held {
        let mut instances = self.instances.lock();
        let known = instances.entry(node.clone()).or_default();
        let is_new =
            known.held.is_none_or(|(before, _, at)| before != instance || at.elapsed() > SHOWN_FOR);
        known.held = Some((instance, from, Instant::now()));
        known.before.retain(|before| *before != instance);
        if is_new {
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        Held { from, other, is_new }
    }

    /// Where a second machine with a node's identity was held lately.
    pub fn held(&self, node: &NodeName) -> Option<IpAddr> {
        let instances = self.instances.lock();
        let (_, from, at) = instances.get(node)?.held?;
        (at.elapsed() < SHOWN_FOR).then_some(from)
    }

    /// How many machines were held since the start.
    pub fn held_count(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Forgets what is known of the starts of a node that is no member any more.
    pub fn forget_instances(&self, node: &NodeName) {
        self.instances.lock().remove(node);
    }

    /// Adds a session; an older one of the same node ends.
    pub fn add(&self, session: Arc<Session>) {
        let mut table = self.table.write();
        table.ended.remove(&session.node);
        table.by_index.insert(session.index, session.clone());
        let before = table.by_node.insert(session.node.clone(), session);
        if let Some(before) = before {
            before.connection.close(1u32.into(), b"the node has a newer session");
        }
    }

    /// The starts of daemons that have sessions, with their nodes.
    pub fn instances(&self) -> Vec<(NodeName, InstanceId)> {
        let table = self.table.read();
        table.by_node.iter().map(|(node, session)| (node.clone(), session.instance)).collect()
    }

    /// Removes a session, if it is still the node's.
    pub fn remove(&self, session: &Arc<Session>) {
        let mut table = self.table.write();
        if table.by_node.get(&session.node).is_some_and(|current| Arc::ptr_eq(current, session)) {
            table.by_node.remove(&session.node);
            table.by_index.remove(&session.index);
            table.ended.insert(session.node.clone(), session.heard());
        }
    }

    /// Since when nothing was heard of a node: of one that is connected, when it was heard last.
    /// `None` if it has had no session since this process began.
    pub fn silent_since(&self, node: &NodeName) -> Option<OffsetDateTime> {
        let table = self.table.read();
        table
            .by_node
            .get(node)
            .map(|session| session.heard())
            .or_else(|| table.ended.get(node).copied())
    }

    /// Notes that a node was seen now that has no session yet: it joins.
    pub fn note_seen(&self, node: &NodeName) {
        let mut table = self.table.write();
        if !table.by_node.contains_key(node) {
            table.ended.insert(node.clone(), OffsetDateTime::now_utc());
        }
    }

    /// Forgets when a node was seen that did not become one.
    pub fn forget_seen(&self, node: &NodeName) {
        self.table.write().ended.remove(node);
    }

    /// Listens, for ever, for when nodes are heard.
    pub async fn hear(&self) {
        loop {
            tokio::time::sleep(HEARING).await;
            let all: Vec<Arc<Session>> = self.table.read().by_node.values().cloned().collect();
            all.iter().for_each(|session| session.hear());
        }
    }

    /// A node's session.
    pub fn get(&self, node: &NodeName) -> Option<Arc<Session>> {
        self.table.read().by_node.get(node).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table.read().by_node.len()
    }

    /// For how long a session holds back what is not urgent: between half of the pace and all of
    /// it, for each node another time, so that what all nodes are told does not go to all of them
    /// at one moment.
    pub fn pace(&self, session: &Session) -> Duration {
        let pace = (PACE * self.count() as u32).min(LONGEST_PACE);
        // Fibonacci hashing: neighbours get times far from each other.
        let part = session.index.wrapping_mul(2_654_435_769) >> 16;
        pace / 2 + pace / 2 * part / (1 << 16)
    }

    /// Has nodes told what a revision changes for them. Called in the order of the revisions;
    /// delays nobody, and is delayed by nobody.
    pub fn deliver(&self, revision: Revision, deltas: &Deltas) {
        let table = self.table.read();
        let mut woken = Vec::new();
        for delta in &deltas.all {
            let mut encoded = None;
            for session in delta.nodes.iter().filter_map(|node| table.by_index.get(&node)) {
                let changes = encoded.get_or_insert_with(|| EncodedChanges::of(&delta.changes));
                session.note_concerned(revision);
                if session.backlog.lock().push(revision, changes, delta.urgent) {
                    woken.push(session);
                }
            }
        }
        self.published.store(revision.0, Ordering::Release);
        woken.into_iter().for_each(|session| session.wake.notify_one());
    }

    /// Has every node compared with the world, whatever it was told.
    pub fn compare_all(&self) {
        for session in self.table.read().by_node.values() {
            *session.backlog.lock() =
                Backlog { overflowed: true, urgent: true, ..Backlog::default() };
            session.wake.notify_one();
        }
    }

    /// What a session is to do next, and the revision that its node then has.
    pub fn next(&self, session: &Session) -> (Revision, Next) {
        let published = Revision(self.published.load(Ordering::Acquire));
        let mut backlog = session.backlog.lock();
        let next = backlog.next(published);
        if backlog.waits() {
            // It is of a revision that is being delivered just now. Nobody else tells the session
            // of it.
            session.wake.notify_one();
        }
        (published, next)
    }

    /// Ends a node's session.
    pub fn end(&self, node: &NodeName, why: &str) {
        self.forget_instances(node);
        if let Some(session) = self.get(node) {
            self.remove(&session);
            session.connection.close(CLOSE_REMOVED.into(), why.as_bytes());
        }
        self.table.write().ended.remove(node);
    }

    /// Waits until the connected ones of `nodes` enforce `revision`, for at most `patience`, and
    /// gives those that do.
    pub async fn wait_enforced(
        &self,
        nodes: &RoaringBitmap,
        revision: Revision,
        patience: Duration,
    ) -> RoaringBitmap {
        let all = async {
            // One after the other: the last of them to enforce is waited for in any order.
            for node in nodes {
                self.node_enforces(node, revision).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
        let table = self.table.read();
        let is_up =
            |node: &u32| table.by_index.get(node).is_some_and(|session| session.is_up_to(revision));
        nodes.iter().filter(is_up).collect()
    }

    /// Waits until a node enforces a revision, or has no session. A session that a newer one of a
    /// restarted daemon takes the place of is not the end of it.
    async fn node_enforces(&self, node: u32, revision: Revision) {
        loop {
            let Some(session) = self.table.read().by_index.get(&node).cloned() else { return };
            session.enforces(revision).await;
            let current = self.table.read().by_index.get(&node).cloned();
            if session.is_up_to(revision)
                || current.is_none_or(|current| Arc::ptr_eq(&current, &session))
            {
                return;
            }
        }
    }

    /// Asks every connected node.
    pub async fn ask_all(&self, question: &Question) -> Vec<(NodeName, Option<Answer>)> {
        let sessions: Vec<_> = self.table.read().by_node.values().cloned().collect();
        join_all(
            sessions
                .into_iter()
                .map(async |session| (session.node.clone(), session.ask(question).await)),
        )
        .await
    }
}

#[cfg(test)]
mod tests;
