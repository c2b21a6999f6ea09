//! Container runtimes: measuring what they run.
//!
//! A container's interface is made before the container starts, while its runtime holds a lock on it; only then can the
//! runtime be asked. So a container is placed closed, and measured as soon as its runtime says that it runs.

mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod inspect;
mod kubernetes;
mod signatures;

use crate::{
    attachment::Origin,
    config::Config,
    daemon::{Found, Node, Unmeasured},
};
pub use engine::Engine;
use engine::Engines;
use futures::future::join_all;
use signatures::Signatures;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tracing::warn;

/// How often a runtime is asked about a container that it has not started yet, and after how long less often.
const ASK: Duration = Duration::from_millis(100);
const ASK_LATER: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// How often signatures are looked for again of images that are refused.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Measures containers, for ever.
pub async fn measure(node: Arc<Node>) {
    let Config { insecure_registries, registry_credentials, image_layouts, .. } = node.config.clone();
    let signatures = Arc::new(Signatures::new(insecure_registries, registry_credentials, image_layouts));
    let (mut engines, mut look_again) = (Engines::default(), Instant::now() + LOOK_AGAIN);
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
        let left = measure_once(&node, &mut engines, &signatures).await;
        waiting_since = left.then(|| waiting_since.unwrap_or_else(Instant::now));
        if look_again.elapsed() > Duration::ZERO {
            look_again = Instant::now() + LOOK_AGAIN;
            for (id, images) in node.refused_images().await {
                let found = signatures.again(&images).await;
                node.add_signatures(&id, found).await;
            }
        }
    }
}

/// Measures what can be measured now, and gives whether something is left.
async fn measure_once(node: &Arc<Node>, engines: &mut Engines, signatures: &Arc<Signatures>) -> bool {
    let mut by_engine: BTreeMap<PathBuf, Vec<Unmeasured>> = BTreeMap::new();
    let mut pods = Vec::new();
    for waiting in node.unmeasured().await {
        match &waiting.origin {
            Origin::Docker { .. } => {
                by_engine.entry(node.config.docker_socket.clone()).or_default().push(waiting)
            }
            Origin::Cni { pod: Some(pod), .. } => pods.push((pod.clone(), waiting)),
            Origin::Cni { engine: Some(engine), .. } => {
                by_engine.entry(engine.clone()).or_default().push(waiting)
            }
            // Those are measured by whoever has placed them.
            Origin::Cni { engine: None, .. } | Origin::Local | Origin::Route | Origin::Device => {}
        }
    }
    let mut left = false;
    let looked =
        join_all(pods.into_iter().map(async |(pod, waiting)| (kubernetes::look(&pod).await, pod, waiting)));
    for (found, pod, waiting) in looked.await {
        match found {
            Ok(Some(found)) => take(node, signatures, waiting, found).await,
            Ok(None) => left = true,
            Err(error) => {
                warn!(pod = pod.name, "the pod cannot be measured: {error:#}");
                left = true;
            }
        }
    }
    for (socket, waiting) in by_engine {
        let asked = ask(engines, &socket, waiting).await;
        let (found, missing) = asked.unwrap_or_else(|error| {
            warn!(socket = %socket.display(), "containers cannot be measured: {error:#}");
            engines.forget(&socket);
            (vec![], true)
        });
        left |= missing;
        for (waiting, found) in found {
            take(node, signatures, waiting, found).await;
        }
    }
    left
}

type Asked = (Vec<(Unmeasured, Found)>, bool);

/// Asks a runtime about the containers that wait; gives what it knows, and whether it did not know of one.
async fn ask(engines: &mut Engines, socket: &Path, waiting: Vec<Unmeasured>) -> anyhow::Result<Asked> {
    let engine: &Engine = engines.get(socket).await?;
    let docker = waiting.iter().any(|waiting| matches!(waiting.origin, Origin::Docker { .. }));
    let by_endpoint = if docker { engine.by_endpoint().await? } else { HashMap::new() };
    let (mut all, mut missing) = (Vec::new(), false);
    for waiting in waiting {
        let container = match &waiting.origin {
            Origin::Docker { endpoint } => by_endpoint.get(endpoint).map(String::as_str),
            Origin::Cni { container, .. } => Some(container.as_str()),
            Origin::Local | Origin::Route | Origin::Device => None,
        };
        let found = match container {
            Some(container) => engine.look(container).await?,
            None => None,
        };
        match found {
            Some(found) => all.push((waiting, found)),
            None => missing = true,
        }
    }
    Ok((all, missing))
}

/// Takes what was found. Where a network wants signatures, they are looked for first; elsewhere afterwards, so that a
/// registry delays nobody who does not need it, and is not asked first when a rule comes later.
async fn take(node: &Arc<Node>, signatures: &Arc<Signatures>, waiting: Unmeasured, mut found: Found) {
    let images = found.measurement.as_ref().map(|measurement| measurement.images.clone()).unwrap_or_default();
    if waiting.judged {
        found.signatures = signatures.of(&images).await;
        return node.settle(&waiting.id, found).await;
    }
    node.settle(&waiting.id, found).await;
    let (node, signatures) = (node.clone(), signatures.clone());
    tokio::spawn(async move {
        let found = signatures.of(&images).await;
        if !found.is_empty() {
            node.add_signatures(&waiting.id, found).await;
        }
    });
}
