//! Container runtimes: measuring what they run.
//!
//! A container's interface is made before the container starts, while its runtime holds a lock on
//! it; only then can the runtime be asked. So a container is placed closed, and measured as soon as
//! its runtime says that it runs. It is measured again when something else comes into its network
//! namespace or leaves it, and when its labels change.

mod bounded;
mod command_error;
mod commands;
mod cri;
mod cri_messages;
mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod inspect;
mod kubernetes;
mod labels;
mod registry;
mod sharing;
mod signatures;

use crate::{
    app::Node,
    attachment::Origin,
    workloads::{Container, ContainerFacts},
};
pub(crate) use command_error::CommandError;
pub(crate) use commands::{Command, CommandEnd, Commands, Ending};
pub use engine::Engine;
use engine::{Engines, Named};
use kubernetes::Pods;
use labels::LabelFilter;
use meshward_api_types::local::Pod;
use meshward_types::WorkloadId;
use parking_lot::Mutex;
use signatures::Signatures;
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tracing::{debug, warn};

/// The intervals at which a runtime is asked about a container that it has not started yet, and the
/// time after which the longer one applies.
const ASK: Duration = Duration::from_millis(100);
const ASK_LATER: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// The interval at which signatures of refused images and sharing of namespaces are looked up again
/// without an event.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The largest number of runtimes whose events are followed.
const MOST_FOLLOWED: usize = 16;

/// Measures containers, for ever: each by itself, so that what one takes delays no other. What one
/// runtime, API or registry is asked at once is bounded.
pub async fn measure(node: Arc<Node>) {
    let measuring = Arc::new(Measuring::new(node));
    tokio::spawn(measuring.clone().watch_sharing());
    let node = &measuring.node;
    // Labels may have changed while this daemon was away.
    for container in node.workloads.containers() {
        if container.measured && matches!(container.origin, Origin::Cni { pod: Some(_), .. }) {
            measuring.stale.lock().insert(container.id);
        }
    }
    // And other containers may have come into namespaces.
    measuring.look_for_sharing.notify_one();
    let mut look_again = Instant::now();
    let mut waiting_since: Option<Instant> = None;
    loop {
        let pause = match waiting_since {
            Some(since) if since.elapsed() < SOON => ASK,
            Some(_) => ASK_LATER,
            None => LOOK_AGAIN,
        };
        tokio::select! {
            () = node.workloads.to_measure.notified() => measuring.look_for_sharing.notify_one(),
            () = tokio::time::sleep(pause) => {}
        }
        let all = node.workloads.containers();
        measuring.note_changes(&all);
        let due: Vec<Container> =
            all.into_iter().filter(|container| measuring.is_due(container)).collect();
        waiting_since = (!due.is_empty()).then(|| waiting_since.unwrap_or_else(Instant::now));
        for container in due {
            let id = container.id.clone();
            measuring.begin(
                |own| &own.under_way,
                id,
                |own| async move { own.measure(container).await },
            );
        }
        if look_again.elapsed() > LOOK_AGAIN {
            look_again = Instant::now();
            measuring.look_for_sharing.notify_one();
            for (id, images) in node.workloads.refused_images() {
                measuring.begin(
                    |own| &own.looked_for,
                    id.clone(),
                    |own| async move {
                        let found = own.signatures.refresh(&images).await;
                        own.node.workloads.add_signatures(&id, found);
                    },
                );
            }
        }
    }
}

/// The source of facts about a container.
enum Source {
    Engine { socket: PathBuf, container: Named },
    Pod(Pod),
}

/// The state of measuring.
struct Measuring {
    node: Arc<Node>,
    signatures: Signatures,
    engines: Engines,
    filter: Arc<LabelFilter>,
    pods: Pods,
    /// The workloads that are being measured, and those of whose images signatures are being looked
    /// for: a registry that is slow delays no measuring.
    under_way: Mutex<HashSet<WorkloadId>>,
    looked_for: Mutex<HashSet<WorkloadId>>,
    /// The workloads that were measured, and are to be measured again.
    stale: Mutex<HashSet<WorkloadId>>,
    /// Notified when the sharing of namespaces is to be looked up.
    look_for_sharing: Notify,
    /// The containers that share the namespace of each workload, by their runtimes' ids.
    sharing: Mutex<HashMap<WorkloadId, Vec<String>>>,
    /// The runtimes whose events are followed, apart from that of Docker's plugin.
    followed: Mutex<HashSet<PathBuf>>,
}

