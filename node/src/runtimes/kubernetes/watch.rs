//! A watch of the objects of one kind ("Efficient detection of changes", Kubernetes API Concepts):
//! they are listed once, then updated change by change from the version of the list on, and listed
//! again when the API has forgotten that version.

use super::api::{self, ApiError, MAX_OBJECT};
use anyhow::{Context, anyhow};
use meshward_api_types::local::Kubernetes;
use meshward_runtime::random;
use parking_lot::Mutex;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The number of objects in one page of a list, and the largest page in bytes.
const PAGE: usize = 250;
const MAX_PAGE: usize = 64 << 20;
/// The most objects that are kept: Kubernetes recommends 110 pods a node, and some have a few
/// hundred.
const MAX_OBJECTS: usize = 4096;
/// The time after which the API is to end a watch, in seconds; another continues it.
const LASTS: u32 = 290;
/// The pauses after failures: twice as long each time, with a random part, so that not all nodes
/// come back at once.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A kind of object.
pub(super) trait Object: DeserializeOwned + PartialEq + Send + Sync + 'static {
    /// Returns its name, with its namespace in front if it has one.
    fn key(&self) -> String;
}

/// A function that is given the keys of objects.
type OnChange = dyn Fn(&[String]) + Send + Sync;

/// The objects of a watched kind.
pub(super) struct Known<T> {
    objects: HashMap<String, Arc<T>>,
    listed: bool,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listed: false }
    }
}

/// A kind that is watched.
pub(super) struct Watch<T> {
    api: Kubernetes,
    /// The path of the list, and what selects from it (`fieldSelector=...`).
    path: String,
    selector: String,
    known: Mutex<Known<T>>,
    /// Called with the keys of changed objects.
    changed: Box<OnChange>,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    object: Value,
}

/// The reason for a watch's end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The API has ended it: it goes on from the last version.
    Closed,
    /// The API does not know the version any more.
    Gone,
}

impl<T: Object> Watch<T> {
    /// A watch of `path`, with a selector (`fieldSelector=...`, as a part of a URL), that is not
    /// followed yet.
    pub(super) fn new(
        api: Kubernetes,
        path: String,
        selector: String,
        changed: impl Fn(&[String]) + Send + Sync + 'static,
    ) -> Self {
        Self { api, path, selector, known: Mutex::default(), changed: Box::new(changed) }
    }

    /// Returns the last known state of an object.
    pub(super) fn get(&self, key: &str) -> Option<Arc<T>> {
        self.known.lock().objects.get(key).cloned()
    }

    /// Returns `true` once all objects were listed.
    pub(super) fn is_listed(&self) -> bool {
        self.known.lock().listed
    }

