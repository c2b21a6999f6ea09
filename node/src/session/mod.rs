//! The session with the coordinator: held for ever, begun again whenever it ends.

mod acknowledgements;

use crate::{
    app::{Enforced, Node},
    folder::Folder,
    reachability::Direct,
    view_persister::UpdateNumber,
};
use acknowledgements::{Acknowledgements, Pending};
use anyhow::{Context, Result};
use meshward_control_proto::{Answer, Change, FromCoordinator, FromNode, MAX_UPDATE, Question};
use meshward_runtime::{
    csr::request,
    dial::{Dial, Pauses, is_removed},
    frames,
    member::Credentials,
    tls::{MemberCertificate, date},
};
use meshward_types::Revision;
use quinn::{Connection, RecvStream, SendStream};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, time::Instant};
use tracing::{error, info, warn};

/// The pause of a machine that was held back.
const HELD_PAUSE: Duration = Duration::from_secs(30);
/// A certificate that was renewed is not renewed again before this, whatever this machine's clock
/// says.
const RENEWAL_PAUSE: Duration = Duration::from_mins(1);

/// Another machine has this node's identity and the session.
#[derive(Debug, thiserror::Error)]
#[error("held back: {0}")]
struct HeldBack(String);

/// The time within which the coordinator must confirm that this node has left.
const LEAVING: Duration = Duration::from_secs(10);

/// The error that ends sessions for ever: the coordinator says that this node is no longer a
/// member.
#[derive(Debug, thiserror::Error)]
#[error("this node was removed from the mesh")]
struct Removed;

/// Holds sessions until this node is removed from the mesh.
pub async fn keep(node: Arc<Node>) {
    let mut pauses = Pauses::default();
    let mut renewed = None;
    loop {
        let begun = Instant::now();
        let ended = run(&node, &mut renewed).await;
        node.end_session();
        if ended.as_ref().is_err_and(anyhow::Error::is::<Removed>) {
            return;
        }
        if let Some(held) = ended.as_ref().err().and_then(|error| error.downcast_ref::<HeldBack>())
        {
            error!("no session with the coordinator: {held}");
            tokio::time::sleep(HELD_PAUSE).await;
            continue;
        }
        let why =
            ended.err().map_or_else(|| "it was closed".to_owned(), |error| format!("{error:#}"));
        warn!("no session with the coordinator: {why}; what was decided stays in force");
        pauses.wait(begun).await;
    }
}

/// `renewed`: when the certificate was renewed last.
async fn run(node: &Arc<Node>, renewed: &mut Option<Instant>) -> Result<()> {
    let credentials = node.folder.credentials()?;
    let certificate = credentials.read()?;
    let dial = Dial::for_session(&credentials.ca, &credentials.certificate, &credentials.key)?;
    let reached = dial.dial(&node.membership.coordinator).await?;
    let connection = reached.connection.clone();
    if reached.tunnelled {
        node.reachability.note_direct(Direct::No);
    }
    let ended = run_on(node, &connection, &certificate, &credentials, renewed).await;
    if is_removed(&connection) { Err(Removed.into()) } else { ended }
}

/// Leaves the mesh: when this returns, this node is no member any more.
///
/// # Errors
/// Fails if the coordinator cannot be reached, or does not say so.
pub async fn leave(folder: &Folder, coordinator: &str) -> Result<()> {
    let credentials = folder.credentials()?;
    let dial = Dial::for_session(&credentials.ca, &credentials.certificate, &credentials.key)?;
    let reached = dial.dial(coordinator).await?;
    let said = async {
        let (mut send, _receive) = reached.connection.open_bi().await?;
        frames::send(&mut send, &FromNode::Leave).await?;
        reached.connection.closed().await;
        anyhow::Ok(())
    };
    let said = tokio::time::timeout(LEAVING, said).await;
    if is_removed(&reached.connection) {
        return Ok(());
    }
    said.context("the coordinator does not answer")??;
    anyhow::bail!("the coordinator did not say that this node has left")
}

async fn run_on(
    node: &Arc<Node>,
    connection: &Connection,
    certificate: &MemberCertificate,
    credentials: &Credentials,
    renewed: &mut Option<Instant>,
) -> Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    // If a new one has expired, too, then by this machine's clock alone: the coordinator judges it
    // by its own.
    let was_renewed = renewed.is_some_and(|at| at.elapsed() < RENEWAL_PAUSE);
    if seconds_left(certificate) <= 0 && !was_renewed {
        info!("the certificate has expired; asking for a new one");
        frames::send(&mut send, &FromNode::Renew { csr: request(&credentials.key)? }).await?;
        let FromCoordinator::Renewed { certificate } =
            frames::receive(&mut receive, MAX_UPDATE).await?
        else {
            anyhow::bail!("the coordinator did not renew the certificate");
        };
        node.folder.keep_certificate(&certificate);
        node.folder.flush().await;
        *renewed = Some(Instant::now());
        warn_of_clock(&certificate);
        connection.close(0u32.into(), b"renewed");
        return Ok(());
    }
    let questions = tokio::spawn(answer_questions(node.clone(), connection.clone()));
    let ended = exchange_messages(node, connection, send, receive, certificate).await;
    questions.abort();
    ended.with_context(|| match connection.close_reason() {
        Some(reason) => format!("the connection ended ({reason})"),
        None => "the session ended".to_owned(),
    })
}

