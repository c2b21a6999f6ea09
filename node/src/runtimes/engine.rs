//! A container runtime with an API like Docker's: Docker itself, or Podman. Its answers are
//! bounded, and so is what is asked of it at once.

use super::{
    bounded::{ask_unix, check_id, open_unix},
    inspect,
    labels::LabelFilter,
    sharing::Running,
};
use crate::workloads::ContainerFacts;
use anyhow::{Context, Result, ensure};
use bollard::models::{ContainerInspectResponse, ContainerSummary, ImageInspect};
use http_body_util::BodyExt;
use hyper::StatusCode;
use meshward_netns::NetnsId;
use meshward_types::measurement::{MAX_SHARING, MAX_SHARING_TEXT, Sha256, SharingContainer};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// The time within which the runtime must answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answers about one container or image, and about all containers, in bytes.
pub(super) const MAX_ANSWER: usize = 4 << 20;
const MAX_LIST: usize = 32 << 20;
/// The largest number of requests to one runtime at a time; others wait in order.
const AT_ONCE: usize = 8;
/// The time for which a list of all containers is used again.
const LIST_LASTS: Duration = Duration::from_millis(50);
/// `{"event":["start","connect","unpause","die","died"]}`, as a part of a URL: Podman says `died`.
const EVENTS: &str = "/events?filters=%7B%22event%22%3A%5B%22start%22%2C%22connect%22%2C\
    %22unpause%22%2C%22die%22%2C%22died%22%5D%7D";

/// A container's name at its runtime.
pub(super) enum Named {
    Endpoint(String),
    Container(String),
}

/// A runtime that answers.
pub struct Engine {
    pub(super) socket: PathBuf,
    /// The prefix of every path: the version of the API.
    pub(super) prefix: String,
    /// The runtime's name.
    pub runtime: String,
    listed: Mutex<Option<(Instant, Arc<Running>)>>,
    /// The network modes of the containers that run: they are what they were made with. Podman's
    /// list does not have them.
    modes: Mutex<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    api_version: String,
    #[serde(default)]
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

impl Engine {
    /// Connects.
    ///
    /// # Errors
    /// Fails if nothing answers on the socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let asked = ask_unix(socket, "/version", MAX_ANSWER, PATIENCE).await;
        let (status, body) = asked
            .with_context(|| format!("no container runtime answers on {}", socket.display()))?;
        ensure!(status.is_success(), "the runtime on {} answers {status}", socket.display());
        let Version { api_version, components } = serde_json::from_slice(&body)?;
        let podman =
            components.iter().flatten().any(|component| component.name.starts_with("Podman"));
        Ok(Self {
            socket: socket.to_owned(),
            prefix: format!("/v{}", check_id(&api_version)?),
            runtime: if podman { "podman" } else { "docker" }.to_owned(),
            listed: Mutex::default(),
            modes: Mutex::default(),
        })
    }