impl Measuring {
    fn new(node: Arc<Node>) -> Self {
        let filter = Arc::new(LabelFilter::new(&node.config.ignored_labels));
        let weak = Arc::downgrade(&node);
        let notify = move || {
            if let Some(node) = weak.upgrade() {
                node.workloads.to_measure.notify_one();
            }
        };
        Self {
            signatures: Signatures::new(&node.config),
            engines: Engines::default(),
            pods: Pods::new(filter.clone(), notify),
            filter,
            under_way: Mutex::default(),
            looked_for: Mutex::default(),
            stale: Mutex::default(),
            look_for_sharing: Notify::new(),
            sharing: Mutex::default(),
            followed: Mutex::default(),
            node,
        }
    }

    fn source(&self, origin: &Origin) -> Option<Source> {
        match origin {
            Origin::Docker { endpoint } => Some(Source::Engine {
                socket: self.node.config.docker_socket.clone(),
                container: Named::Endpoint(endpoint.clone()),
            }),
            Origin::Cni { pod: Some(pod), .. } => Some(Source::Pod(pod.clone())),
            Origin::Cni { engine: Some(socket), container, .. } => Some(Source::Engine {
                socket: socket.clone(),
                container: Named::Container(container.clone()),
            }),
            // Those are measured by whoever has placed them.
            Origin::Cni { engine: None, .. } | Origin::Local | Origin::Route | Origin::Device => {
                None
            }
        }
    }

    /// Returns `true` if a container is to be measured, for the first time or again.
    fn is_due(&self, container: &Container) -> bool {
        let wanted = !container.measured || self.stale.lock().contains(&container.id);
        wanted && self.source(&container.origin).is_some()
    }

    /// Notes which pods are others now than they were measured as, and watches what the pods need
    /// that are there.
    fn note_changes(&self, all: &[Container]) {
        let pod = |container: &Container| match &container.origin {
            Origin::Cni { pod, .. } => pod.clone(),
            _ => None,
        };
        let pods: Vec<(&Container, Pod)> =
            all.iter().filter_map(|own| Some((own, pod(own)?))).collect();
        let changes = self.pods.drain_changes();
        let mut stale = self.stale.lock();
        stale.retain(|id| all.iter().any(|container| container.id == *id));
        for (container, pod) in &pods {
            if container.measured && changes.concern(pod) {
                stale.insert(container.id.clone());
            }
        }
        drop(stale);
        let used: Vec<Pod> = pods.into_iter().map(|(_, pod)| pod).collect();
        self.pods.retain(&used);
    }