async fn exchange_messages(
    node: &Arc<Node>,
    connection: &Connection,
    mut send: SendStream,
    receive: RecvStream,
    certificate: &MemberCertificate,
) -> Result<()> {
    let (to_coordinator, mut outgoing) = mpsc::unbounded_channel();
    for message in node.begin_session(to_coordinator.clone()) {
        frames::send(&mut send, &message).await?;
    }
    let mut incoming = read_ahead(receive);
    let mut is_accepted = false;
    let (starts, mut started) = mpsc::unbounded_channel();
    let mut conversation = Conversation::new(node, to_coordinator, starts, certificate);
    let mut kept = node.enforcement.subscribe_persisted();
    let mut troubles = node.folder.troubles().subscribe();
    troubles.mark_changed();
    let mut degraded = false;
    loop {
        let (renew_at, due_at) = (conversation.renew_at, conversation.unacknowledged.due_at());
        let is_due = tokio::select! {
            message = incoming.recv() => {
                let Some(message) = message else { return Ok(()) };
                conversation.apply(message?)?;
                if !std::mem::replace(&mut is_accepted, true) {
                    note_accepted(node, connection);
                }
                false
            }
            Ok(()) = kept.changed() => {
                let kept = *kept.borrow_and_update();
                conversation.unacknowledged.note_persisted(kept)
            }
            Some(number) = started.recv() => conversation.unacknowledged.note_started(number),
            () = tokio::time::sleep_until(due_at.unwrap_or(renew_at)), if due_at.is_some() => true,
            Ok(()) = troubles.changed() => {
                troubles.mark_unchanged();
                let why = node.folder.troubles().summary();
                if why.is_some() || degraded {
                    degraded = why.is_some();
                    frames::send(&mut send, &FromNode::Degraded(why)).await?;
                }
                false
            }
            Some(message) = outgoing.recv() => {
                frames::send(&mut send, &message).await?;
                false
            }
            () = tokio::time::sleep_until(renew_at) => {
                let csr = request(&node.folder.credentials()?.key)?;
                frames::send(&mut send, &FromNode::Renew { csr }).await?;
                conversation.renew_at += RENEWAL_PAUSE;
                false
            }
        };
        if is_due && let Some(revision) = conversation.unacknowledged.take_due() {
            frames::send(&mut send, &FromNode::Enforced(revision)).await?;
        }
    }
}

/// Notes that the coordinator has accepted the session: it has answered, and not that another
/// machine has it.
fn note_accepted(node: &Node, connection: &Connection) {
    info!(coordinator = %connection.remote_address(), "session begun");
    node.link.note_accepted();
    let (reachability, address) = (node.reachability.clone(), connection.remote_address().ip());
    // Names of STUN servers may take long to resolve: what the coordinator says is not to wait.
    tokio::spawn(async move { reachability.set_coordinator(address).await });
}

