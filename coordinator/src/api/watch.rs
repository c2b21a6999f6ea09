//! Watches of lists: changes as server-sent events (HTML Living Standard §9.2).

use super::{caller::Caller, problem::ApiError, state::Api};
use crate::mesh::Mesh;
use axum::{
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, future::BoxFuture, stream};
use meshward_api_types::Change;
use meshward_control_state::change_log::{ListKind, Since};
use meshward_types::Revision;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch::Receiver},
    time::Instant,
};

/// The maximum number of watches at a time.
pub(super) const MAX_WATCHES: usize = 64;
/// The time between two reads of a list whose entries also change without a revision.
pub(super) const VOLATILE_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two reads of a list for which nodes have to be asked.
pub(super) const QUERIED_INTERVAL: Duration = Duration::from_secs(5);
/// The minimum time between two reads.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The time that a watch pauses, as a multiple of the time that its last read took.
const PAUSE_FACTOR: u32 = 10;
/// The time between two comments that keep the connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The entries of a list.
pub(super) struct Entries<T> {
    /// The revision of which they are, or a later one.
    pub(super) revision: Revision,
    /// The entries by their keys.
    pub(super) by_key: BTreeMap<String, T>,
}

/// A function that reads the entries of a list at a revision: those with some keys, or all.
pub(super) type Look = Arc<
    dyn Fn(Option<BTreeSet<String>>) -> BoxFuture<'static, Result<Entries<Value>, ApiError>>
        + Send
        + Sync,
>;

/// A list that is watched.
pub(super) struct Watched {
    /// The list, as the change log names it.
    pub(super) kind: ListKind,
    /// The time between two reads without a new revision, if its entries change without one.
    pub(super) interval: Option<Duration>,
    /// `true` if the journal's keys are those of the entries.
    pub(super) by_key: bool,
    /// The function that reads the entries.
    pub(super) look: Look,
}

