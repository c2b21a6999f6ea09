//! The session of one node: its messages are applied to the mesh, and it gets the deltas of its
//! view.

mod budget;
mod compare;
mod endpoints;
mod link;
mod opening;
mod retry;
mod workloads;

use crate::{
    control::{inbox::Inbox, member::MemberConnection},
    mesh::Mesh,
    reactions,
    sessions::{ConnectedNode, HolePunch, NextStep, Session},
};
use anyhow::{Context, Result};
use budget::BudgetMeter;
use endpoints::EndpointReports;
use link::NodeLink;
use meshward_control_proto::{FromCoordinator, FromNode, encode_update};
use meshward_control_state::{plans::workloads::Report, world::NodeIndex};
use meshward_runtime::tls::MemberCertificate;
use meshward_types::Revision;
use opening::{Hello, Inventory};
use quinn::Connection;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::info;
use workloads::{OverBudget, WorkloadReports};

/// The maximum number of starts and stops of one node that are written together.
const MAX_REPORTS: usize = 512;

/// Serves a session until it ends.
///
/// # Errors
/// The reason for which it ended, unless the node closed it.
pub(super) async fn serve(mesh: &Arc<Mesh>, member: MemberConnection) -> Result<()> {
    let MemberConnection { connection, certificate, from, send, receive } = member;
    let node = certificate.node.clone();
    let mut session = NodeSession {
        link: NodeLink { mesh: mesh.clone(), node: node.clone(), from, stream: send },
        inbox: Inbox::read(receive, mesh.budget.waiting_kib << 10),
        budget: BudgetMeter::new(mesh.budget.clone()),
        endpoints: EndpointReports::new(),
        workloads: WorkloadReports::default(),
    };
    let ended = session.run(connection, &certificate).await;
    info!(%node, "session ended");
    ended
}

/// One session as it runs.
struct NodeSession {
    link: NodeLink,
    inbox: Inbox,
    budget: BudgetMeter,
    endpoints: EndpointReports,
    workloads: WorkloadReports,
}

impl NodeSession {
    async fn run(&mut self, connection: Connection, certificate: &MemberCertificate) -> Result<()> {
        let opened =
            opening::open(&mut self.link, &mut self.inbox, &connection, certificate).await?;
        let Some(hello) = opened else { return Ok(()) };
        let Inventory { endpoints, workloads } =
            opening::receive_inventory(&mut self.link, &mut self.inbox, &mut self.budget).await?;
        self.endpoints.write(endpoints, &mut self.link).await?;
        self.workloads.write(vec![Report::All(workloads)], &mut self.link).await?;
        let (theirs, revision) = (hello.digest, hello.revision);
        // From this moment on, the session gets the deltas of every revision.
        let mesh = self.link.mesh.clone();
        let begun = mesh.look(|world| {
            let index = world.nodes.index(&self.link.node)?;
            let session = self.register(index, hello, connection);
            session.note_relevant(world.revision);
            Some((session, world.revision, world.digest_of(&self.link.node)))
        });
        let (session, current, ours) = begun.context("the node was removed from the mesh")?;
        let _end = RemoveAtEnd { mesh: mesh.clone(), session: session.clone() };
        mesh.relays.announce_session(&mesh.forwarder, &mesh.sessions, &self.link.node);
        info!(node = %self.link.node, from = %self.link.from, %revision, "session begun");
        if ours == theirs {
            self.link.send_update(current, vec![]).await?;
        } else {
            self.compare(&session).await?;
        }
        self.serve(&session).await
    }

    /// Adds the session to those that deltas are delivered to.
    fn register(&self, index: NodeIndex, hello: Hello, connection: Connection) -> Arc<Session> {
        let node = ConnectedNode {
            name: self.link.node.clone(),
            index,
            version: hello.version,
            instance: hello.instance,
            address: self.link.from,
        };
        let session = Arc::new(Session::new(node, connection));
        session.set_clock_problem(hello.clock_problem);
        self.link.mesh.sessions.add(session.clone());
        self.link.mesh.loads.begin(&self.link.node);
        session
    }

