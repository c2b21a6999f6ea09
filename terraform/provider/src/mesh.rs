//! The coordinator's API as the resources use it: lists that many reads share, waiting, and
//! refusals as diagnostics.

use meshward_api_client::{Client, Error};
use meshward_api_types::{
    Context, Page, Paged,
    operations::{List as Listing, Read, Remove, Write},
};
use meshward_terraform::{Diagnostic, Diagnostics, Path};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    any::Any,
    collections::HashMap,
    fmt::Display,
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The time for which a list is cached, unless this process changes something: Terraform reads
/// hundreds of resources within moments.
const FRESH: Duration = Duration::from_secs(2);
/// The time for which requests are retried that are refused because there were too many of them: a
/// plan makes hundreds of requests.
const BUSY: Duration = Duration::from_mins(1);
/// The maximum number of attempts to overwrite an object that others are changing, too.
const OVERWRITES: usize = 10;
/// The interval at which the state is polled while the provider waits.
const PAUSE: Duration = Duration::from_millis(500);

/// The client of the coordinator, once the provider is configured.
#[derive(Default)]
pub(crate) struct Mesh {
    configured: OnceLock<Configured>,
    lists: Mutex<HashMap<&'static str, Arc<tokio::sync::Mutex<Option<List>>>>>,
    /// The number of changes by this process; lists that were read before the last one are stale.
    changes: AtomicU64,
    stopping: watch::Sender<bool>,
}

/// The operations that overwrite an object only if it is as it was read.
pub(crate) struct Overwrite<'a, T, B, R> {
    /// The operation that reads the object.
    pub read: &'a Read<T>,
    /// The operation that writes the object.
    pub write: &'a Write<B, R>,
    /// The object's name, in the paths of both operations.
    pub key: &'a str,
}

struct Configured {
    context: Context,
    client: Client,
}

struct List {
    at: Instant,
    changes: u64,
    entries: Arc<dyn Any + Send + Sync>,
}

impl Mesh {
    /// Sets the coordinator's addresses and the credential. Later calls are ignored.
    pub(crate) fn configure(&self, context: Context) {
        let client = Client::coordinator(context.clone()).persistent(BUSY);
        let _ = self.configured.set(Configured { context, client });
    }

    fn configured(&self) -> Result<&Configured, Diagnostics> {
        self.configured.get().ok_or_else(|| {
            Diagnostic::error(
                "The provider is not configured yet",
                "A value in the provider's configuration is known only after another resource is \
                 applied. Apply that resource first, with -target.",
            )
            .into()
        })
    }

    /// Returns the coordinator's addresses and the credential.
    pub(crate) fn context(&self) -> Result<&Context, Diagnostics> {
        Ok(&self.configured()?.context)
    }