    /// Sends a request; `None` if the runtime answers 404.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Option<T>> {
        let path = format!("{}{path}", self.prefix);
        let (status, body) = ask_unix(&self.socket, &path, limit, PATIENCE).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(status.is_success(), "the runtime answers {status} to {path}");
        Ok(Some(serde_json::from_slice(&body).with_context(|| format!("what it says to {path}"))?))
    }

    /// Returns the containers that run. Callers at the same time share an answer.
    ///
    /// # Errors
    /// Fails if the runtime does not answer.
    pub async fn running(&self) -> Result<Arc<Running>> {
        self.running_since(Instant::now() - LIST_LASTS).await
    }

    /// Returns the containers that run, by an answer that is no older than `since`.
    ///
    /// # Errors
    /// Fails if the runtime does not answer.
    pub async fn running_since(&self, since: Instant) -> Result<Arc<Running>> {
        let mut listed = self.listed.lock().await;
        if let Some((at, known)) = &*listed
            && *at >= since
        {
            return Ok(known.clone());
        }
        let asked = Instant::now();
        let all: Vec<ContainerSummary> =
            self.ask("/containers/json", MAX_LIST).await?.unwrap_or_default();
        let modes =
            if self.runtime == "podman" { self.ask_modes(&all).await? } else { HashMap::new() };
        let found = Arc::new(Running::of(all, &modes));
        *listed = Some((asked, found.clone()));
        Ok(found)
    }

    /// Returns the network modes of containers; each container is inspected once.
    async fn ask_modes(&self, all: &[ContainerSummary]) -> Result<HashMap<String, String>> {
        let mut modes = self.modes.lock().await;
        let ids: HashSet<&str> =
            all.iter().filter_map(|container| container.id.as_deref()).collect();
        modes.retain(|id, _| ids.contains(id.as_str()));
        for id in ids {
            if modes.contains_key(id) {
                continue;
            }
            if let Some(inspected) = self.inspect(id).await? {
                let mode = inspected.host_config.and_then(|host| host.network_mode);
                modes.insert(id.to_owned(), mode.unwrap_or_default());
            }
        }
        Ok(modes.clone())
    }

    async fn inspect(&self, container: &str) -> Result<Option<ContainerInspectResponse>> {
        self.ask(&format!("/containers/{}/json", check_id(container)?), MAX_ANSWER).await
    }

    async fn image(&self, container: &ContainerInspectResponse) -> Result<ImageInspect> {
        let image = container.image.as_deref().context("the runtime names no image")?;
        let image = self.ask(&format!("/images/{}/json", check_id(image)?), MAX_ANSWER).await?;
        image.context("the runtime does not know the image that it runs")
    }

    /// Returns the facts about a container that runs and those that share its network namespace;
    /// `None` if it does not exist or does not run yet.
    ///
    /// # Errors
    /// Fails if the runtime does not answer.
    pub async fn facts_of(
        &self,
        container: &str,
        filter: &LabelFilter,
    ) -> Result<Option<ContainerFacts>> {
        let Some(inspected) = self.inspect(container).await?.filter(runs) else { return Ok(None) };
        let image = self.image(&inspected).await?;
        let mut found = inspect::found(&self.runtime, &inspected, &image, filter);
        let own = netns_of(&inspected);
        let running = self.running().await?;
        let others = running.sharing(inspected.id.as_deref().unwrap_or(container));
        let mut sharing = Vec::new();
        for other in others.iter().take(MAX_SHARING) {
            let Some(other) = self.inspect(other).await?.filter(runs) else { continue };
            // A container that was started anew has another namespace; who shared the one of before
            // still has that.
            if own.is_some() && netns_of(&other).is_some_and(|netns| Some(netns) != own) {
                continue;
            }
            sharing.push(match self.image(&other).await {
                Ok(image) => inspect::sharing(&other, &image),
                // It is there all the same, and keeps the workload closed until more is known of
                // it.
                Err(error) => SharingContainer {
                    objection: Some(inspect::cut(
                        &format!("it cannot be measured: {error:#}"),
                        MAX_SHARING_TEXT,
                    )),
                    ..inspect::sharing(&other, &ImageInspect::default())
                },
            });
        }
        if others.len() > MAX_SHARING {
            sharing.truncate(MAX_SHARING - 1);
            sharing.push(unmeasured(others.len() - sharing.len()));
        }
        sharing.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        match found.measurement.as_mut().map(Arc::make_mut) {
            Some(measurement) => measurement.sharing = sharing,
            // It is kept out by itself.
            None => debug_assert!(found.objection.is_some()),
        }
        Ok(Some(found))
    }

    /// Calls `notify` whenever a container starts, ends or is connected to a network, until the
    /// runtime ends. The events themselves are not kept, however many there are.
    pub async fn follow(&self, notify: impl Fn()) {
        let Ok(events) = open_unix(&self.socket, &format!("{}{EVENTS}", self.prefix)).await else {
            return;
        };
        let mut body = events.into_body();
        while let Some(Ok(_)) = body.frame().await {
            notify();
        }
    }
}

