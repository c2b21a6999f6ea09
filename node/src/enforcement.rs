//! Enforcement: the replica of the view, and the endpoints that carry it out.
//!
//! One short synchronous lock guards what a quarantine needs, and nothing else: it is never held
//! over a file, a netlink call or an `await`. So a quarantine waits neither for a workload that is
//! being attached, nor for a restore, nor for a slow disk.
//!
//! Lock order: [`crate::workloads`] locks its state first and calls in here; nothing here calls
//! back.

use crate::{
    attachment::Findings,
    clock,
    endpoint_config::{self, EndpointConfig},
    own_addresses::OwnAddresses,
    refusal::Refusal,
    view_persister::{UpdateNumber, ViewPersister},
    view_store::ViewStore,
    workers::ServedEndpoint,
};
use meshward_control_proto::{
    Change, Resource, ResourceKey, ViewReplica,
    view::{NetworkSpec, WorkloadSpec},
};
use meshward_datapath::WorkloadIndex;
use meshward_runtime::write_behind::Troubles;
use meshward_types::{IdentityId, NetworkName, NodeName, PublicKey, Revision, WorkloadId};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, futures::Notified, watch};

/// The bound on how long a request waits for the coordinator to send the view, and then for an
/// endpoint.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// The part of the node that decides which packets pass.
pub struct Enforcement {
    node: NodeName,
    state: Mutex<State>,
    view_persister: ViewPersister,
    changed: Notify,
}

struct State {
    view: ViewReplica,
    /// The coordinator has sent everything since this daemon's start.
    is_current: bool,
    endpoints: BTreeMap<NetworkName, RunningEndpoint>,
    own_addresses: OwnAddresses,
}

/// An endpoint that runs.
#[derive(Clone)]
pub struct RunningEndpoint {
    /// The endpoint, as the workers serve it.
    pub served: Arc<ServedEndpoint>,
    /// The endpoint's WireGuard key.
    pub public_key: PublicKey,
    /// The endpoint's UDP port.
    pub port: u16,
    config: EndpointConfig,
    workloads: HashMap<WorkloadId, Local>,
}

/// A workload of this node at its endpoint.
#[derive(Clone, Copy)]
struct Local {
    index: WorkloadIndex,
    vouched: Option<IdentityId>,
}

/// The result of an update.
pub struct Applied {
    /// The update's number: it is on disk once [`Enforcement::subscribe_persisted`] gives that or a
    /// later one.
    pub number: UpdateNumber,
    /// The networks that it concerns.
    pub networks: BTreeSet<NetworkName>,
    /// The decisions on workloads of this node that it brings.
    pub decisions: Vec<(WorkloadId, Decision)>,
    /// The endpoints whose networks are gone. They pass nothing any more; the caller takes their
    /// workloads out, and has the workers stop them.
    pub stopped: Vec<(NetworkName, RunningEndpoint)>,
    /// There is a network without an endpoint among them.
    pub lacks_endpoint: bool,
}

/// The coordinator's decision on a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The workload is admitted under this identity.
    Admitted(IdentityId),
    /// The workload is refused.
    Refused,
}

/// A workload as enforcement sees it.
#[derive(Debug, Default)]
pub struct Standing {
    /// The view's entry, if it is admitted.
    pub spec: Option<WorkloadSpec>,
    /// The reason in the view for which it is refused.
    pub refusal: Option<String>,
    /// The identity under which this node vouches for it.
    pub vouched: Option<IdentityId>,
    /// `true` if its identity is quarantined.
    pub is_identity_quarantined: bool,
}

impl RunningEndpoint {
    /// An endpoint without workloads, with the configuration that it has.
    pub fn new(
        served: Arc<ServedEndpoint>,
        public_key: PublicKey,
        port: u16,
        config: EndpointConfig,
    ) -> Self {
        Self { served, public_key, port, config, workloads: HashMap::new() }
    }
}