    /// Serves the session until the node closes it.
    async fn serve(&mut self, session: &Arc<Session>) -> Result<()> {
        // The time at which the deltas that wait are to be sent.
        let mut due: Option<Instant> = None;
        let mut relays = self.link.mesh.relays.specs();
        let known = relays.borrow_and_update().to_vec();
        self.link.send(&FromCoordinator::Relays(known)).await?;
        let mut enforced = self.inbox.enforced.clone();
        enforced.mark_changed();
        loop {
            let paused_until = self.budget.paused_until;
            tokio::select! {
                Ok(()) = relays.changed() => {
                    let known = relays.borrow_and_update().to_vec();
                    self.link.send(&FromCoordinator::Relays(known)).await?;
                }
                Ok(()) = enforced.changed() => {
                    let revision = *enforced.borrow_and_update();
                    self.note_enforced(session, revision)?;
                }
                () = session.wake.notified() => {
                    self.send_messages(session).await?;
                    let now = Instant::now();
                    let pace = self.link.mesh.sessions.pace(session);
                    due = Some(if session.is_urgent() { now } else { due.unwrap_or(now + pace) });
                }
                () = wait_until(due), if due.is_some() => {
                    due = None;
                    self.send_deltas(session).await?;
                }
                () = wait_until(self.endpoints.due), if self.endpoints.due.is_some() => {
                    self.endpoints.flush(&mut self.link).await?;
                }
                () = wait_until(self.workloads.retry_at), if self.workloads.retry_at.is_some() => {
                    self.workloads.retry(&mut self.link).await?;
                }
                () = wait_until(paused_until), if paused_until.is_some() => {
                    self.budget.paused_until = None;
                }
                message = self.inbox.next(), if paused_until.is_none() => {
                    let Some(message) = message? else { return Ok(()) };
                    self.apply(message, session).await?;
                }
            }
        }
    }

    /// Sends what waits for the node apart from deltas.
    async fn send_messages(&mut self, session: &Session) -> Result<()> {
        for HolePunch { network, peer } in session.drain_hole_punches() {
            self.link.send(&FromCoordinator::PunchHole { network, peer }).await?;
        }
        for message in session.drain_messages() {
            self.link.send(&message).await?;
        }
        Ok(())
    }

    /// Sends the deltas that wait, or has the node's view compared if there were too many.
    async fn send_deltas(&mut self, session: &Arc<Session>) -> Result<()> {
        match self.link.mesh.sessions.next_step(session) {
            NextStep::Wait => Ok(()),
            NextStep::Send { revision, changes, urgent } => {
                self.link.send_encoded(&encode_update(revision, &changes, urgent)).await
            }
            NextStep::Compare => self.compare(session).await,
        }
    }

    /// Compares the node's view with the world, and applies the messages that came meanwhile.
    async fn compare(&mut self, session: &Arc<Session>) -> Result<()> {
        let messages = compare::compare(&mut self.link, &mut self.inbox, session).await?;
        for message in messages {
            self.apply(message, session).await?;
        }
        Ok(())
    }

