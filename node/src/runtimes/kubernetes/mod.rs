//! Pods and their namespaces by Kubernetes APIs, watched while the pods live.

mod api;
mod pod;
mod watch;
#[cfg(test)]
mod watch_tests;

use super::labels::LabelFilter;
use crate::workloads::ContainerFacts;
use anyhow::{Result, anyhow};
use api::{ApiError, check_name};
use meshward_api_types::local::{Kubernetes, Pod};
use parking_lot::Mutex;
use pod::{NamespaceObject, key};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::{sync::Semaphore, task::AbortHandle};
use tracing::warn;
use watch::{Object, Watch};

pub(super) use pod::PodObject;

/// The largest number of requests at a time.
const AT_ONCE: usize = 16;
/// The largest number of watches: of the pods of this node, and each namespace that they are in.
const MOST_WATCHES: usize = 256;

/// The watched pods and namespaces.
pub(super) struct Pods {
    filter: Arc<LabelFilter>,
    turns: Semaphore,
    nodes: Mutex<HashMap<(Kubernetes, String), RunningWatch<PodObject>>>,
    namespaces: Mutex<HashMap<(Kubernetes, String), RunningWatch<NamespaceObject>>>,
    changes: Arc<Mutex<Changes>>,
    /// Called when there are changes.
    notify: Arc<dyn Fn() + Send + Sync>,
    /// The namespaces that cannot be read, which was logged.
    unread: Mutex<HashSet<String>>,
}

/// The pods that have changed, by key, and the namespaces, by name.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pods: HashSet<String>,
    namespaces: HashSet<String>,
}

impl Changes {
    /// Returns `true` if a pod or its namespace has changed.
    pub(super) fn concern(&self, pod: &Pod) -> bool {
        self.namespaces.contains(&pod.namespace)
            || self.pods.contains(&key(&pod.namespace, &pod.name))
    }
}

/// A watch and its task, which ends when this is dropped.
struct RunningWatch<T> {
    watch: Arc<Watch<T>>,
    task: AbortHandle,
}

impl<T> Drop for RunningWatch<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Object> RunningWatch<T> {
    fn start(watch: Watch<T>) -> Self {
        let watch = Arc::new(watch);
        let task = tokio::spawn(watch.clone().follow()).abort_handle();
        Self { watch, task }
    }
}

impl Pods {
    /// Creates the set without pods. `notify` is called whenever there are changes.
    pub(super) fn new(filter: Arc<LabelFilter>, notify: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            filter,
            turns: Semaphore::new(AT_ONCE),
            nodes: Mutex::default(),
            namespaces: Mutex::default(),
            changes: Arc::default(),
            notify: Arc::new(notify),
            unread: Mutex::default(),
        }
    }

    /// Returns the facts about a pod, once the image of one of its containers is known; from then
    /// on it is watched. `None` if it is not known yet, or is another pod of the same name.
    ///
    /// # Errors
    /// Fails if the API does not answer, or does not let us ask.
    pub(super) async fn facts_of(&self, pod: &Pod) -> Result<Option<ContainerFacts>> {
        let (namespace, name) = (check_name(&pod.namespace)?, check_name(&pod.name)?);
        let object = match self.watched(pod) {
            Some(object) => object,
            None => {
                let _turn = self.turns.acquire().await?;
                match api::get(&pod.api, &format!("/api/v1/namespaces/{namespace}/pods/{name}"))
                    .await
                {
                    Ok(object) => Arc::new(object),
                    Err(ApiError::Missing) => return Ok(None),
                    Err(error) => return Err(anyhow!(error)),
                }
            }
        };
        let is_other =
            pod.uid.as_ref().is_some_and(|uid| !object.uid().is_empty() && uid != object.uid());
        if is_other {
            return Ok(None);
        }
        let of = self.namespace(pod).await?;
        self.watch(pod, object.node());
        Ok(object.found(pod, of.as_deref(), &self.filter))
    }

    fn watched(&self, pod: &Pod) -> Option<Arc<PodObject>> {
        let key = key(&pod.namespace, &pod.name);
        let nodes = self.nodes.lock();
        let mut own = nodes.iter().filter(|((api, _), _)| *api == pod.api);
        own.find_map(|(_, running)| running.watch.get(&key))
    }

    /// Returns the namespace of a pod. One that cannot be read gives no labels.
    async fn namespace(&self, pod: &Pod) -> Result<Option<Arc<NamespaceObject>>> {
        let known = {
            let namespaces = self.namespaces.lock();
            let running = namespaces.get(&(pod.api.clone(), pod.namespace.clone()));
            running.filter(|own| own.watch.is_listed()).map(|own| own.watch.get(&pod.namespace))
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let _turn = self.turns.acquire().await?;
        match api::get(&pod.api, &format!("/api/v1/namespaces/{}", pod.namespace)).await {
            Ok(object) => Ok(Some(Arc::new(object))),
            Err(error @ (ApiError::Missing | ApiError::Forbidden { .. })) => {
                if self.unread.lock().insert(pod.namespace.clone()) {
                    warn!(
                        namespace = pod.namespace,
                        "the labels of this namespace of Kubernetes are not known: {error}"
                    );
                }
                Ok(None)
            }
            Err(error) => Err(anyhow!(error)),
        }
    }

    /// Watches the pods of a node, and the namespace of a pod.
    fn watch(&self, pod: &Pod, node: &str) {
        let mut nodes = self.nodes.lock();
        let at = (pod.api.clone(), node.to_owned());
        if check_name(node).is_ok() && nodes.len() < MOST_WATCHES && !nodes.contains_key(&at) {
            let (changes, notify) = (self.changes.clone(), self.notify.clone());
            let changed = move |keys: &[String]| {
                changes.lock().pods.extend(keys.iter().cloned());
                notify();
            };
            let selector = format!("fieldSelector=spec.nodeName%3D{node}");
            let watch = Watch::new(pod.api.clone(), "/api/v1/pods".into(), selector, changed);
            nodes.insert(at, RunningWatch::start(watch));
        }
        drop(nodes);
        let mut namespaces = self.namespaces.lock();
        let at = (pod.api.clone(), pod.namespace.clone());
        let unread = self.unread.lock().contains(&pod.namespace);
        if !unread && namespaces.len() < MOST_WATCHES && !namespaces.contains_key(&at) {
            let (changes, notify) = (self.changes.clone(), self.notify.clone());
            let changed = move |keys: &[String]| {
                changes.lock().namespaces.extend(keys.iter().cloned());
                notify();
            };
            let selector = format!("fieldSelector=metadata.name%3D{}", pod.namespace);
            let watch = Watch::new(pod.api.clone(), "/api/v1/namespaces".into(), selector, changed);
            namespaces.insert(at, RunningWatch::start(watch));
        }
    }

    /// Returns the changes since the last call.
    pub(super) fn drain_changes(&self) -> Changes {
        std::mem::take(&mut *self.changes.lock())
    }

    /// Ends the watches that none of these pods needs.
    pub(super) fn retain(&self, used: &[Pod]) {
        self.nodes.lock().retain(|(api, _), _| used.iter().any(|pod| pod.api == *api));
        let in_use = |(api, namespace): &(Kubernetes, String)| {
            used.iter().any(|pod| pod.api == *api && pod.namespace == *namespace)
        };
        self.namespaces.lock().retain(|at, _| in_use(at));
        self.unread.lock().retain(|namespace| used.iter().any(|pod| pod.namespace == *namespace));
    }
}