/// Answers with the changes of a list, from a revision on, or with all entries first.
///
/// # Errors
/// 410 if the changes since that revision are no longer known, 429 if there are too many watches.
pub(super) fn answer(
    api: &Api,
    caller: Caller,
    watched: Watched,
    from: Option<Revision>,
) -> Result<Response, ApiError> {
    let permit = api.watches.clone().try_acquire_owned().map_err(|_| {
        let text = format!(
            "{MAX_WATCHES} watches are open already; end one, or list again from time to time"
        );
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, text)
    })?;
    if let Some(revision) = from {
        let known = api.mesh.journal.since(watched.kind, revision);
        known.ok_or_else(|| gone(&api.mesh, revision))?;
    }
    let watch = Watch {
        mesh: api.mesh.clone(),
        caller,
        revisions: api.mesh.journal.subscribe(),
        watched,
        at: from.unwrap_or_default(),
        known: HashMap::new(),
        ready: VecDeque::new(),
        beginning: Some(from.map_or(Beginning::All, |_| Beginning::AtRevision)),
        pause: MIN_PAUSE,
        ended: false,
        _permit: permit,
    };
    Ok(Sse::new(events(watch)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn gone(mesh: &Mesh, revision: Revision) -> ApiError {
    let now = mesh.look(|world| world.revision);
    let text = match revision > now {
        true => format!(
            "there is no revision {revision} yet, the newest is {now}; list, and watch from the \
            revision in the answer"
        ),
        false => format!(
            "the changes since revision {revision} are no longer known (it is {now}); list again, \
            and watch from the revision in the answer"
        ),
    };
    ApiError::new(StatusCode::GONE, text).about("revision")
}

fn undisclosed() -> ApiError {
    let text = "an entry is gone since that revision, and may have been of a network that this \
        credential does not reach; watch without `revision`";
    ApiError::new(StatusCode::GONE, text).about("revision")
}

/// The beginning of a watch.
#[derive(Clone, Copy)]
enum Beginning {
    /// All entries are sent.
    All,
    /// The changes since a revision are sent.
    AtRevision,
}

/// The entries that a read sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// All of them.
    All,
    /// Those that differ from what was sent last.
    Changed,
}

struct Watch {
    mesh: Arc<Mesh>,
    caller: Caller,
    revisions: Receiver<Revision>,
    watched: Watched,
    /// The revision up to which all changes were sent.
    at: Revision,
    /// The hashes of the entries as they were sent last, by key.
    known: HashMap<String, u64>,
    ready: VecDeque<Event>,
    /// The beginning; `None` once the watch has begun.
    beginning: Option<Beginning>,
    /// The pause before the next read.
    pause: Duration,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

fn events(watch: Watch) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(watch, |mut watch| async move {
        loop {
            if let Some(event) = watch.ready.pop_front() {
                return Some((Ok(event), watch));
            }
            if watch.ended {
                return None;
            }
            if let Err(error) = watch.step().await {
                let data = serde_json::to_string(&error.problem()).unwrap_or_default();
                watch.ready.push_back(Event::default().event("problem").data(data));
                watch.ended = true;
            }
        }
    })
}

impl Watch {
    async fn step(&mut self) -> Result<(), ApiError> {
        let beginning = self.beginning.take();
        if beginning.is_none() {
            self.wait().await?;
        }
        if !self.mesh.look(|world| self.caller.still_stands(world)) {
            let text = "the credential was revoked or changed; begin the watch anew";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, text));
        }
        let begun = Instant::now();
        match beginning {
            Some(Beginning::All) => self.send_entries(Sent::All).await?,
            Some(Beginning::AtRevision) => self.begin_at_revision().await?,
            None => self.send_changes().await?,
        }
        self.pause = (begun.elapsed() * PAUSE_FACTOR).max(MIN_PAUSE);
        if beginning.is_some() || !self.ready.is_empty() {
            self.push("synced", None, None);
        }
        Ok(())
    }

    /// Waits for a revision, or for the time of the next read without one.
    async fn wait(&mut self) -> Result<(), ApiError> {
        tokio::time::sleep(self.pause).await;
        let ended =
            || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the coordinator is shutting down");
        let at = self.at;
        let next = self.revisions.wait_for(|newest| *newest != at);
        match self.watched.interval {
            None => next.await.map(drop).map_err(|_| ended()),
            Some(interval) => {
                match tokio::time::timeout(interval.saturating_sub(self.pause), next).await {
                    Ok(Err(_)) => Err(ended()),
                    Ok(Ok(_)) | Err(_) => Ok(()),
                }
            }
        }
    }

    /// Returns the keys that the journal has since the last read.
    fn since(&self) -> Result<Since, ApiError> {
        let since = self.mesh.journal.since(self.watched.kind, self.at);
        since.ok_or_else(|| gone(&self.mesh, self.at))
    }

    /// Sends the entries that were changed since the revision from which the watch begins.
    async fn begin_at_revision(&mut self) -> Result<(), ApiError> {
        let Since { keys, any, .. } = self.since()?;
        if !self.watched.by_key {
            // The journal does not tell which entries have gone, so all have to be sent.
            return self.send_entries(Sent::All).await;
        }
        let is_any = any || self.watched.interval.is_some();
        self.remember(Some(&keys).filter(|_| !is_any)).await?;
        let gone: Vec<String> =
            keys.into_iter().filter(|key| !self.known.contains_key(key)).collect();
        if !gone.is_empty() && !self.caller.networks.is_empty() {
            // Their networks are not known, and their keys are names.
            return Err(undisclosed());
        }
        for key in gone {
            self.push("gone", Some(key), None);
        }
        Ok(())
    }

    /// Sends the entries that were changed since the last read.
    async fn send_changes(&mut self) -> Result<(), ApiError> {
        let Since { keys, any, revision } = self.since()?;
        if any || self.watched.interval.is_some() || (!self.watched.by_key && !keys.is_empty()) {
            return self.send_entries(Sent::Changed).await;
        }
        if keys.is_empty() {
            self.at = self.at.max(revision);
            return Ok(());
        }
        // The world may be newer than the journal: the entry is sent again then.
        let mut entries = (self.watched.look)(Some(keys.clone())).await?.by_key;
        self.at = self.at.max(revision);
        for key in keys {
            match entries.remove(&key) {
                Some(item) => self.put(key, item, Sent::Changed),
                None if self.known.remove(&key).is_some() => self.push("gone", Some(key), None),
                None => {}
            }
        }
        Ok(())
    }

    /// Reads all entries: those that were touched since the revision are sent, the watcher knows
    /// the others. `None` means that any may have been touched.
    async fn remember(&mut self, touched: Option<&BTreeSet<String>>) -> Result<(), ApiError> {
        let before = self.at;
        let Entries { revision, by_key } = (self.watched.look)(None).await?;
        self.at = revision.max(before);
        for (key, item) in by_key {
            match touched.is_none_or(|touched| touched.contains(&key)) {
                true => self.put(key, item, Sent::All),
                false => drop(self.known.insert(key, hash(&item))),
            }
        }
        Ok(())
    }

    /// Reads all entries and sends them.
    async fn send_entries(&mut self, sent: Sent) -> Result<(), ApiError> {
        let Entries { revision, by_key } = (self.watched.look)(None).await?;
        self.at = revision.max(self.at);
        let gone: Vec<String> =
            self.known.keys().filter(|key| !by_key.contains_key(*key)).cloned().collect();
        for key in gone {
            self.known.remove(&key);
            self.push("gone", Some(key), None);
        }
        for (key, item) in by_key {
            self.put(key, item, sent);
        }
        Ok(())
    }

    /// Sends an entry, unless it is the same as before and only changed ones are sent.
    fn put(&mut self, key: String, item: Value, sent: Sent) {
        let hash = hash(&item);
        if self.known.insert(key.clone(), hash) != Some(hash) || sent == Sent::All {
            self.push("put", Some(key), Some(item));
        }
    }

    fn push(&mut self, name: &str, key: Option<String>, item: Option<Value>) {
        let change = Change { revision: self.at, key: key.unwrap_or_default(), item };
        let data = serde_json::to_string(&change).unwrap_or_default();
        let event = Event::default().event(name).data(data);
        // A watch can be resumed only after all changes of a revision.
        self.ready.push_back(if name == "synced" { event.id(self.at.to_string()) } else { event });
    }
}

fn hash(item: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    item.hash(&mut hasher);
    hasher.finish()
}
