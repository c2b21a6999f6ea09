//! The coordinator, as the resources see it: lists that are read once for many, waiting, and
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

/// For how long a list answers reads, unless this process changes something: hundreds of resources
/// are read in a moment.
const FRESH: Duration = Duration::from_secs(2);
/// For how long it is asked again what was refused because there were too many requests: a plan
/// asks for hundreds of things.
const BUSY: Duration = Duration::from_mins(1);
/// How often something is read again that others are changing, too.
const OVERWRITES: usize = 10;
/// How often something that is waited for is looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// The coordinator.
#[derive(Default)]
pub(crate) struct Mesh {
    configured: OnceLock<Configured>,
    lists: Mutex<HashMap<&'static str, Arc<tokio::sync::Mutex<Option<List>>>>>,
    /// Raised with every change of ours: what was read before is old.
    changes: AtomicU64,
    stopping: watch::Sender<bool>,
}

/// A thing that is overwritten in the state in which it was read.
pub(crate) struct Overwrite<'a, T, B, R> {
    /// The operation that reads it.
    pub read: &'a Read<T>,
    /// The operation that writes it.
    pub write: &'a Write<B, R>,
    /// Its name, in the path of both.
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
    /// Sets which coordinator it is.
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

    /// Where the coordinator is, and who we are to it.
    pub(crate) fn context(&self) -> Result<&Context, Diagnostics> {
        Ok(&self.configured()?.context)
    }

    /// All entries of a list of the API. Those who ask at once, or soon after, share one answer.
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

    /// Reads a list as it is now.
    pub(crate) async fn list_now<P: Paged + DeserializeOwned>(
        &self,
        what: &Listing<P>,
        query: &[(&str, String)],
    ) -> Result<P, Diagnostics> {
        self.configured()?.client.list(what, &[], query).await.map_err(told)
    }

    /// Asks something that changes nothing.
    pub(crate) async fn try_out<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        body: &B,
    ) -> Result<R, Diagnostics> {
        self.configured()?.client.clone().dry(true).write(what, &[], body).await.map_err(told)
    }

    /// Makes or changes something.
    pub(crate) async fn write<B: Serialize, R: DeserializeOwned>(
        &self,
        what: &Write<B, R>,
        arguments: &[&(dyn Display + Sync)],
        body: &B,
    ) -> Result<R, Error> {
        self.changing(|client| async move { client.write(what, arguments, body).await }).await
    }

    /// Overwrites what is still as a plan has seen it. What is compared is what is overwritten
    /// (`If-Match`), and nothing that comes in between.
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
                // Something else of it has changed, which may be none of ours.
                Err(Error::Refused { status: Some(412), .. }) => {}
                done => return done.map_err(told),
            }
        }
        Err(changed(key))
    }

    /// Takes something away. It is well if it is gone.
    pub(crate) async fn remove<R: DeserializeOwned>(
        &self,
        what: &Remove<R>,
        arguments: &[&(dyn Display + Sync)],
    ) -> Result<(), Error> {
        let done =
            self.changing(|client| async move { client.remove(what, arguments).await }).await;
        gone_is_well(done.map(drop))
    }

    /// Tries something again while it is refused as a conflict with how things are now, for as long
    /// as is said.
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

    /// Looks again and again until something is there, for as long as is said.
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

    /// Ends what waits.
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

/// What to say of something that is not what a plan has seen.
fn changed(key: &str) -> Diagnostics {
    let text = format!(
        "Somebody else has changed `{key}` since Terraform read it, and it was not overwritten. \
         Plan again (with a refresh) to see the change."
    );
    Diagnostic::error("Changed since the plan", text).into()
}

/// What is not there needs not be taken away.
pub(crate) fn gone_is_well(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::Refused { status: Some(404), .. }) => Ok(()),
        done => done,
    }
}

/// A refusal, at the attribute that it is about.
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

/// Attributes have the names of the API's fields, but for these.
fn attribute_of(field: &str) -> &str {
    match field {
        "ttl_seconds" => "ttl",
        "scope" => "network",
        field => field,
    }
}

/// The coordinator's sentences begin small, and Terraform's do not.
pub(crate) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if text.ends_with(['.', '!', '?']) || text.contains('\n') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}