impl Enforcement {
    /// Starts from the view on disk, and with the thread that keeps it there.
    ///
    /// # Errors
    /// Fails if the kernel gives no thread.
    pub(crate) fn start(
        node: NodeName,
        view: ViewReplica,
        store: ViewStore,
        troubles: Troubles,
    ) -> std::io::Result<Arc<Self>> {
        let mut own_addresses = OwnAddresses::default();
        for (key, resource) in &view.resources {
            own_addresses.note(&node, key, Some(resource));
        }
        let enforcement = Arc::new(Self {
            node,
            state: Mutex::new(State {
                view,
                is_current: false,
                endpoints: BTreeMap::new(),
                own_addresses,
            }),
            view_persister: ViewPersister::new(troubles),
            changed: Notify::new(),
        });
        let own = Arc::downgrade(&enforcement);
        let read_view = move |before: &mut dyn FnMut()| {
            let enforcement = own.upgrade()?;
            let state = enforcement.state.lock();
            before();
            Some(state.view.view().clone())
        };
        enforcement.view_persister.start(store, Box::new(read_view))?;
        Ok(enforcement)
    }

    /// Applies an update: when this returns, it is in force for the next packet; it is on disk when
    /// [`Self::subscribe_persisted`] says so.
    pub fn apply(&self, revision: Revision, changes: &[Change]) -> Applied {
        let mut state = self.state.lock();
        let State { view, endpoints, own_addresses, is_current } = &mut *state;
        let changes = view.apply(revision, changes);
        *is_current = true;
        let mut by_network: BTreeMap<&NetworkName, Vec<&Change>> = BTreeMap::new();
        for change in &changes {
            by_network.entry(change.network()).or_default().push(change);
        }
        for (network, changes) in &by_network {
            let changes = changes.iter().copied();
            if let Some(RunningEndpoint { served, config, .. }) = endpoints.get_mut(*network) {
                // Before the rules: what they deny first counts, too.
                served.endpoint.watch_denials(view.triggers(network).next().is_some());
                let config_changes = config.changes(view.view(), changes.clone());
                served.apply(revision, config_changes, changes);
                served.apply_flow_changes();
            }
        }
        let mut decisions = Vec::new();
        for change in &changes {
            match change {
                Change::Put(key, resource) => {
                    decisions.extend(note_decision(endpoints, key, resource));
                    own_addresses.note(&self.node, key, Some(resource));
                }
                Change::Drop(key) => own_addresses.note(&self.node, key, None),
                // The replica has made drops of it.
                Change::Forget(..) => {}
            }
        }
        let networks: BTreeSet<NetworkName> = by_network.into_keys().cloned().collect();
        let gone = networks.iter().filter(|network| view.network(network).is_none());
        let stopped = gone.filter_map(|network| endpoints.remove_entry(network)).collect();
        let lacks_endpoint = networks
            .iter()
            .any(|network| view.network(network).is_some() && !endpoints.contains_key(network));
        let number = self.view_persister.persist(revision, changes);
        drop(state);
        self.notify_changed();
        Applied { number, networks, decisions, stopped, lacks_endpoint }
    }

    /// Closes everything, for ever: this node is no member of the mesh any more. Returns the
    /// endpoints, which the caller stops.
    pub fn close(&self) -> Vec<(NetworkName, RunningEndpoint)> {
        let mut state = self.state.lock();
        for (network, running) in &state.endpoints {
            let resources = state.view.network_changes(network);
            let removals = resources.iter().filter_map(|change| match change {
                Change::Put(key, _) => endpoint_config::removal(key),
                Change::Drop(_) | Change::Forget(..) => None,
            });
            running.served.endpoint.apply(clock::now(), removals);
        }
        state.view = ViewReplica::default();
        std::mem::take(&mut state.endpoints).into_iter().collect()
    }

    /// Starts an endpoint of a network that the view has, if none runs. `make` is given the view;
    /// nothing changes in it before the endpoint is there.
    ///
    /// # Errors
    /// The errors of `make`.
    pub fn start_endpoint(
        &self,
        network: &NetworkName,
        make: impl FnOnce(&ViewReplica) -> anyhow::Result<RunningEndpoint>,
    ) -> anyhow::Result<Option<Arc<ServedEndpoint>>> {
        let served = {
            let mut state = self.state.lock();
            if state.view.network(network).is_none() || state.endpoints.contains_key(network) {
                return Ok(None);
            }
            let running = make(&state.view)?;
            let served = running.served.clone();
            state.endpoints.insert(network.clone(), running);
            served
        };
        self.notify_changed();
        Ok(Some(served))
    }

    /// Notes that an endpoint has another key.
    pub fn set_public_key(&self, network: &NetworkName, public_key: PublicKey) {
        if let Some(running) = self.state.lock().endpoints.get_mut(network) {
            running.public_key = public_key;
        }
    }

