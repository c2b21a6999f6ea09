//! The session of one node, as it runs.

use super::{inbox::Inbox, limits::FIRST_MESSAGE};
use crate::{
    limits::{change_rate, session_rate},
    mesh::{ChangeContext, Mesh},
    reactions,
    sessions::{Held, Next, Session},
};
use anyhow::{Context, Result};
use meshward_control_proto::{
    CLOSE_REMOVED, Change, EndpointReport, FromCoordinator, FromNode, MemberKind, WorkloadReport,
    encode, encode_update, view::ResourceHashes,
};
use meshward_control_state::{
    Plan, Refusal,
    budget::Usage,
    plans::{nodes, workloads::Report},
    world::World,
};
use meshward_relay::listener::check_unexpired;
use meshward_runtime::{
    frames,
    sources::{Bucket, Rate},
    tls::{MemberCertificate, clocks_apart},
};
use meshward_types::{NetworkName, NodeName, PublicKey, Revision};
use quinn::{Connection, RecvStream, SendStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

/// The most starts and stops of one node that are taken together.
const BATCH: usize = 512;
/// The parts in which a node says what it has at first, and the endpoints and workloads in them, at
/// the most.
const MOST_PARTS: usize = 4096;
const MOST_ELEMENTS: usize = 1 << 17;
/// For how long a node may work out what it has.
const COMPARING: Duration = Duration::from_secs(30);
/// The most items that a node may say it has, whatever it should have.
const SPARE_ITEMS: usize = 1 << 16;
/// Messages of a node that wait while it works that out.
const MEANWHILE: usize = 256;
/// A node that has not read for this long is stuck: its session ends, and it is told all that it
/// missed in its next.
const STUCK: Duration = Duration::from_secs(30);
/// What a node says of its endpoints is told to others at once so many times, and then once a
/// second.
const ENDPOINTS: Rate = Rate { burst: 10.0, per_second: 1.0 };
/// After this pause it is tried again to write down what there was no room for, and so many reports
/// wait for that.
const WRITE_AGAIN: Duration = Duration::from_secs(2);
const MOST_UNWRITTEN: usize = 8192;
/// The most keys of others that a session is remembered to have claimed.
const MOST_REFUSED: usize = 64;
/// How often a node is told that it is over a budget.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// For how long a node that is not to have a session may take to close its connection.
const CLOSING: Duration = Duration::from_secs(2);

/// Serves a session until it ends.
pub(super) async fn serve(
    mesh: &Arc<Mesh>,
    connection: Connection,
    certificate: MemberCertificate,
    from: SocketAddr,
    send: SendStream,
    receive: RecvStream,
) -> Result<()> {
    let node = certificate.node.clone();
    let now = std::time::Instant::now();
    let mut serving = Serving {
        mesh: mesh.clone(),
        node: node.clone(),
        from,
        send,
        messages: Inbox::read(receive, mesh.budget.waiting_kib << 10),
        usage: Usage::default(),
        changes: Bucket::full(change_rate(&mesh.budget), now),
        paused_until: None,
        told: None,
        endpoints: BTreeMap::new(),
        endpoints_due: None,
        endpoints_told: Bucket::full(ENDPOINTS, now),
        unwritten: vec![],
        unwritten_due: None,
        refused_keys: BTreeSet::new(),
    };
    let ended = serving.run(connection, &certificate).await;
    info!(%node, "session ended");
    ended
}

/// One session as it runs.
struct Serving {
    mesh: Arc<Mesh>,
    node: NodeName,
    /// The keys that it has claimed and that are others': each is in the audit log once.
    refused_keys: BTreeSet<PublicKey>,
    /// Where the node's packets come from.
    from: SocketAddr,
    send: SendStream,
    messages: Inbox,
    /// What its workloads take.
    usage: Usage,
    /// What it may still change.
    changes: Bucket,
    /// It has changed too much: until then nothing more of it is taken.
    paused_until: Option<Instant>,
    /// When it was last told of a budget.
    told: Option<Instant>,
    /// What it has said of its endpoints and nobody has been told, when they are to be, and how
    /// often they may be.
    endpoints: BTreeMap<NetworkName, EndpointReport>,
    endpoints_due: Option<Instant>,
    endpoints_told: Bucket,
    /// Reports that could not be written down, and when it is tried again.
    unwritten: Vec<Report>,
    unwritten_due: Option<Instant>,
}

impl Serving {
    async fn run(&mut self, connection: Connection, certificate: &MemberCertificate) -> Result<()> {
        let mut first = self.messages.expect(FIRST_MESSAGE).await?;
        if matches!(first, FromNode::Leave) {
            return self.leave(&connection).await;
        }
        if let FromNode::Renew { csr } = first {
            self.renew(&csr).await?;
            if check_unexpired(certificate).is_err() {
                // Its new certificate is for its next session.
                let _ = tokio::time::timeout(FIRST_MESSAGE, connection.closed()).await;
                return Ok(());
            }
            first = self.messages.expect(FIRST_MESSAGE).await?;
        }
        if let Err(error) = check_unexpired(certificate) {
            connection.close(7u32.into(), format!("{error:#}").as_bytes());
            return Err(error);
        }
        let FromNode::Hello { version, instance, clock, revision, digest: theirs } = first else {
            anyhow::bail!("the session does not begin with a hello");
        };
        let now = OffsetDateTime::now_utc();
        let clock_problem = clocks_apart(clock, now.unix_timestamp());
        if let Some(problem) = &clock_problem {
            warn!(node = %self.node, "{problem}");
        }
        if !self.mesh.sessions.may_begin(
            &self.node,
            session_rate(&self.mesh.budget),
            std::time::Instant::now(),
        ) {
            let text =
                "too many sessions in a short time (`nodes.sessions_per_minute`); wait a minute";
            connection.close(5u32.into(), text.as_bytes());
            anyhow::bail!("{} begins too many sessions", self.node);
        }
        if let Err(held) = self.mesh.sessions.admit(&self.node, instance, self.from).await {
            return self.hold(&connection, &held).await;
        }
        let (endpoints, reports) = self.receive_all().await?;
        let node = self.node.clone();
        self.set_endpoints(endpoints).await?;
        self.report(vec![Report::All(reports)]).await?;
        // From this look on, the session is told of every revision.
        let begun = self.mesh.look(|world| {
            let index = world.nodes.index(&node)?;
            let session =
                Session::new(node.clone(), index, version, instance, self.from, connection);
            let session = Arc::new(session);
            session.set_clock_problem(clock_problem);
            session.note_concerned(world.revision);
            self.mesh.sessions.add(session.clone());
            Some((session, world.revision, world.digest_of(&node)))
        });
        let (session, current, ours) = begun.context("the node was removed from the mesh")?;
        let _end = RemoveAtEnd(&self.mesh.clone(), session.clone());
        self.mesh.relays.tell_session(&self.mesh.forwarder, &self.mesh.sessions, &self.node);
        info!(node = %self.node, from = %self.from, %revision, "session begun");
        if ours == theirs {
            self.update(current, vec![]).await?;
        } else {
            self.compare(&session).await?;
        }
        self.serve(&session).await
    }

    /// Lets a node go that wants to leave the mesh, and tells it.
    async fn leave(&mut self, connection: &Connection) -> Result<()> {
        let context = ChangeContext {
            origin: Some(self.from.ip().to_string()),
            ..ChangeContext::node(&self.node)
        };
        let plan = |world: &World| match world.nodes.contains_key(&self.node) {
            true => nodes::remove(world, &self.node),
            // Somebody has removed it meanwhile.
            false => Ok(Plan::nothing(())),
        };
        self.mesh.change(&context, plan).await?;
        info!(node = %self.node, "left the mesh");
        self.mesh.let_go(&self.node, "this node has left the mesh");
        connection.close(CLOSE_REMOVED.into(), b"this node has left the mesh");
        Ok(())
    }

    /// Has a machine wait that has the identity of another.
    async fn hold(&mut self, connection: &Connection, held: &Held) -> Result<()> {
        let reason = held.reason();
        warn!(node = %self.node, from = %self.from, "held: {reason}");
        if held.is_new {
            let action = format!(
                "held a second machine with the identity of node {}, at {}",
                self.node,
                self.from.ip()
            );
            let context = ChangeContext {
                origin: Some(self.from.ip().to_string()),
                ..ChangeContext::node(&self.node)
            };
            self.mesh.change(&context, |_| Ok(Plan::noted(action.clone()))).await?;
        }
        self.say(&FromCoordinator::StandBy { reason: reason.clone() }).await?;
        let _ = tokio::time::timeout(CLOSING, connection.closed()).await;
        connection.close(6u32.into(), reason.as_bytes());
        anyhow::bail!("two machines have the identity of node {}", self.node)
    }

    /// Receives what the node has, part by part.
    async fn receive_all(&mut self) -> Result<(Vec<EndpointReport>, Vec<WorkloadReport>)> {
        let mut all_endpoints = BTreeMap::new();
        // By id: what comes again takes the place of what came before.
        let mut reports = BTreeMap::new();
        let (mut parts, mut elements) = (0, 0);
        loop {
            let FromNode::Inventory { endpoints, workloads, is_last } =
                self.messages.expect(FIRST_MESSAGE).await?
            else {
                anyhow::bail!("a message came before all that the node has");
            };
            parts += 1;
            elements += endpoints.len() + workloads.len();
            anyhow::ensure!(
                parts <= MOST_PARTS && elements <= MOST_ELEMENTS,
                "the node says without end what it has"
            );
            for report in endpoints {
                // One for each network that there is.
                if self.mesh.look(|world| world.networks.contains_key(&report.network)) {
                    all_endpoints.insert(report.network.clone(), report);
                }
            }
            for report in workloads {
                match self.usage.add(&report, &self.mesh.budget) {
                    Ok(()) => drop(reports.insert(report.id.clone(), report)),
                    Err(over) => {
                        reports.remove(&report.id);
                        self.refuse(&report, over).await?;
                    }
                }
            }
            if is_last {
                return Ok((
                    all_endpoints.into_values().collect(),
                    reports.into_values().collect(),
                ));
            }
        }
    }

    async fn serve(&mut self, session: &Arc<Session>) -> Result<()> {
        // When what waits is to go.
        let mut due: Option<Instant> = None;
        let mut relays = self.mesh.relays.specs();
        let known = relays.borrow_and_update().to_vec();
        self.say(&FromCoordinator::Relays(known)).await?;
        let mut enforced = self.messages.enforced.clone();
        enforced.mark_changed();
        loop {
            tokio::select! {
                Ok(()) = relays.changed() => {
                    let known = relays.borrow_and_update().to_vec();
                    self.say(&FromCoordinator::Relays(known)).await?;
                }
                Ok(()) = enforced.changed() => {
                    let revision = *enforced.borrow_and_update();
                    self.note_enforced(session, revision)?;
                }
                () = session.wake.notified() => {
                    for (network, peer) in session.take_calls() {
                        self.say(&FromCoordinator::PunchHole { network, peer }).await?;
                    }
                    for order in session.take_orders() {
                        self.say(&order).await?;
                    }
                    let now = Instant::now();
                    let pace = self.mesh.sessions.pace(session);
                    due = Some(if session.is_urgent() { now } else { due.unwrap_or(now + pace) });
                }
                () = at(due), if due.is_some() => {
                    due = None;
                    match self.mesh.sessions.next(session) {
                        (_, Next::Wait) => {}
                        (revision, Next::Send(changes, urgent)) => {
                            self.say_encoded(&encode_update(revision, &changes, urgent)).await?;
                        }
                        (_, Next::Compare) => self.compare(session).await?,
                    }
                }
                () = at(self.endpoints_due), if self.endpoints_due.is_some() => self.tell_endpoints().await?,
                () = at(self.unwritten_due), if self.unwritten_due.is_some() => {
                    self.unwritten_due = None;
                    if !self.endpoints.is_empty() {
                        self.endpoints_due = Some(Instant::now());
                    }
                    self.report(vec![]).await?;
                }
                () = at(self.paused_until), if self.paused_until.is_some() => self.paused_until = None,
                message = self.messages.next(), if self.paused_until.is_none() => {
                    let Some(message) = message? else { return Ok(()) };
                    self.take(message, session).await?;
                }
            }
        }
    }

    /// Finds out what the node has, and sends what differs from it.
    async fn compare(&mut self, session: &Arc<Session>) -> Result<()> {
        self.say(&FromCoordinator::Compare).await?;
        let deadline = Instant::now() + COMPARING;
        let (mut before, mut hashes, mut most) = (Vec::new(), ResourceHashes::new(), SPARE_ITEMS);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.messages.expect(left).await.context("the node did not say what it has")? {
                FromNode::ResourceHashes { part, is_last } => {
                    if hashes.len() + part.len() > most {
                        // It may be that it should have as many.
                        most = SPARE_ITEMS
                            + 2 * self.mesh.look(|world| world.view_parts(&self.node)).count();
                        anyhow::ensure!(
                            hashes.len() + part.len() <= most,
                            "the node has more than there is"
                        );
                    }
                    hashes.extend(part);
                    if is_last {
                        break;
                    }
                }
                _ if before.len() == MEANWHILE => {
                    anyhow::bail!("the node says everything but what it has")
                }
                other => before.push(other),
            }
        }
        let parts = self.mesh.look(|world| {
            session.forget_backlog();
            world.view_parts(&self.node)
        });
        // A hundred thousand items take a tenth of a second: neither the mesh nor other sessions
        // wait for that.
        let compare = move || {
            let view = parts.into_view();
            (view.revision, view.changes_since(&hashes))
        };
        let (revision, changes) = tokio::task::spawn_blocking(compare).await?;
        self.update(revision, changes).await?;
        for message in before {
            self.take(message, session).await?;
        }
        Ok(())
    }

    async fn update(&mut self, revision: Revision, changes: Vec<Change>) -> Result<()> {
        self.say(&FromCoordinator::Update { revision, changes, urgent: true }).await
    }

    async fn say(&mut self, message: &FromCoordinator) -> Result<()> {
        self.say_encoded(&encode(message)).await
    }

    async fn say_encoded(&mut self, frame: &[u8]) -> Result<()> {
        let sent = tokio::time::timeout(STUCK, frames::send_encoded(&mut self.send, frame)).await;
        Ok(sent.context("the node has stopped reading")??)
    }

    async fn take(&mut self, message: FromNode, session: &Arc<Session>) -> Result<()> {
        self.count(1, session).await?;
        match message {
            FromNode::Enforced(revision) => self.note_enforced(session, revision)?,
            FromNode::Started(report) => {
                return self.take_reports(Report::Started(Box::new(report)), session).await;
            }
            FromNode::Stopped(id) => return self.take_reports(Report::Stopped(id), session).await,
            FromNode::Endpoint(report) => {
                if self.mesh.look(|world| world.networks.contains_key(&report.network)) {
                    self.endpoints.insert(report.network.clone(), report);
                    let told = &mut self.endpoints_told;
                    let mut wait = || told.owe(ENDPOINTS, 1.0, std::time::Instant::now());
                    let due = self.endpoints_due.take();
                    self.endpoints_due = Some(due.unwrap_or_else(|| Instant::now() + wait()));
                }
            }
            FromNode::Degraded(why) => session.note_degraded(why),
            FromNode::PunchHole { network, peer } => self.pass_call(session, network, &peer),
            FromNode::Fired(fired) => reactions::fire(&self.mesh, &self.node, fired).await,
            FromNode::Renew { csr } => self.renew(&csr).await?,
            FromNode::Hello { .. }
            | FromNode::Inventory { .. }
            | FromNode::ResourceHashes { .. }
            | FromNode::Leave => {
                anyhow::bail!("a message came out of turn")
            }
        }
        Ok(())
    }

    /// Notes what the node enforces: nothing that nobody could have told it.
    fn note_enforced(&self, session: &Session, revision: Revision) -> Result<()> {
        let current = self.mesh.look(|world| world.revision);
        anyhow::ensure!(
            revision <= current,
            "the node enforces revision {revision}, and there is none after {current}"
        );
        session.note_enforced(revision);
        Ok(())
    }

    /// Counts messages that change something. A node with too many hears so, and nothing more of it
    /// is taken for a while.
    async fn count(&mut self, messages: usize, session: &Session) -> Result<()> {
        let rate = change_rate(&self.mesh.budget);
        let wait = self.changes.owe(rate, messages as f64, std::time::Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        self.paused_until = Some(Instant::now() + wait);
        let budget = format!(
            "it changes more than {} things a second for long (`nodes.changes_per_second` in the \
            coordinator's configuration): what is beyond has to wait",
            rate.per_second
        );
        self.tell_over_budget(budget, Some(session)).await
    }

    async fn tell_over_budget(&mut self, budget: String, session: Option<&Session>) -> Result<()> {
        if let Some(session) = session {
            session.note_over_budget(&budget);
        }
        if self.told.is_some_and(|told| told.elapsed() < TOLD_EVERY) {
            return Ok(());
        }
        self.told = Some(Instant::now());
        warn!(node = %self.node, "over a budget: {budget}");
        self.say(&FromCoordinator::OverBudget { budget }).await
    }

    /// Has the others told where the node's endpoints are.
    async fn tell_endpoints(&mut self) -> Result<()> {
        self.endpoints_due = None;
        let reports: Vec<EndpointReport> =
            std::mem::take(&mut self.endpoints).into_values().collect();
        self.set_endpoints(reports).await
    }

    /// Notes where the node's endpoints are; those whose keys belong to others are refused, and it
    /// is told.
    async fn set_endpoints(&mut self, reports: Vec<EndpointReport>) -> Result<()> {
        let (context, node, seen) = (ChangeContext::node(&self.node), &self.node, self.from.ip());
        let known = &self.refused_keys;
        let sessions = &self.mesh.sessions;
        let others = |node: &NodeName| Some(sessions.get(node)?.address.ip());
        let plan =
            |world: &World| nodes::set_endpoints(world, node, &reports, seen, &others, known);
        let refused = match self.mesh.change(&context, plan).await {
            Ok(done) => done.outcome,
            Err(refusal) => {
                self.keep_for_later(refusal)?;
                for report in reports {
                    self.endpoints.entry(report.network.clone()).or_insert(report);
                }
                return Ok(());
            }
        };
        for nodes::RefusedEndpoint { network, key, reason } in refused {
            warn!(node = %self.node, %network, "refused an endpoint: {reason}");
            if self.refused_keys.len() < MOST_REFUSED {
                self.refused_keys.insert(key);
            }
            self.say(&FromCoordinator::RefusedEndpoint { network, reason }).await?;
        }
        Ok(())
    }

    /// Has something written later for which there is no room now: the session goes on.
    fn keep_for_later(&mut self, refusal: Refusal) -> Result<()> {
        match refusal {
            Refusal::Full(_) => {
                self.unwritten_due = Some(Instant::now() + WRITE_AGAIN);
                Ok(())
            }
            other => Err(other.into()),
        }
    }

    /// Tells a peer that the node calls it, if the two have something to say to each other.
    fn pass_call(&self, session: &Session, network: NetworkName, peer: &NodeName) {
        let meet = self.mesh.look(|world| {
            let (known, peer) = (world.networks.get(&network)?, world.nodes.index(peer)?);
            known.meeting(session.index()).contains(peer).then_some(())
        });
        if let (Some(()), Some(called)) = (meet, self.mesh.sessions.get(peer)) {
            called.call(network, self.node.clone());
        }
    }

    /// Takes a start or a stop, and whatever of these waits behind it.
    async fn take_reports(&mut self, first: Report, session: &Arc<Session>) -> Result<()> {
        let (mut reports, mut other) = (vec![first], None);
        while reports.len() < BATCH && other.is_none() {
            match self.messages.next_at_once()? {
                Some(FromNode::Started(report)) => reports.push(Report::Started(Box::new(report))),
                Some(FromNode::Stopped(id)) => reports.push(Report::Stopped(id)),
                Some(message) => other = Some(message),
                None => break,
            }
        }
        self.count(reports.len() - 1, session).await?;
        let mut within = Vec::with_capacity(reports.len());
        for report in reports {
            let over = match &report {
                Report::Started(started) => self
                    .usage
                    .add(started, &self.mesh.budget)
                    .err()
                    .map(|over| (started.clone(), over)),
                Report::Stopped(id) => {
                    self.usage.remove(id);
                    None
                }
                Report::All(_) => None,
            };
            match over {
                None => within.push(report),
                Some((started, over)) => {
                    // What it was before does not stand either.
                    within.push(Report::Stopped(started.id.clone()));
                    session.note_over_budget(&over);
                    self.refuse(&started, over).await?;
                }
            }
        }
        self.report(within).await?;
        match other {
            Some(message) => Box::pin(self.take(message, session)).await,
            None => Ok(()),
        }
    }

    /// Refuses a workload with which the node would be over a budget.
    async fn refuse(&mut self, report: &WorkloadReport, over: String) -> Result<()> {
        self.tell_over_budget(over.clone(), None).await?;
        self.say(&FromCoordinator::Refused { workload: report.id.clone(), reason: over }).await
    }

    /// Has reports written, those first that could not be before.
    async fn report(&mut self, reports: Vec<Report>) -> Result<()> {
        self.unwritten.extend(reports);
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let refused =
            match self.mesh.report_batcher.report(&self.node, self.unwritten.clone()).await {
                Ok(refused) => refused,
                Err(refusal) => {
                    anyhow::ensure!(
                        self.unwritten.len() <= MOST_UNWRITTEN,
                        "too much could not be written down"
                    );
                    return self.keep_for_later(refusal);
                }
            };
        self.unwritten.clear();
        for (workload, reason) in refused {
            warn!(node = %self.node, %workload, "refused: {reason}");
            self.say(&FromCoordinator::Refused { workload, reason }).await?;
        }
        Ok(())
    }

    async fn renew(&mut self, csr: &[u8]) -> Result<()> {
        let (certificate, read) = self.mesh.ca.sign_member(
            MemberKind::Node,
            &self.node,
            csr,
            self.mesh.certificate_lifetime,
        )?;
        let (context, node, key) =
            (ChangeContext::node(&self.node), self.node.clone(), read.key.to_string());
        self.mesh.change(&context, |world| nodes::set_key(world, &node, &key)).await?;
        info!(node = %self.node, "certificate renewed");
        self.say(&FromCoordinator::Renewed { certificate }).await
    }
}

/// Waits until then; for ever, if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

struct RemoveAtEnd<'a>(&'a Arc<Mesh>, Arc<Session>);

impl Drop for RemoveAtEnd<'_> {
    fn drop(&mut self) {
        let Self(mesh, session) = self;
        mesh.sessions.remove(session);
        mesh.relays.tell_session(&mesh.forwarder, &mesh.sessions, &session.node);
    }
}
