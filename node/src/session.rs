//! The session with the coordinator: held for ever, begun again whenever it ends.

use crate::{
    daemon::{Node, Reach},
    folder::Folder,
    view_writer::Ticket,
};
use anyhow::{Context, Result};
use meshward_control_proto::{
    Answer, ENFORCED_WITHIN, FromCoordinator, FromNode, MAX_UPDATE, Question,
};
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
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, time::Instant};
use tracing::{error, info, warn};

/// After this pause a machine comes again that was held back.
const HELD_PAUSE: Duration = Duration::from_secs(30);
/// A certificate that was renewed is not renewed again before this, whatever this machine's clock
/// says.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// Another machine has this node's identity and the session.
#[derive(Debug, thiserror::Error)]
#[error("held back: {0}")]
struct HeldBack(String);

/// For how long the coordinator may take to let this node go.
const LEAVING: Duration = Duration::from_secs(10);

/// What ends a session for ever: the coordinator says that this node is no member of the mesh any
/// more.
#[derive(Debug, thiserror::Error)]
#[error("this node was removed from the mesh")]
struct Removed;

/// Holds sessions until this node is removed from the mesh.
pub async fn hold(node: Arc<Node>) {
    let mut pauses = Pauses::default();
    let mut renewed = None;
    loop {
        let begun = Instant::now();
        let ended = hold_one(&node, &mut renewed).await;
        node.end_session().await;
        if ended.as_ref().is_err_and(|error| error.is::<Removed>()) {
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
async fn hold_one(node: &Arc<Node>, renewed: &mut Option<Instant>) -> Result<()> {
    let credentials = node.folder.credentials()?;
    let certificate = credentials.read()?;
    let dial = Dial::for_session(&credentials.ca, &credentials.certificate, &credentials.key)?;
    let reached = dial.dial(&node.membership.coordinator).await?;
    let connection = reached.connection.clone();
    if reached.tunnelled {
        node.note_reach(Reach::Hidden);
    }
    let ended = hold_on(node, &connection, &certificate, &credentials, renewed).await;
    if is_removed(&connection) { Err(Removed.into()) } else { ended }
}

/// Leaves the mesh: when this returns, this node is no member any more.
///
/// # Errors
/// If the coordinator cannot be reached, or does not say so.
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

async fn hold_on(
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
        node.folder.settled().await;
        *renewed = Some(Instant::now());
        warn_of_clock(&certificate);
        connection.close(0u32.into(), b"renewed");
        return Ok(());
    }
    let questions = tokio::spawn(answer_questions(node.clone(), connection.clone()));
    let ended = converse(node, connection, send, receive, certificate).await;
    questions.abort();
    ended.with_context(|| match connection.close_reason() {
        Some(reason) => format!("the connection ended ({reason})"),
        None => "the session ended".to_owned(),
    })
}

async fn converse(
    node: &Arc<Node>,
    connection: &Connection,
    mut send: SendStream,
    receive: RecvStream,
    certificate: &MemberCertificate,
) -> Result<()> {
    let (to_coordinator, mut outgoing) = mpsc::unbounded_channel();
    for message in node.begin_session(to_coordinator.clone()).await {
        frames::send(&mut send, &message).await?;
    }
    let mut incoming = read_ahead(receive);
    let mut is_taken = false;
    // By this machine's clock, which may be wrong.
    let mut renew_at = Instant::now() + renewal_in(certificate).max(Duration::from_secs(1));
    let mut unsaid = Unsaid::default();
    let mut kept = node.view_writer.subscribe();
    let mut troubles = node.folder.troubles().subscribe();
    troubles.mark_changed();
    let mut degraded = false;
    loop {
        tokio::select! {
            message = incoming.recv() => match message {
                None => return Ok(()),
                Some(message) => {
                    take(node, message?, &to_coordinator, &mut renew_at, &mut unsaid).await?;
                    if !std::mem::replace(&mut is_taken, true) {
                        note_taken(node, connection).await;
                    }
                }
            },
            Ok(()) = kept.changed() => {
                let kept = *kept.borrow_and_update();
                if unsaid.note_kept(kept) && let Some(revision) = unsaid.say() {
                    frames::send(&mut send, &FromNode::Enforced(revision)).await?;
                }
            }
            () = tokio::time::sleep_until(unsaid.at().unwrap_or(renew_at)), if unsaid.at().is_some() => {
                if let Some(revision) = unsaid.say() {
                    frames::send(&mut send, &FromNode::Enforced(revision)).await?;
                }
            }
            Ok(()) = troubles.changed() => {
                troubles.mark_unchanged();
                let why = node.folder.troubles().summary();
                if why.is_some() || degraded {
                    degraded = why.is_some();
                    frames::send(&mut send, &FromNode::Degraded(why)).await?;
                }
            }
            Some(message) = outgoing.recv() => frames::send(&mut send, &message).await?,
            () = tokio::time::sleep_until(renew_at) => {
                let csr = request(&node.folder.credentials()?.key)?;
                frames::send(&mut send, &FromNode::Renew { csr }).await?;
                renew_at += RENEWAL_PAUSE;
            }
        }
    }
}

/// Notes that the coordinator has taken the session: it has answered, and not that another machine
/// has it.
async fn note_taken(node: &Node, connection: &Connection) {
    info!(coordinator = %connection.remote_address(), "session begun");
    node.note_coordinator(connection.remote_address().ip()).await;
    node.note_connected().await;
}

/// What is enforced and not said yet.
#[derive(Default)]
struct Unsaid {
    /// What is not on disk yet, and whether somebody waits for it.
    unkept: VecDeque<(Ticket, Revision, bool)>,
    /// What is, and when it is to be said.
    kept: Option<(Revision, Instant)>,
}

impl Unsaid {
    /// Notes up to where all is on disk; `true` if somebody waits for it.
    fn note_kept(&mut self, up_to: Ticket) -> bool {
        let mut awaited = false;
        while let Some((_, revision, urgent)) =
            self.unkept.pop_front_if(|(ticket, ..)| *ticket <= up_to)
        {
            let at = self.kept.map_or_else(|| Instant::now() + ENFORCED_WITHIN, |(_, at)| at);
            self.kept = Some((revision, at));
            awaited |= urgent;
        }
        awaited
    }

    fn at(&self) -> Option<Instant> {
        self.kept.map(|(_, at)| at)
    }

    /// What is to be said now.
    fn say(&mut self) -> Option<Revision> {
        self.kept.take().map(|(revision, _)| revision)
    }
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

async fn take(
    node: &Arc<Node>,
    message: FromCoordinator,
    to_coordinator: &mpsc::UnboundedSender<FromNode>,
    renew_at: &mut Instant,
    unsaid: &mut Unsaid,
) -> Result<()> {
    match message {
        FromCoordinator::Compare => {
            for part in node.resource_hashes().await {
                let _ = to_coordinator.send(part);
            }
        }
        FromCoordinator::Update { revision, changes, urgent } => {
            let ticket = node.enforce(revision, &changes).await;
            unsaid.unkept.push_back((ticket, revision, urgent));
            info!(%revision, changes = changes.len(), "update enforced");
        }
        FromCoordinator::Called { network, peer } => node.called(&network, &peer).await,
        FromCoordinator::RotateKeys { networks, keep_old_seconds } => {
            if let Err(error) =
                node.rotate_keys(&networks, Duration::from_secs(keep_old_seconds)).await
            {
                warn!("the keys stay as they are: {error:#}");
            }
        }
        FromCoordinator::Relays(relays) => node.set_relays(relays).await,
        FromCoordinator::OverBudget { budget } => {
            warn!("the coordinator says: over a budget: {budget}")
        }
        FromCoordinator::Held { reason } => return Err(HeldBack(reason).into()),
        FromCoordinator::Refused { workload, reason } => node.refuse(&workload, reason).await,
        FromCoordinator::RefusedEndpoint { network, reason } => {
            tracing::error!(%network, "the coordinator does not take this node's endpoint: {reason}");
        }
        FromCoordinator::Renewed { certificate } => {
            let read = MemberCertificate::read(&certificate)
                .context("the renewed certificate is damaged")?;
            node.folder.keep_certificate(&certificate);
            *renew_at = Instant::now() + read.renewal_after();
            warn_of_clock(&certificate);
            info!(good_for_seconds = seconds_left(&read), "certificate renewed");
        }
    }
    Ok(())
}

async fn answer_questions(node: Arc<Node>, connection: Connection) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let node = node.clone();
        tokio::spawn(async move {
            let answer = match frames::receive(&mut receive, MAX_UPDATE).await {
                Ok(Question::Alive) => Answer::Alive,
                Ok(Question::Links) => Answer::Links(node.link_counts().await),
                Ok(Question::Cuts(network, links)) => {
                    Answer::Cuts(node.count_cuts(&network, links).await)
                }
                Ok(Question::Flows(network, seconds)) => {
                    Answer::Flows(node.flows(&network, seconds).await)
                }
                Ok(Question::AddDevice(order)) => Answer::Device(
                    node.add_device(order).await.map_err(|refusal| refusal.to_string()),
                ),
                Ok(Question::RemoveDevice(id)) => {
                    Answer::Removed(node.detach(&id).await.map_err(|refusal| refusal.to_string()))
                }
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
            "a certificate that was signed just now is good from {} to {}, but this machine's clock says {}: this machine's clock is wrong, or the coordinator's is; set it",
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