/// Reads messages in a task of its own: a read that is given up halfway would lose bytes.
fn read_ahead(mut receive: RecvStream) -> mpsc::Receiver<Result<FromCoordinator>> {
    let (read, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let message =
                frames::receive(&mut receive, MAX_UPDATE).await.map_err(anyhow::Error::from);
            let ended = message.is_err();
            if read.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    incoming
}

/// A session, as far as the coordinator's messages change it.
struct Conversation {
    node: Arc<Node>,
    to_coordinator: mpsc::UnboundedSender<FromNode>,
    /// Told of updates whose endpoints have started.
    starts: mpsc::UnboundedSender<UpdateNumber>,
    renew_at: Instant,
    unacknowledged: Acknowledgements,
}

impl Conversation {
    fn new(
        node: &Arc<Node>,
        to_coordinator: mpsc::UnboundedSender<FromNode>,
        starts: mpsc::UnboundedSender<UpdateNumber>,
        certificate: &MemberCertificate,
    ) -> Self {
        Self {
            node: node.clone(),
            to_coordinator,
            starts,
            // By this machine's clock, which may be wrong.
            renew_at: Instant::now() + renewal_in(certificate).max(Duration::from_secs(1)),
            unacknowledged: Acknowledgements::default(),
        }
    }

    /// Applies a message. Nothing in here waits: an update that comes next is not to be held up by
    /// a name that does not resolve, or by a disk.
    fn apply(&mut self, message: FromCoordinator) -> Result<()> {
        let node = &self.node;
        match message {
            FromCoordinator::Compare => {
                for part in
                    FromNode::resource_hashes(node.enforcement.view(|view| view.resource_hashes()))
                {
                    let _ = self.to_coordinator.send(part);
                }
            }
            FromCoordinator::Update { revision, changes, urgent } => {
                self.enforce(revision, &changes, urgent);
            }
            FromCoordinator::PunchHole { network, peer } => {
                node.reachability.answer_hole_punch(&network, &peer);
            }
            FromCoordinator::RotateKeys { networks, keep_old_seconds } => {
                let (node, keep) = (node.clone(), Duration::from_secs(keep_old_seconds));
                tokio::spawn(async move {
                    if let Err(error) = node.rotate_keys(&networks, keep).await {
                        warn!("the keys stay as they are: {error:#}");
                    }
                });
            }
            FromCoordinator::Relays(relays) => {
                let reachability = node.reachability.clone();
                tokio::spawn(async move { reachability.set_relays(relays).await });
            }
            FromCoordinator::OverBudget { budget } => {
                warn!("the coordinator says: over a budget: {budget}");
            }
            FromCoordinator::StandBy { reason } => return Err(HeldBack(reason).into()),
            FromCoordinator::Refused { workload, reason } => {
                node.workloads.refuse(&workload, reason);
            }
            FromCoordinator::RefusedEndpoint { network, reason } => {
                error!(%network, "the coordinator does not take this node's endpoint: {reason}");
            }
            FromCoordinator::Renewed { certificate } => {
                let read = MemberCertificate::read(&certificate)
                    .context("the renewed certificate is damaged")?;
                node.folder.keep_certificate(&certificate);
                self.renew_at = Instant::now() + read.renewal_after();
                warn_of_clock(&certificate);
                info!(good_for_seconds = seconds_left(&read), "certificate renewed");
            }
        }
        Ok(())
    }

    fn enforce(&mut self, revision: Revision, changes: &[Change], is_urgent: bool) {
        let Enforced { number, starting } = self.node.enforce(revision, changes);
        let is_started = starting.is_none();
        self.unacknowledged.add(Pending { number, revision, is_urgent, is_started });
        if let Some(starting) = starting {
            let starts = self.starts.clone();
            tokio::spawn(async move {
                let _ = starting.await;
                let _ = starts.send(number);
            });
        }
        info!(%revision, changes = changes.len(), "update enforced");
    }
}

async fn answer_questions(node: Arc<Node>, connection: Connection) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let node = node.clone();
        tokio::spawn(async move {
            let answer = match frames::receive(&mut receive, MAX_UPDATE).await {
                Ok(Question::Alive) => Answer::Alive,
                Ok(Question::Links) => Answer::Links(node.link_counts()),
                Ok(Question::Cuts { network, links }) => {
                    Answer::Cuts(node.count_cuts(&network, links))
                }
                Ok(Question::OpenFlows { network, workloads }) => {
                    Answer::OpenFlows(node.open_flows(&network, workloads))
                }
                Ok(Question::Flows { network, seconds }) => {
                    Answer::Flows(node.flows(&network, seconds))
                }
                Ok(Question::AddDevice(order)) => Answer::Device(
                    node.workloads.add_device(order).await.map_err(|refusal| refusal.to_string()),
                ),
                Ok(Question::RemoveDevice(id)) => Answer::Removed(
                    node.workloads.detach(&id).map_err(|refusal| refusal.to_string()),
                ),
                Err(_) => return,
            };
            for part in answer.parts() {
                if frames::send(&mut send, &part).await.is_err() {
                    return;
                }
            }
            let _ = send.finish();
        });
    }
}

/// Warns if a certificate that came just now is not good by this machine's clock.
fn warn_of_clock(certificate: &[u8]) {
    let Some(read) = MemberCertificate::read(certificate) else { return };
    let own = now();
    if own > read.not_after || own < read.not_before {
        warn!(
            "a certificate that was signed just now is good from {} to {}, but this machine's \
            clock says {}: this machine's clock is wrong, or the coordinator's is; set it",
            date(read.not_before),
            date(read.not_after),
            date(own)
        );
    }
}

fn seconds_left(certificate: &MemberCertificate) -> i64 {
    certificate.not_after - now()
}

fn renewal_in(certificate: &MemberCertificate) -> Duration {
    certificate.renewal_in(now())
}

/// Seconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}