    /// Adds a workload to an endpoint by `add`, if it is still the one that serves the network.
    pub fn add_workload(
        &self,
        network: &NetworkName,
        id: &WorkloadId,
        served: &Arc<ServedEndpoint>,
        add: impl FnOnce() -> WorkloadIndex,
    ) -> Option<WorkloadIndex> {
        let mut state = self.state.lock();
        let running = state.endpoints.get_mut(network)?;
        if !Arc::ptr_eq(&running.served, served) {
            return None;
        }
        let index = add();
        running.workloads.insert(id.clone(), Local { index, vouched: None });
        Some(index)
    }

    /// Forgets a workload of an endpoint, before it is taken out.
    pub fn forget_workload(&self, network: &NetworkName, id: &WorkloadId) {
        if let Some(running) = self.state.lock().endpoints.get_mut(network) {
            running.workloads.remove(id);
        }
    }

    /// Vouches for a workload under the identity that `decide` gives for the view as it is, or not
    /// at all. The coordinator's decision goes before.
    pub fn vouch(
        &self,
        network: &NetworkName,
        id: &WorkloadId,
        decide: impl FnOnce(&ViewReplica) -> Option<IdentityId>,
    ) {
        let mut state = self.state.lock();
        let State { view, endpoints, .. } = &mut *state;
        let is_decided =
            view.workload(network, id).is_some() || view.refusal(network, id).is_some();
        let Some(running) = endpoints.get_mut(network) else { return };
        let identity = if is_decided { None } else { decide(view) };
        set_vouched(running, id, identity);
    }

    /// Sets the findings of the health checks of a workload of this node. For services without one,
    /// the view's word holds.
    pub(crate) fn set_findings(&self, network: &NetworkName, id: &WorkloadId, all: &Findings) {
        let mut state = self.state.lock();
        let State { view, endpoints, .. } = &mut *state;
        if let Some(running) = endpoints.get_mut(network) {
            let change = running.config.set_findings(view.view(), id, all);
            running.served.endpoint.apply(clock::now(), change);
        }
    }

    /// Returns how a workload stands.
    pub fn standing(&self, network: &NetworkName, id: &WorkloadId) -> Standing {
        let state = self.state.lock();
        let spec = state.view.workload(network, id).cloned();
        let local = state.endpoints.get(network).and_then(|running| running.workloads.get(id));
        let vouched = local.and_then(|local| local.vouched);
        let identity = spec.as_ref().map(|spec| spec.identity).or(vouched);
        let identity = identity.and_then(|identity| state.view.identity(network, identity));
        Standing {
            is_identity_quarantined: identity.is_some_and(|own| own.quarantined),
            refusal: state.view.refusal(network, id).map(ToOwned::to_owned),
            spec,
            vouched,
        }
    }

    /// Returns the coordinator's decision on a workload, if there is one.
    pub fn decision(&self, network: &NetworkName, id: &WorkloadId) -> Option<Decision> {
        let state = self.state.lock();
        if let Some(spec) = state.view.workload(network, id) {
            return Some(Decision::Admitted(spec.identity));
        }
        state.view.refusal(network, id).map(|_| Decision::Refused)
    }

    /// Reads the view; `read` is to be short.
    pub fn view<T>(&self, read: impl FnOnce(&ViewReplica) -> T) -> T {
        read(&self.state.lock().view)
    }

    /// Returns the addresses that the view gives to workloads of this node in a network. Peers may
    /// know those of workloads that are gone under their old identities.
    pub fn own_addresses(&self, network: &NetworkName) -> HashSet<IpAddr> {
        self.state.lock().own_addresses.of(network)
    }

    /// Returns the endpoint of a network, if it runs.
    pub fn endpoint(&self, network: &NetworkName) -> Option<Arc<ServedEndpoint>> {
        self.state.lock().endpoints.get(network).map(|running| running.served.clone())
    }

    /// Returns the endpoint of a network with its key and port, if it runs.
    pub fn running(&self, network: &NetworkName) -> Option<(Arc<ServedEndpoint>, PublicKey, u16)> {
        let state = self.state.lock();
        let running = state.endpoints.get(network)?;
        Some((running.served.clone(), running.public_key, running.port))
    }

    /// Returns the endpoints that run.
    pub fn endpoints(&self) -> Vec<(NetworkName, Arc<ServedEndpoint>)> {
        let state = self.state.lock();
        let all = state.endpoints.iter();
        all.map(|(network, running)| (network.clone(), running.served.clone())).collect()
    }