    /// Starts a task for a workload, unless one is in the set already.
    fn begin<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        what: fn(&Self) -> &Mutex<HashSet<WorkloadId>>,
        id: WorkloadId,
        act: impl FnOnce(Arc<Self>) -> F,
    ) {
        if !what(self).lock().insert(id.clone()) {
            return;
        }
        let (own, doing) = (self.clone(), act(self.clone()));
        tokio::spawn(async move {
            // Whatever becomes of it, it may be tried again.
            let _ = tokio::spawn(doing).await;
            what(&own).lock().remove(&id);
        });
    }

    async fn measure(self: &Arc<Self>, container: Container) {
        self.stale.lock().remove(&container.id);
        let found = match self.source(&container.origin) {
            Some(Source::Engine { socket, container }) => {
                self.ask_engine(&socket, &container).await
            }
            Some(Source::Pod(pod)) => self.pods.facts_of(&pod).await,
            None => return,
        };
        match found {
            Ok(Some(found)) => self.record(container, found).await,
            // It is not there yet, or not any more.
            Ok(None) => {}
            Err(error) => {
                warn!(workload = %container.id, "it cannot be measured: {error:#}");
                tokio::time::sleep(ASK_LATER).await;
                if container.measured {
                    self.stale.lock().insert(container.id);
                }
            }
        }
    }

    async fn ask_engine(
        &self,
        socket: &Path,
        container: &Named,
    ) -> anyhow::Result<Option<ContainerFacts>> {
        let slot = self.engines.slot(socket).await;
        let Some(_turn) = slot.turn().await else { return Ok(None) };
        let engine = slot.engine(socket).await?;
        let ask = async {
            match container {
                Named::Container(id) => engine.facts_of(id, &self.filter).await,
                Named::Endpoint(id) => match engine.running().await?.by_endpoint.get(id) {
                    Some(container) => engine.facts_of(container, &self.filter).await,
                    None => Ok(None),
                },
            }
        };
        let asked = ask.await;
        if asked.is_err() {
            slot.forget().await;
        }
        asked
    }

    /// Takes what was found. Where a network wants signatures, they are looked for first; elsewhere
    /// afterwards, so that a registry delays nobody who does not need it, and is not asked first
    /// when a rule comes later. What was measured before is told at once, with the signatures that
    /// are known: until others are found, it is what it is.
    async fn record(self: &Arc<Self>, container: Container, mut found: ContainerFacts) {
        let images: Vec<_> =
            found.measurement.iter().flat_map(|measured| measured.all_images().cloned()).collect();
        if container.has_admission && !container.measured {
            found.signatures = self.signatures.of(&images).await;
            return self.node.workloads.record_facts(&container.id, found);
        }
        found.signatures = self.signatures.known(&images);
        self.node.workloads.record_facts(&container.id, found);
        if container.measurement.is_none_or(|before| !before.all_images().eq(&images)) {
            self.begin(
                |own| &own.looked_for,
                container.id.clone(),
                |own| async move {
                    let found = own.signatures.of(&images).await;
                    if !found.is_empty() {
                        own.node.workloads.add_signatures(&container.id, found);
                    }
                },
            );
        }
    }

    /// Finds out what shares the namespaces of workloads, whenever it is told to, and has those
    /// measured again where that has changed.
    async fn watch_sharing(self: Arc<Self>) {
        loop {
            self.look_for_sharing.notified().await;
            let begun = Instant::now();
            let mut by_socket: HashMap<PathBuf, Vec<(Container, Named)>> = HashMap::new();
            let all = self.node.workloads.containers();
            self.sharing.lock().retain(|id, _| all.iter().any(|container| container.id == *id));
            for own in all.into_iter().filter(|container| container.measured) {
                if let Some(Source::Engine { socket, container }) = self.source(&own.origin) {
                    by_socket.entry(socket).or_default().push((own, container));
                }
            }
            let mut changed = false;
            for (socket, containers) in by_socket {
                self.follow(&socket);
                match self.compare_sharing(&socket, &containers, begun).await {
                    Ok(others) => changed |= others,
                    Err(error) => {
                        debug!(socket = %socket.display(), "it is not known what runs: {error:#}");
                    }
                }
            }
            if changed {
                self.node.workloads.to_measure.notify_one();
            }
        }
    }

    /// Notes what shares the namespaces of some containers, and whether that has changed.
    async fn compare_sharing(
        &self,
        socket: &Path,
        containers: &[(Container, Named)],
        since: Instant,
    ) -> anyhow::Result<bool> {
        let slot = self.engines.slot(socket).await;
        let running = {
            let Some(_turn) = slot.turn().await else { return Ok(false) };
            match slot.engine(socket).await?.running_since(since).await {
                Ok(running) => running,
                Err(error) => {
                    slot.forget().await;
                    return Err(error);
                }
            }
        };
        let mut changed = false;
        for (own, named) in containers {
            let id = match named {
                Named::Container(id) => Some(id),
                Named::Endpoint(endpoint) => running.by_endpoint.get(endpoint),
            };
            let Some(id) = id else { continue };
            let now = running.sharing(id);
            let before = self.sharing.lock().insert(own.id.clone(), now.clone());
            let sharing = own.measurement.iter().flat_map(|measured| &measured.sharing);
            // What could not be measured may be known by now.
            let is_unclear = sharing.clone().any(|other| other.objection.is_some());
            let is_other = match before {
                Some(before) => before != now,
                None => sharing.count() > 0 || !now.is_empty(),
            };
            if is_other || is_unclear {
                self.stale.lock().insert(own.id.clone());
            }
            changed |= is_other;
        }
        Ok(changed)
    }

    /// Follows the events of a runtime, for ever. Those of Docker are followed by its plugin.
    fn follow(&self, socket: &Path) {
        let by_plugin =
            self.node.config.docker_plugin.is_some() && socket == self.node.config.docker_socket;
        let mut followed = self.followed.lock();
        if by_plugin || followed.len() >= MOST_FOLLOWED || !followed.insert(socket.to_owned()) {
            return;
        }
        let (node, socket) = (self.node.clone(), socket.to_owned());
        tokio::spawn(async move {
            loop {
                if let Ok(engine) = Engine::connect(&socket).await {
                    engine.follow(|| node.workloads.to_measure.notify_one()).await;
                    node.workloads.to_measure.notify_one();
                }
                tokio::time::sleep(ASK_LATER).await;
            }
        });
    }
}