    /// Follows, for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut pause = Pause::default();
        loop {
            let begun = Instant::now();
            let mut version = match self.list().await {
                Ok(version) => version,
                Err(error) => {
                    pause.after_failure(&self.path, &error).await;
                    continue;
                }
            };
            info!(path = self.path, server = self.api.server, "Kubernetes is watched");
            loop {
                match self.watch(&mut version, &mut pause).await {
                    Ok(End::Gone) | Err(ApiError::Gone) => break,
                    Ok(End::Closed) => pause.after_end().await,
                    Err(error) => pause.after_failure(&self.path, &error).await,
                }
            }
            debug!(path = self.path, "it is listed again");
            if begun.elapsed() < FIRST_PAUSE {
                pause.wait().await;
            }
        }
    }

    /// Lists everything, and gives the version from which on it is to be watched.
    async fn list(&self) -> Result<String, ApiError> {
        let mut objects = HashMap::new();
        let mut more = String::new();
        loop {
            let next = if more.is_empty() {
                String::new()
            } else {
                format!("&continue={}", escape(&more))
            };
            let path = format!("{}?limit={PAGE}&{}{next}", self.path, self.selector);
            let List { metadata, items } = api::get_at_most(&self.api, &path, MAX_PAGE).await?;
            for resource in items {
                match serde_json::from_value::<T>(resource) {
                    Ok(object) => drop(objects.insert(object.key(), Arc::new(object))),
                    Err(error) => warn!(path = self.path, "an object cannot be read: {error}"),
                }
            }
            if objects.len() > MAX_OBJECTS {
                return Err(anyhow!("it has more than {MAX_OBJECTS} objects").into());
            }
            match metadata.more.filter(|more| !more.is_empty()) {
                Some(next) => more = next,
                None => {
                    self.replace(objects);
                    return Ok(metadata.resource_version);
                }
            }
        }
    }

    fn replace(&self, objects: HashMap<String, Arc<T>>) {
        let changed: Vec<String> = {
            let mut known = self.known.lock();
            let is_new =
                |(key, object): &(&String, &Arc<T>)| known.objects.get(*key) != Some(*object);
            let changed = objects.iter().filter(is_new).map(|(key, _)| key.clone()).collect();
            *known = Known { objects, listed: true };
            changed
        };
        (self.changed)(&changed);
    }

    async fn watch(&self, version: &mut String, pause: &mut Pause) -> Result<End, ApiError> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={LASTS}&resourceVersion={}&{}",
            self.path,
            escape(version),
            self.selector
        );
        let mut answer = api::open(&self.api, &path).await?;
        let mut lines = Lines::default();
        while let Some(chunk) = answer.chunk().await.context("the watch broke off")? {
            for line in lines.push(&chunk)? {
                let event = serde_json::from_slice(&line).context("an event cannot be read")?;
                if let Some(end) = self.apply(event, version)? {
                    return Ok(end);
                }
                pause.reset();
            }
        }
        Ok(End::Closed)
    }

    /// Applies an event of the watch. Returns its end if the event ends it.
    fn apply(&self, event: Event, version: &mut String) -> Result<Option<End>, ApiError> {
        let Event { kind, object } = event;
        if kind == "ERROR" {
            return match object["code"].as_u64() {
                Some(410) => Ok(Some(End::Gone)),
                _ => {
                    Err(anyhow!("the API ends the watch: {}", cut(&object["message"].to_string()))
                        .into())
                }
            };
        }
        if let Some(new) = object["metadata"]["resourceVersion"].as_str() {
            version.clear();
            version.push_str(new);
        }
        if !["ADDED", "MODIFIED", "DELETED"].contains(&kind.as_str()) {
            return Ok(None);
        }
        let object = match serde_json::from_value::<T>(object) {
            Ok(object) => object,
            Err(error) => {
                warn!(path = self.path, "an object cannot be read: {error}");
                return Ok(None);
            }
        };
        let key = object.key();
        let changed = {
            let mut known = self.known.lock();
            if kind == "DELETED" {
                known.objects.remove(&key).is_some()
            } else {
                if known.objects.len() >= MAX_OBJECTS && !known.objects.contains_key(&key) {
                    return Err(anyhow!("it has more than {MAX_OBJECTS} objects").into());
                }
                let object = Arc::new(object);
                known.objects.insert(key.clone(), object.clone()).as_ref() != Some(&object)
            }
        };
        if changed {
            (self.changed)(&[key]);
        }
        Ok(None)
    }
}

/// Cuts what comes into lines, none of which is longer than an object may be.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, chunk: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut lines = Vec::new();
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.0.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            anyhow::ensure!(
                self.0.len() <= MAX_OBJECT,
                "an event has more than {MAX_OBJECT} bytes"
            );
            let line = std::mem::take(&mut self.0);
            if !line.trim_ascii().is_empty() {
                lines.push(line);
            }
        }
        self.0.extend_from_slice(rest);
        anyhow::ensure!(self.0.len() <= MAX_OBJECT, "an event has more than {MAX_OBJECT} bytes");
        Ok(lines)
    }
}

/// The pause before the next request.
#[derive(Default)]
struct Pause {
    last: Option<Duration>,
    /// The message of the last failure, which is not logged again.
    said: String,
}

impl Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }

    fn next(&mut self) -> Duration {
        let pause = self.last.map_or(FIRST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
        self.last = Some(pause);
        let [part] = random::<1>();
        pause + pause * u32::from(part) / 512
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// After a watch that the API has ended, which it does after minutes.
    async fn after_end(&mut self) {
        self.wait().await;
    }

    async fn after_failure(&mut self, path: &str, error: &ApiError) {
        let text = match error {
            ApiError::Failed(error) => format!("{error:#}"),
            other => other.to_string(),
        };
        if text != self.said {
            warn!(path, "Kubernetes cannot be watched, and is asked again: {text}");
            self.said = text;
        }
        self.wait().await;
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(200)]
}

/// A value as a part of a URL's query.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_chunks_end_and_are_bounded() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"{\"a\":").unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(
            lines.push(b"1}\n\n{}\r\n{\"b").unwrap(),
            [b"{\"a\":1}".to_vec(), b"{}\r".to_vec()]
        );
        assert_eq!(lines.push(b"\":2}\n").unwrap(), [b"{\"b\":2}".to_vec()]);
        let many = vec![b'x'; MAX_OBJECT];
        assert!(lines.push(&many).unwrap().is_empty());
        assert!(lines.push(b"x").is_err());
    }

    #[test]
    fn pauses_grow_to_a_limit_and_begin_anew() {
        let mut pause = Pause::default();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let next = pause.next();
            assert!(next >= FIRST_PAUSE && next <= LONGEST_PAUSE * 3 / 2, "{next:?}");
            last = next;
        }
        assert!(last >= LONGEST_PAUSE);
        pause.reset();
        assert!(pause.next() < FIRST_PAUSE * 2);
    }
}