    /// Returns the networks whose endpoints do not run.
    pub fn lacking_endpoints(&self) -> Vec<NetworkName> {
        let state = self.state.lock();
        let networks = state.view.networks().map(|(name, _)| name);
        networks.filter(|name| !state.endpoints.contains_key(*name)).cloned().collect()
    }

    /// Returns a network that this node serves.
    ///
    /// # Errors
    /// [`Refusal::Missing`], or [`Refusal::Early`] before the coordinator has sent the view.
    pub fn network(&self, network: &NetworkName) -> Result<NetworkSpec, Refusal> {
        let state = self.state.lock();
        if let Some(spec) = state.view.network(network) {
            return Ok(spec.clone());
        }
        let known: Vec<_> = state.view.networks().map(|(name, _)| name.to_string()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(match state.is_current {
            true => Refusal::Missing(format!(
                "this node does not serve network `{network}`: it is not there, or the node's join \
                token did not name it (it serves: {known})"
            )),
            false => Refusal::Early(format!(
                "this node does not know network `{network}` yet: the coordinator has not been \
                heard since the daemon's start (it serves: {known})"
            )),
        })
    }

    /// Returns a network that this node serves. Right after the daemon's start, the coordinator's
    /// word is waited for.
    ///
    /// # Errors
    /// [`Refusal::Missing`] or [`Refusal::Early`].
    pub async fn wait_network(&self, name: &NetworkName) -> Result<NetworkSpec, Refusal> {
        self.wait_current(|view| view.network(name).is_some()).await;
        self.network(name)
    }

    /// Returns all networks that this node serves. Right after the daemon's start, the
    /// coordinator's word is waited for if none is known.
    pub async fn wait_networks(&self) -> Vec<(NetworkName, NetworkSpec)> {
        self.wait_current(|view| view.networks().next().is_some()).await;
        self.view(|view| view.networks().map(|(name, spec)| (name.clone(), spec.clone())).collect())
    }

    /// Wakes whoever waits for a change.
    pub fn notify_changed(&self) {
        self.changed.notify_waiters();
    }

    /// Returns the future that ends at the next change; it counts from its first poll or
    /// `enable`.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Returns a receiver of the number of the last update on disk.
    pub fn subscribe_persisted(&self) -> watch::Receiver<UpdateNumber> {
        self.view_persister.subscribe()
    }

    /// Waits for a moment until a network's endpoint runs, if this node is to serve it.
    pub async fn wait_served(&self, network: &NetworkName) {
        self.wait_current(|view| view.network(network).is_some()).await;
        self.wait_for(|state| {
            state.view.network(network).is_none() || state.endpoints.contains_key(network)
        })
        .await;
    }

    /// Waits for a moment until the coordinator has sent everything, or what is known is enough.
    pub async fn wait_current(&self, is_enough: impl Fn(&ViewReplica) -> bool) {
        self.wait_for(|state| state.is_current || is_enough(&state.view)).await;
    }

    async fn wait_for(&self, is_true: impl Fn(&State) -> bool) {
        let until = tokio::time::Instant::now() + SERVED_WITHIN;
        loop {
            let changed = self.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is_true(&self.state.lock()) {
                return;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }
}

fn set_vouched(running: &mut RunningEndpoint, id: &WorkloadId, identity: Option<IdentityId>) {
    let Some(local) = running.workloads.get_mut(id).filter(|local| local.vouched != identity)
    else {
        return;
    };
    local.vouched = identity;
    running.served.endpoint.set_vouched_identity(local.index, identity);
}

/// Ends this node's vouching for a workload on which the coordinator has decided.
fn note_decision(
    endpoints: &mut BTreeMap<NetworkName, RunningEndpoint>,
    key: &ResourceKey,
    resource: &Resource,
) -> Option<(WorkloadId, Decision)> {
    let (network, id, decision) = match (key, resource) {
        (ResourceKey::Workload(network, id), Resource::Workload(spec)) => {
            (network, id, Decision::Admitted(spec.identity))
        }
        (ResourceKey::Refused(network, id), _) => (network, id, Decision::Refused),
        _ => return None,
    };
    let running = endpoints.get_mut(network)?;
    if !running.workloads.contains_key(id) {
        return None;
    }
    set_vouched(running, id, None);
    Some((id.clone(), decision))
}