fn runs(container: &ContainerInspectResponse) -> bool {
    container.state.as_ref().is_some_and(|state| state.running == Some(true))
}

/// Returns the network namespace of a container's first process, if its id is one of this host.
fn netns_of(container: &ContainerInspectResponse) -> Option<NetnsId> {
    let pid = container.state.as_ref()?.pid.filter(|pid| *pid > 0)?;
    NetnsId::of_path(Path::new(&format!("/proc/{pid}/ns/net"))).ok()
}

/// Returns the entry that stands for `count` containers that are not measured.
fn unmeasured(count: usize) -> SharingContainer {
    SharingContainer {
        name: format!("and {count} more"),
        image: None,
        config: Sha256::of(b""),
        privileges: vec![],
        objection: Some(format!(
            "at most {MAX_SHARING} containers that share a namespace are measured"
        )),
    }
}

/// The runtimes by their sockets.
#[derive(Default)]
pub(super) struct Engines(Mutex<HashMap<PathBuf, Arc<EngineSlot>>>);

/// The connection to a runtime, and the limit of requests.
pub(super) struct EngineSlot {
    turns: Arc<Semaphore>,
    engine: Mutex<Option<Arc<Engine>>>,
}

impl Engines {
    /// Returns the slot of a runtime.
    pub(super) async fn slot(&self, socket: &Path) -> Arc<EngineSlot> {
        let new = || {
            Arc::new(EngineSlot {
                turns: Arc::new(Semaphore::new(AT_ONCE)),
                engine: Mutex::default(),
            })
        };
        self.0.lock().await.entry(socket.to_owned()).or_insert_with(new).clone()
    }
}

impl EngineSlot {
    /// Waits for a turn.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone().acquire_owned().await.ok()
    }

    /// Returns the runtime, and connects to it on `socket` if that is not done yet.
    ///
    /// # Errors
    /// Fails if nothing answers there.
    pub(super) async fn engine(&self, socket: &Path) -> Result<Arc<Engine>> {
        let mut engine = self.engine.lock().await;
        if let Some(known) = &*engine {
            return Ok(known.clone());
        }
        let connected = Arc::new(Engine::connect(socket).await?);
        *engine = Some(connected.clone());
        Ok(connected)
    }

    /// Forgets a runtime that has failed: it may be another one when it is back.
    pub(super) async fn forget(&self) {
        *self.engine.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    /// A runtime that answers to `/version`, and to everything else without end.
    fn endless(folder: &Path) -> PathBuf {
        let socket = folder.join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = vec![0; 4096];
                    let length = stream.read(&mut head).await?;
                    if head[..length].starts_with(b"GET /version ") {
                        let body = r#"{"ApiVersion":"1.41"}"#;
                        let head =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                        return stream.write_all(format!("{head}{body}").as_bytes()).await;
                    }
                    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                    let chunk = [&b"10000\r\n"[..], &vec![b' '; 0x10000], b"\r\n"].concat();
                    let mut sent = stream.write_all(head).await;
                    while sent.is_ok() {
                        sent = stream.write_all(&chunk).await;
                    }
                    sent
                });
            }
        });
        socket
    }

    #[tokio::test]
    async fn what_a_runtime_says_without_end_is_given_up_or_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::connect(&endless(folder.path())).await.unwrap();
        let filter = LabelFilter::new(&[]);
        for error in [engine.facts_of("web", &filter).await.err(), engine.running().await.err()] {
            let error = format!("{:#}", error.unwrap());
            assert!(error.contains("bytes are taken"), "{error}");
        }
        let told = AtomicUsize::new(0);
        let following = engine.follow(|| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        let _ = tokio::time::timeout(Duration::from_millis(300), following).await;
        assert!(told.load(Ordering::Relaxed) > 0);
        assert!(engine.facts_of("../images", &filter).await.is_err(), "an id leads nowhere else");
    }
}
