//! Watching a list: what has changed in it, as server-sent events (HTML Living Standard §9.2).

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

/// How many may watch at a time.
pub(super) const MAX_WATCHES: usize = 64;
/// How often a list is looked at whose entries change without a revision.
pub(super) const VOLATILE: Duration = Duration::from_secs(1);
/// The same, where nodes have to be asked.
pub(super) const ASKED: Duration = Duration::from_secs(5);
/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// By how much a watch rests longer than it works.
const REST: u32 = 10;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The entries of a list at a revision: those with some keys, or all.
pub(super) type Look = Arc<
    dyn Fn(
            Option<BTreeSet<String>>,
        ) -> BoxFuture<'static, Result<(Revision, BTreeMap<String, Value>), ApiError>>
        + Send
        + Sync,
>;

/// A list that is watched.
pub(super) struct Watched {
    pub kind: ListKind,
    /// How often it is looked at without a new revision.
    pub every: Option<Duration>,
    /// Whether the journal's keys are those of the entries.
    pub keyed: bool,
    pub look: Look,
}

/// Watches a list.
///
/// # Errors
/// 410 if what came after the revision is not known any more, 429 if too many watch.
pub(super) fn answer(
    api: &Api,
    caller: Caller,
    watched: Watched,
    from: Option<Revision>,
) -> Result<Response, ApiError> {
    let place = api.watches.clone().try_acquire_owned().map_err(|_| {
        let text = format!("{MAX_WATCHES} watch already; end one, or list now and then");
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
        begin: Some(from.is_some()),
        rest: PAUSE,
        ended: false,
        _place: place,
    };
    Ok(Sse::new(events(watch)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn gone(mesh: &Mesh, revision: Revision) -> ApiError {
    let now = mesh.look(|world| world.revision);
    let text = match revision > now {
        true => format!(
            "there is no revision {revision} yet: it is {now}; list, and watch from the revision \
            of that"
        ),
        false => format!(
            "what came after revision {revision} is not remembered any more (it is {now}); list \
            anew, and watch from the revision of that"
        ),
    };
    ApiError::new(StatusCode::GONE, text).about("revision")
}

fn untold() -> ApiError {
    let text = "something is gone since that revision, maybe of networks that this credential does \
        not reach; watch without `revision`";
    ApiError::new(StatusCode::GONE, text).about("revision")
}

struct Watch {
    mesh: Arc<Mesh>,
    caller: Caller,
    revisions: Receiver<Revision>,
    watched: Watched,
    /// All up to this revision was said.
    at: Revision,
    /// Hashes of the entries as they were said last.
    known: HashMap<String, u64>,
    ready: VecDeque<Event>,
    /// Whether it begins from a revision; nothing once it has begun.
    begin: Option<bool>,
    /// How long it rests before the next look.
    rest: Duration,
    ended: bool,
    _place: OwnedSemaphorePermit,
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
        let begins = self.begin.take();
        if begins.is_none() {
            self.wait().await?;
        }
        if !self.mesh.look(|world| self.caller.still_stands(world)) {
            let text = "the credential was revoked or changed; begin the watch anew";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, text));
        }
        let begun = Instant::now();
        match begins {
            Some(false) => self.say_all(true).await?,
            Some(true) => self.go_on(true).await?,
            None => self.go_on(false).await?,
        }
        self.rest = (begun.elapsed() * REST).max(PAUSE);
        if begins.is_some() || !self.ready.is_empty() {
            self.push("synced", None, None);
        }
        Ok(())
    }

    /// Waits for a revision, or for the time to look anyway.
    async fn wait(&mut self) -> Result<(), ApiError> {
        tokio::time::sleep(self.rest).await;
        let ended = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the coordinator ends");
        let at = self.at;
        let next = self.revisions.wait_for(|newest| *newest != at);
        match self.watched.every {
            None => next.await.map(drop).map_err(|_| ended()),
            Some(every) => {
                match tokio::time::timeout(every.saturating_sub(self.rest), next).await {
                    Ok(Err(_)) => Err(ended()),
                    Ok(Ok(_)) | Err(_) => Ok(()),
                }
            }
        }
    }

    /// Says what was touched since.
    async fn go_on(&mut self, begins: bool) -> Result<(), ApiError> {
        let since = self.mesh.journal.since(self.watched.kind, self.at);
        let Since { keys, any, revision } = since.ok_or_else(|| gone(&self.mesh, self.at))?;
        if begins && !self.watched.keyed {
            // Which entries have gone is not known, so nothing can be left out.
            return self.say_all(true).await;
        }
        let all = any || self.watched.every.is_some() || (!self.watched.keyed && !keys.is_empty());
        if begins {
            self.remember(&keys, all).await?;
            let gone: Vec<String> =
                keys.into_iter().filter(|key| !self.known.contains_key(key)).collect();
            if !gone.is_empty() && !self.caller.networks.is_empty() {
                // Of which networks they were is not known, and their keys are names.
                return Err(untold());
            }
            gone.into_iter().for_each(|key| self.push("gone", Some(key), None));
            return Ok(());
        }
        if all {
            return self.say_all(false).await;
        }
        if keys.is_empty() {
            self.at = self.at.max(revision);
            return Ok(());
        }
        // What is seen may be newer than the journal's word: it is said again then.
        let (_, mut entries) = (self.watched.look)(Some(keys.clone())).await?;
        self.at = self.at.max(revision);
        for key in keys {
            match entries.remove(&key) {
                Some(item) => self.put(key, item, false),
                None if self.known.remove(&key).is_some() => self.push("gone", Some(key), None),
                None => {}
            }
        }
        Ok(())
    }

    /// Begins from a revision: what was touched since is said, the rest is known to the watcher.
    async fn remember(&mut self, touched: &BTreeSet<String>, any: bool) -> Result<(), ApiError> {
        let before = self.at;
        let (revision, entries) = (self.watched.look)(None).await?;
        self.at = revision.max(before);
        for (key, item) in entries {
            match any || touched.contains(&key) {
                true => self.put(key, item, true),
                false => drop(self.known.insert(key, hash(&item))),
            }
        }
        Ok(())
    }

    /// Says what differs from what was said.
    async fn say_all(&mut self, anew: bool) -> Result<(), ApiError> {
        let (revision, entries) = (self.watched.look)(None).await?;
        self.at = revision.max(self.at);
        let gone: Vec<String> =
            self.known.keys().filter(|key| !entries.contains_key(*key)).cloned().collect();
        for key in gone {
            self.known.remove(&key);
            self.push("gone", Some(key), None);
        }
        entries.into_iter().for_each(|(key, item)| self.put(key, item, anew));
        Ok(())
    }

    fn put(&mut self, key: String, item: Value, anyway: bool) {
        let hash = hash(&item);
        if self.known.insert(key.clone(), hash) != Some(hash) || anyway {
            self.push("put", Some(key), Some(item));
        }
    }

    fn push(&mut self, name: &str, key: Option<String>, item: Option<Value>) {
        let change = Change { revision: self.at, key: key.unwrap_or_default(), item };
        let data = serde_json::to_string(&change).unwrap_or_default();
        let event = Event::default().event(name).data(data);
        // Only what is whole may be gone on from.
        self.ready.push_back(if name == "synced" { event.id(self.at.to_string()) } else { event });
    }
}

fn hash(item: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    item.hash(&mut hasher);
    hasher.finish()
}
