//! Container runtimes: measuring what they run.
//!
//! A container's interface is made before the container starts, while its runtime holds a lock on it; only then can the
//! runtime be asked. So a container is placed closed, and measured as soon as its runtime says that it runs.

mod bounded;
mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod inspect;
mod kubernetes;
mod registry;
mod signatures;

use crate::{
    attachment::Origin,
    daemon::{Found, Node, Unmeasured},
};
pub use engine::Engine;
use engine::Engines;
use meshward_model::{WorkloadId, local::Pod};
use parking_lot::Mutex;
use signatures::Signatures;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};
use tracing::warn;

/// How often a runtime is asked about a container that it has not started yet, and after how long less often.
const ASK: Duration = Duration::from_millis(100);
const ASK_LATER: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// How often signatures are looked for again of images that are refused.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The most pods that are asked for at once.
const PODS_AT_ONCE: usize = 16;

/// Measures containers, for ever: each by itself, so that what one takes delays no other. What one runtime, API or registry is asked
/// at once is bounded.
pub async fn measure(node: Arc<Node>) {
    let measuring = Arc::new(Measuring {
        signatures: Signatures::new(&node.config),
        engines: Engines::default(),
        pods: Semaphore::new(PODS_AT_ONCE),
        under_way: Mutex::default(),
        node,
    });
    let node = &measuring.node;
    let mut look_again = Instant::now() + LOOK_AGAIN;
    let mut waiting_since: Option<Instant> = None;
    loop {
        let pause = match waiting_since {
            Some(since) if since.elapsed() < SOON => ASK,
            Some(_) => ASK_LATER,
            None => LOOK_AGAIN,
        };
        tokio::select! {
            () = node.to_measure.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let waiting = node.unmeasured().await;
        let left = waiting.iter().any(|waiting| source(&measuring, waiting).is_some());
        for waiting in waiting {
            measuring.begin(waiting.id.clone(), |measuring| async move { measuring.measure(waiting).await });
        }
        waiting_since = left.then(|| waiting_since.unwrap_or_else(Instant::now));
        if look_again.elapsed() > Duration::ZERO {
            look_again = Instant::now() + LOOK_AGAIN;
            for (id, images) in node.refused_images().await {
                measuring.begin(id.clone(), |measuring| async move {
                    let found = measuring.signatures.again(&images).await;
                    measuring.node.add_signatures(&id, found).await;
                });
            }
        }
    }
}

/// Who knows a container.
enum Source {
    Engine { socket: PathBuf, container: Named },
    Pod(Pod),
}

/// How it is called there.
enum Named {
    Endpoint(String),
    Container(String),
}

fn source(measuring: &Measuring, waiting: &Unmeasured) -> Option<Source> {
    match &waiting.origin {
        Origin::Docker { endpoint } => Some(Source::Engine {
            socket: measuring.node.config.docker_socket.clone(),
            container: Named::Endpoint(endpoint.clone()),
        }),
        Origin::Cni { pod: Some(pod), .. } => Some(Source::Pod(pod.clone())),
        Origin::Cni { engine: Some(socket), container, .. } => {
            Some(Source::Engine { socket: socket.clone(), container: Named::Container(container.clone()) })
        }
        // Those are measured by whoever has placed them.
        Origin::Cni { engine: None, .. } | Origin::Local | Origin::Route | Origin::Device => None,
    }
}

/// What it takes to measure.
struct Measuring {
    node: Arc<Node>,
    signatures: Signatures,
    engines: Engines,
    /// Turns of those that ask Kubernetes.
    pods: Semaphore,
    /// The workloads that are being measured.
    under_way: Mutex<HashSet<WorkloadId>>,
}

impl Measuring {
    /// Does something for a workload, unless something is being done for it already.
    fn begin<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        id: WorkloadId,
        act: impl FnOnce(Arc<Self>) -> F,
    ) {
        if !self.under_way.lock().insert(id.clone()) {
            return;
        }
        let (own, doing) = (self.clone(), act(self.clone()));
        tokio::spawn(async move {
            // Whatever becomes of it, it may be tried again.
            let _ = tokio::spawn(doing).await;
            own.under_way.lock().remove(&id);
        });
    }

    async fn measure(&self, waiting: Unmeasured) {
        let found = match source(self, &waiting) {
            Some(Source::Engine { socket, container }) => self.ask_engine(&socket, &container).await,
            Some(Source::Pod(pod)) => match self.pods.acquire().await {
                Ok(_turn) => kubernetes::look(&pod).await,
                Err(_) => return,
            },
            None => return,
        };
        match found {
            Ok(Some(found)) => self.take(waiting, found).await,
            // It is not there yet.
            Ok(None) => {}
            Err(error) => {
                warn!(workload = %waiting.id, "it cannot be measured: {error:#}");
                tokio::time::sleep(ASK_LATER).await;
            }
        }
    }

    async fn ask_engine(&self, socket: &Path, container: &Named) -> anyhow::Result<Option<Found>> {
        let place = self.engines.place(socket).await;
        let Some(_turn) = place.turn().await else { return Ok(None) };
        let engine = place.engine(socket).await?;
        let ask = async {
            match container {
                Named::Container(id) => engine.look(id).await,
                Named::Endpoint(id) => match engine.by_endpoint().await?.get(id) {
                    Some(container) => engine.look(container).await,
                    None => Ok(None),
                },
            }
        };
        let asked = ask.await;
        if asked.is_err() {
            place.forget().await;
        }
        asked
    }

    /// Takes what was found. Where a network wants signatures, they are looked for first; elsewhere afterwards, so that a
    /// registry delays nobody who does not need it, and is not asked first when a rule comes later.
    async fn take(&self, waiting: Unmeasured, mut found: Found) {
        let images = found.measurement.as_ref().map(|measurement| measurement.images.clone());
        let images = images.unwrap_or_default();
        if waiting.judged {
            found.signatures = self.signatures.of(&images).await;
            return self.node.settle(&waiting.id, found).await;
        }
        self.node.settle(&waiting.id, found).await;
        let found = self.signatures.of(&images).await;
        if !found.is_empty() {
            self.node.add_signatures(&waiting.id, found).await;
        }
    }
}