    /// Applies a message of the node.
    async fn apply(&mut self, message: FromNode, session: &Arc<Session>) -> Result<()> {
        self.budget.charge(1, &mut self.link, session).await?;
        match message {
            FromNode::Enforced(revision) => self.note_enforced(session, revision)?,
            FromNode::Started(report) => {
                return self.apply_reports(Report::Started(Box::new(report)), session).await;
            }
            FromNode::Stopped(id) => return self.apply_reports(Report::Stopped(id), session).await,
            FromNode::Health { workload, service, health } => {
                let found = Report::Health(workload, service, health);
                return self.apply_reports(found, session).await;
            }
            FromNode::Endpoint(report) => {
                if self.link.mesh.look(|world| world.networks.contains_key(&report.network)) {
                    self.endpoints.queue(report);
                }
            }
            FromNode::Degraded(reason) => session.note_degraded(reason),
            FromNode::PunchHole { network, peer } => {
                self.forward_hole_punch(session, HolePunch { network, peer });
            }
            FromNode::Fired(fired) => {
                reactions::fire(&self.link.mesh, &self.link.node, fired).await;
            }
            FromNode::Load(loads) => {
                let mesh = &self.link.mesh;
                mesh.look(|world| mesh.loads.report(world, &self.link.node, loads));
            }
            FromNode::Renew { csr } => self.link.renew(&csr).await?,
            FromNode::Hello { .. }
            | FromNode::Inventory { .. }
            | FromNode::ResourceHashes { .. }
            | FromNode::Leave => {
                anyhow::bail!("the node sent a message that nothing had asked for")
            }
        }
        Ok(())
    }

    /// Records the revision that the node enforces.
    fn note_enforced(&self, session: &Session, revision: Revision) -> Result<()> {
        let current = self.link.mesh.look(|world| world.revision);
        anyhow::ensure!(
            revision <= current,
            "the node enforces revision {revision}, but the newest one is {current}"
        );
        session.note_enforced(revision);
        Ok(())
    }

    /// Forwards a hole-punch request to the peer, if the two have a link in that network.
    fn forward_hole_punch(&self, session: &Session, request: HolePunch) {
        let HolePunch { network, peer } = request;
        let mesh = &self.link.mesh;
        let are_linked = mesh.look(|world| {
            let (known, peer) = (world.networks.get(&network)?, world.nodes.index(&peer)?);
            known.meeting(session.node.index).contains(peer).then_some(())
        });
        if let (Some(()), Some(other)) = (are_linked, mesh.sessions.get(&peer)) {
            other.request_hole_punch(HolePunch { network, peer: self.link.node.clone() });
        }
    }

    /// Applies a start or a stop, and those that wait right behind it.
    async fn apply_reports(&mut self, first: Report, session: &Arc<Session>) -> Result<()> {
        let (mut reports, mut other) = (vec![first], None);
        while reports.len() < MAX_REPORTS && other.is_none() {
            match self.inbox.next_at_once()? {
                Some(FromNode::Started(report)) => reports.push(Report::Started(Box::new(report))),
                Some(FromNode::Stopped(id)) => reports.push(Report::Stopped(id)),
                Some(FromNode::Health { workload, service, health }) => {
                    reports.push(Report::Health(workload, service, health));
                }
                Some(message) => other = Some(message),
                None => break,
            }
        }
        self.budget.charge(reports.len() - 1, &mut self.link, session).await?;
        let mut allowed = Vec::with_capacity(reports.len());
        for report in reports {
            match workloads::count(report, &mut self.budget) {
                Ok(report) => allowed.push(report),
                Err(OverBudget { started, limit }) => {
                    // An earlier report of this workload does not stand either.
                    allowed.push(Report::Stopped(started.id.clone()));
                    session.note_over_budget(&limit);
                    self.budget.refuse(started.id, limit, &mut self.link).await?;
                }
            }
        }
        self.workloads.write(allowed, &mut self.link).await?;
        match other {
            Some(message) => Box::pin(self.apply(message, session)).await,
            None => Ok(()),
        }
    }
}

/// Waits until a time; forever, if there is none.
async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Removes the session from those that deltas are delivered to, when dropped.
struct RemoveAtEnd {
    mesh: Arc<Mesh>,
    session: Arc<Session>,
}

impl Drop for RemoveAtEnd {
    fn drop(&mut self) {
        let Self { mesh, session } = self;
        mesh.sessions.remove(session);
        if mesh.sessions.get(&session.node.name).is_none() {
            mesh.loads.forget(&session.node.name);
        }
        mesh.relays.announce_session(&mesh.forwarder, &mesh.sessions, &session.node.name);
    }
}