    /// Returns all entries of a list of the API. Calls at the same time, or within [`FRESH`], share
    /// one request.
    pub(crate) async fn list<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        what: &Listing<Page<T>>,
    ) -> Result<Arc<Vec<T>>, Diagnostics> {
        let client = &self.configured()?.client;
        let slot = {
            let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
            lists.entry(what.path()).or_default().clone()
        };
        let mut slot = slot.lock().await;
        let changes = self.changes.load(Ordering::Acquire);
        let known =
            slot.as_ref().filter(|list| list.changes == changes && list.at.elapsed() < FRESH);
        if let Some(entries) = known.and_then(|list| list.entries.clone().downcast().ok()) {
            return Ok(entries);
        }
        let at = Instant::now();
        let entries: Arc<Vec<T>> = Arc::new(client.entries(what, &[]).await.map_err(told)?);
        *slot = Some(List { at, changes, entries: entries.clone() });
        Ok(entries)
    }

    /// Reads a list from the coordinator, past the cache.
    pub(crate) async fn list_now<P: Paged + DeserializeOwned>(
        &self,
        what: &Listing<P>,
        query: &[(&str, String)],
    ) -> Result<P, Diagnostics> {
        self.configured()?.client.list(what, &[], query).await.map_err(told)
    }

    /// Makes a dry run of a write.
    pub(crate) async fn try_out<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        body: &B,
    ) -> Result<R, Diagnostics> {
        self.configured()?.client.clone().dry(true).write(what, &[], body).await.map_err(told)
    }

    /// Creates or changes an object.
    pub(crate) async fn write<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        arguments: &[&(dyn Display + Sync)],
        body: &B,
    ) -> Result<R, Error> {
        self.changing(|client| async move { client.write(what, arguments, body).await }).await
    }

    /// Overwrites an object if it is still as it was planned, which `as_seen` decides. `If-Match`
    /// makes the comparison and the write one: a change in between is not overwritten.
    pub(crate) async fn overwrite<T: DeserializeOwned, B: Serialize, R: DeserializeOwned>(
        &self,
        what: Overwrite<'_, T, B, R>,
        body: &B,
        as_seen: impl Fn(&T) -> Result<bool, Diagnostics>,
    ) -> Result<R, Diagnostics> {
        let Overwrite { read, write, key } = what;
        let of_key: [&(dyn Display + Sync); 1] = [&key];
        let arguments = if write.path().contains('{') { &of_key[..] } else { &[] };
        for _ in 0..OVERWRITES {
            let client = &self.configured()?.client;
            let (now, state) = client.read_with_state(read, &of_key).await.map_err(told)?;
            if !as_seen(&now)? {
                return Err(changed(key));
            }
            let only_that = match state {
                Some(state) => client.clone().if_match(state),
                None => client.clone(),
            };
            let written = self
                .changing(|_| async move { only_that.write(write, arguments, body).await })
                .await;
            match written {
                // Another part of the object has changed; `as_seen` decides whether that matters.
                Err(Error::Refused { status: Some(412), .. }) => {}
                done => return done.map_err(told),
            }
        }
        Err(changed(key))
    }

    /// Deletes an object. Succeeds if it no longer exists.
    pub(crate) async fn remove<R: DeserializeOwned>(
        &self,
        what: &Remove<R>,
        arguments: &[&(dyn Display + Sync)],
    ) -> Result<(), Error> {
        let done =
            self.changing(|client| async move { client.remove(what, arguments).await }).await;
        gone_is_well(done.map(drop))
    }

    /// Retries a request, for at most `limit`, while the coordinator refuses it as a conflict
    /// (409).
    pub(crate) async fn insist<T, F>(
        &self,
        limit: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Diagnostics>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let begun = Instant::now();
        loop {
            match attempt().await {
                Err(Error::Refused { status: Some(409), text, field }) => {
                    if begun.elapsed() + PAUSE >= limit {
                        let text = format!(
                            "{} This lasted for {limit:?}; to wait longer, set the block \
                             `timeouts`",
                            sentence(&text)
                        );
                        return Err(told(Error::Refused { status: Some(409), text, field }));
                    }
                }
                done => return done.map_err(told),
            }
            self.pause().await?;
        }
    }

    /// Polls until `look` returns a value, for at most `limit`. `what` begins the text of the
    /// timeout's error.
    pub(crate) async fn until<T, F>(
        &self,
        limit: Duration,
        what: &str,
        mut look: impl FnMut() -> F,
    ) -> Result<T, Diagnostics>
    where
        F: Future<Output = Result<Option<T>, Diagnostics>>,
    {
        let begun = Instant::now();
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if begun.elapsed() + PAUSE >= limit {
                let text = format!(
                    "{what}, not within {limit:?}; to wait longer, set the block `timeouts`."
                );
                return Err(Diagnostic::error("Timed out", text).into());
            }
            self.pause().await?;
        }
    }

    /// Makes all waiting requests fail.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    async fn pause(&self) -> Result<(), Diagnostics> {
        let mut stopping = self.stopping.subscribe();
        let rest = tokio::time::timeout(PAUSE, stopping.wait_for(|stopping| *stopping)).await;
        if rest.is_err() {
            Ok(())
        } else {
            let text = "Terraform was interrupted, so the provider stopped waiting.";
            Err(Diagnostic::error("Stopped", text).into())
        }
    }

    async fn changing<'a, T, F>(&'a self, work: impl FnOnce(&'a Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let configured = self.configured().map_err(|said| {
            let said = said.into_iter().map(|one| format!("{}. {}", one.summary, one.detail));
            Error::Failed(said.collect::<Vec<_>>().join(" "))
        })?;
        let done = work(&configured.client).await;
        self.changes.fetch_add(1, Ordering::AcqRel);
        done
    }
}

/// Returns the error of an object that has changed since it was planned.
fn changed(key: &str) -> Diagnostics {
    let text = format!(
        "Somebody else has changed `{key}` since Terraform read it, and it was not overwritten. \
         Plan again (with a refresh) to see the change."
    );
    Diagnostic::error("Changed since the plan", text).into()
}

/// Treats a refusal because the object does not exist (404) as success.
pub(crate) fn gone_is_well(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::Refused { status: Some(404), .. }) => Ok(()),
        done => done,
    }
}

/// Converts an error of the API to a diagnostic, at the attribute that it names.
pub(crate) fn told(error: Error) -> Diagnostics {
    let one = match error {
        Error::Refused { status, text, field } => {
            let summary = match status {
                Some(401) => "The coordinator does not know the token",
                Some(403) => "The token's role does not permit this",
                Some(404) => "Something is not there",
                Some(409) => "That cannot be done as things are",
                _ => "The coordinator refuses that",
            };
            let mut text = sentence(&text);
            if status == Some(409) && text.contains(" already") {
                text += " If Terraform is to manage it from now on, import it.";
            }
            let path = field.map(|field| Path::of(attribute_of(&field))).unwrap_or_default();
            Diagnostic::error(summary, text).at(path)
        }
        Error::Unreachable(text) => {
            Diagnostic::error("The coordinator cannot be reached", sentence(&text))
        }
        Error::Failed(text) => Diagnostic::error("The coordinator has failed", sentence(&text)),
    };
    one.into()
}

/// Returns the attribute for a field of the API; most have the field's name.
fn attribute_of(field: &str) -> &str {
    match field {
        "ttl_seconds" => "ttl",
        "scope" => "network",
        field => field,
    }
}

/// Formats an error text of the coordinator as a sentence: with a capital letter and a full stop.
pub(crate) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if text.ends_with(['.', '!', '?']) || text.contains('\n') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}
