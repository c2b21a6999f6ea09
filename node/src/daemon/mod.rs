//! The node: its endpoints, its workloads and its view, and what changes them.

mod attempts;
mod shown;
mod watch;

use crate::{
    addresses::Allocator,
    attachment::{self, Attachment, Owner},
    config::Config,
    dataplane::{self, DataPlane, Service},
    folder::{Folder, Membership},
    kept_view::KeptView,
    offloads::Offloads,
};
use anyhow::Result;
use attempts::Attempts;
use meshward_datapath::{Endpoint, LocalWorkload, RESUME_WINDOW, Slot};
use meshward_model::{
    AcceptFrom, Change, HeldView, IdentityId, Item, ItemKey, Labels, NetworkName, PublicKey, Revision,
    WorkloadId,
    control::{EndpointReport, Fired, FromNode, WorkloadReport},
    local::{Attach, LocalWorkload as Shown, State as WorkloadState},
};
use meshward_netns::Netns;
use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Mutex, Notify, mpsc};
use tracing::{error, info, warn};

/// For how long an attach waits for the coordinator's word.
const ADMISSION: Duration = Duration::from_secs(5);
/// A coordinator that has not answered for this long counts as away, though its session has not ended yet.
const SILENCE: Duration = Duration::from_millis(1500);
/// How often the workloads' namespaces and owners are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Why the node does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// What was asked makes no sense as it stands.
    #[error("{0}")]
    Invalid(String),
    /// What was named is not there.
    #[error("{0}")]
    Missing(String),
    /// Our own failure; nothing was changed.
    #[error("{0}")]
    Failed(String),
}

/// The node.
pub struct Node {
    pub membership: Membership,
    pub config: Config,
    pub folder: Folder,
    data_plane: DataPlane,
    state: Mutex<State>,
    kept: Arc<Mutex<KeptView>>,
    /// Told when a workload's state may have changed.
    admission: Notify,
}

#[derive(Default)]
struct State {
    view: HeldView,
    endpoints: BTreeMap<NetworkName, Running>,
    workloads: BTreeMap<WorkloadId, Workload>,
    /// To the coordinator, while there is a session.
    session: Option<mpsc::UnboundedSender<FromNode>>,
    attempts: Attempts,
    /// What triggers have caught while there was no session.
    unsaid: Vec<Fired>,
}

struct Running {
    service: Arc<Service>,
    public_key: PublicKey,
    port: u16,
    allocator: Allocator,
}

struct Workload {
    attachment: Attachment,
    slot: Slot,
    vouched: Option<IdentityId>,
    refused: Option<String>,
}

impl Node {
    /// Takes up what is on disk: the last view, its endpoints, and the workloads that still live. No coordinator is
    /// needed for that.
    ///
    /// # Errors
    /// If the folder cannot be read, or a port that peers know is taken.
    pub async fn restore(membership: Membership, config: Config, folder: Folder) -> Result<Arc<Self>> {
        let (view, kept) = KeptView::open(&folder)?;
        let attachments: Vec<Attachment> = folder.workloads()?;
        let mut state = State { view: view.into(), ..State::default() };
        let wanted = Offloads::without(&config.disable_offloads);
        let data_plane = DataPlane::start(config.workers, wanted)?;
        let node = Self {
            membership,
            config,
            folder,
            data_plane,
            kept: Arc::new(Mutex::new(kept)),
            state: Mutex::default(),
            admission: Notify::new(),
        };
        let networks: Vec<NetworkName> = state.view.networks().map(|(name, _)| name.clone()).collect();
        for network in networks {
            node.start_endpoint(&mut state, &network, RESUME_WINDOW).await?;
        }
        for attachment in attachments {
            node.take_up(&mut state, attachment).await;
        }
        node.keep_workloads(&state)?;
        *node.state.lock().await = state;
        Ok(Arc::new(node))
    }

    async fn take_up(&self, state: &mut State, attachment: Attachment) {
        let (id, network) = (attachment.report.id.clone(), attachment.report.network.clone());
        if !attachment.lives() {
            info!(workload = %id, %network, "its namespace or owner is gone");
            let _ = tokio::task::spawn_blocking(move || attachment::close_left_behind(&attachment)).await;
            return;
        }
        match self.open(state, attachment).await {
            Ok(_) => info!(workload = %id, %network, "taken up again"),
            Err(refusal) => error!(workload = %id, %network, "cannot be taken up again: {refusal}"),
        }
    }

    async fn start_endpoint(&self, state: &mut State, network: &NetworkName, resume: Duration) -> Result<()> {
        let secret = self.folder.endpoint_key(network)?;
        let kept = self.folder.endpoint_port(network)?;
        let sockets = dataplane::bind(kept, self.config.first_port, self.data_plane.workers())?;
        let port = sockets[0].local_addr()?.port();
        self.folder.keep_endpoint_port(network, port)?;
        let endpoint = Endpoint::new(self.membership.name.clone(), secret, Instant::now(), resume);
        let public_key = endpoint.public_key();
        endpoint.watch_denials(state.view.triggers(network).next().is_some());
        endpoint.apply(Instant::now(), &state.view.network_changes(network));
        let service = self.data_plane.serve(network, endpoint, sockets)?;
        info!(%network, %port, "endpoint started");
        let running = Running { service, public_key, port, allocator: Allocator::default() };
        state.endpoints.insert(network.clone(), running);
        Ok(())
    }

    /// Attaches a namespace, and waits for a moment for the workload to be let in.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn attach(&self, wanted: Attach) -> Result<Shown, Refusal> {
        let id = {
            let mut state = self.state.lock().await;
            let attachment = self.prepare(&mut state, wanted)?;
            let report = attachment.report.clone();
            self.open(&mut state, attachment).await?;
            if let Err(failure) = self.keep_workloads(&state) {
                self.drop_workload(&mut state, &report.id).await;
                return Err(Refusal::Failed(format!("nothing was attached: {failure:#}")));
            }
            info!(workload = %report.id, name = %report.name, network = %report.network, labels = %report.labels,
                "attached");
            match &state.session {
                Some(session) => {
                    let _ = session.send(FromNode::Started(report.clone()));
                }
                None => self.vouch_for_unadmitted(&mut state),
            }
            report.id
        };
        let shown = self.wait_admitted(&id).await?;
        if let WorkloadState::Refused(reason) = &shown.state {
            let reason = reason.clone();
            self.detach(&id).await?;
            return Err(Refusal::Invalid(format!("the coordinator refused the workload: {reason}")));
        }
        Ok(shown)
    }

    fn prepare(&self, state: &mut State, wanted: Attach) -> Result<Attachment, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::Invalid(error.to_string());
        wanted.labels.check_unreserved().map_err(|error| invalid(&error))?;
        AcceptFrom::check_count(&wanted.accepts).map_err(|error| invalid(&error))?;
        let network = &wanted.network;
        let Some(spec) = state.view.network(network).cloned() else {
            let known: Vec<_> = state.view.networks().map(|(name, _)| name.to_string()).collect();
            return Err(Refusal::Missing(format!(
                "this node does not serve network `{network}`: it is not there, or the node's join token did not name it, or the coordinator has not said so yet (it serves: {})",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            )));
        };
        let owner = match wanted.owner {
            None => None,
            Some(pid) => match Owner::of(pid) {
                Some(owner) => Some(owner),
                None => {
                    return Err(Refusal::Invalid(format!("there is no process {pid} to own the workload")));
                }
            },
        };
        let (netns, netns_id) = attachment::netns_of(&wanted.netns).map_err(|error| invalid(&error))?;
        if state
            .workloads
            .values()
            .any(|other| other.attachment.netns_id == netns_id && other.attachment.report.network == *network)
        {
            return Err(Refusal::Invalid(format!(
                "{} is attached to {network} already",
                wanted.netns.display()
            )));
        }
        let interface = attachment::free_interface(&netns).map_err(|error| invalid(&error))?;
        let used = used_addresses(state, network, &self.membership.name);
        let running = state.endpoints.get_mut(network);
        let running =
            running.ok_or_else(|| Refusal::Failed(format!("the endpoint of {network} does not run")))?;
        let addresses =
            running.allocator.allocate(network, &spec.blocks, &used).map_err(|error| invalid(&error))?;
        let id = attachment::new_id();
        let name = match wanted.name {
            Some(name) => name,
            // An id is a name of the same form.
            None => id.as_str().parse().map_err(|error| invalid(&error))?,
        };
        let report = WorkloadReport {
            id,
            network: network.clone(),
            name,
            labels: wanted.labels,
            addresses,
            accepts: wanted.accepts,
        };
        Ok(Attachment { report, netns: wanted.netns, netns_id, owner, interface, held_until: None })
    }

    async fn open(&self, state: &mut State, attachment: Attachment) -> Result<(), Refusal> {
        let network = attachment.report.network.clone();
        let gone = || Refusal::Failed(format!("the endpoint of {network} does not run"));
        let spec = state.view.network(&network).cloned().ok_or_else(gone)?;
        let service = state.endpoints.get(&network).ok_or_else(gone)?.service.clone();
        let opening = attachment.clone();
        let wanted = Offloads::without(&self.config.disable_offloads);
        let opened = tokio::task::spawn_blocking(move || opening.open(&spec, wanted)).await;
        let tun = opened
            .map_err(|panic| Refusal::Failed(panic.to_string()))?
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let report = &attachment.report;
        let local =
            LocalWorkload { id: report.id.clone(), addresses: report.addresses.clone(), vouched: None };
        let slot = self.data_plane.attach(&service, local, tun);
        if attachment.held_until.is_some() {
            service.endpoint.hold(slot, true);
        }
        let id = report.id.clone();
        state.workloads.insert(id, Workload { attachment, slot, vouched: None, refused: None });
        Ok(())
    }

    async fn wait_admitted(&self, id: &WorkloadId) -> Result<Shown, Refusal> {
        let begun = tokio::time::Instant::now();
        loop {
            let changed = self.admission.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock().await;
                if begun.elapsed() >= SILENCE {
                    self.vouch_for_unadmitted(&mut state);
                }
                let workload = state.workloads.get(id);
                let workload =
                    workload.ok_or_else(|| Refusal::Missing(format!("workload {id} was detached")))?;
                let shown = show(&state, workload);
                let spoken = shown.state != WorkloadState::Waiting || state.session.is_none();
                if spoken || begun.elapsed() >= ADMISSION {
                    return Ok(shown);
                }
            }
            let patience = if begun.elapsed() < SILENCE { SILENCE } else { ADMISSION };
            let _ = tokio::time::timeout_at(begun + patience, changed).await;
        }
    }

    /// Detaches a workload and deletes its interface.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if there is none.
    pub async fn detach(&self, id: &WorkloadId) -> Result<(), Refusal> {
        let mut state = self.state.lock().await;
        if !self.drop_workload(&mut state, id).await {
            let text = format!("there is no workload `{id}` on this node; `meshctl attached` shows them");
            return Err(Refusal::Missing(text));
        }
        if let Some(session) = &state.session {
            let _ = session.send(FromNode::Stopped(id.clone()));
        }
        info!(workload = %id, "detached");
        self.keep_workloads(&state).map_err(|error| Refusal::Failed(format!("{error:#}")))
    }

    async fn drop_workload(&self, state: &mut State, id: &WorkloadId) -> bool {
        let Some(workload) = state.workloads.remove(id) else { return false };
        let running = state.endpoints.get(&workload.attachment.report.network);
        if let Some(running) = running
            && let Some(tun) = self.data_plane.detach(&running.service, workload.slot)
        {
            attachment::close(tun);
        }
        self.admission.notify_waiters();
        true
    }

    fn keep_workloads(&self, state: &State) -> Result<()> {
        let attachments: Vec<&Attachment> = state.workloads.values().map(|w| &w.attachment).collect();
        self.folder.keep_workloads(&attachments)
    }

    /// Detaches workloads whose namespace or owner is gone, for ever.
    pub async fn look_after_workloads(&self) {
        loop {
            tokio::time::sleep(LOOK_AFTER).await;
            let all: Vec<Attachment> =
                self.state.lock().await.workloads.values().map(|w| w.attachment.clone()).collect();
            let checked = tokio::task::spawn_blocking(move || {
                all.into_iter().filter(|attachment| !attachment.lives()).collect::<Vec<_>>()
            });
            for gone in checked.await.unwrap_or_default() {
                info!(workload = %gone.report.id, "its namespace or owner is gone");
                if let Err(refusal) = self.detach(&gone.report.id).await {
                    warn!(workload = %gone.report.id, "cannot detach: {refusal}");
                }
            }
        }
    }

    /// Begins a session: what to say first, and from now on, where to say what changes.
    pub async fn begin_session(&self, to_coordinator: mpsc::UnboundedSender<FromNode>) -> FromNode {
        let mut state = self.state.lock().await;
        for fired in std::mem::take(&mut state.unsaid) {
            let _ = to_coordinator.send(FromNode::Fired(fired));
        }
        state.session = Some(to_coordinator);
        let networks: Vec<NetworkName> = state.endpoints.keys().cloned().collect();
        let endpoints = networks.iter().filter_map(|network| self.describe_endpoint(&state, network));
        FromNode::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: state.view.revision,
            digest: state.view.digest(),
            endpoints: endpoints.collect(),
            workloads: state.workloads.values().map(|w| w.attachment.report.clone()).collect(),
        }
    }

    /// Ends a session: from now on the node vouches for what starts.
    pub async fn end_session(&self) {
        let mut state = self.state.lock().await;
        state.session = None;
        self.vouch_for_unadmitted(&mut state);
        drop(state);
        self.admission.notify_waiters();
    }

    fn describe_endpoint(&self, state: &State, network: &NetworkName) -> Option<EndpointReport> {
        let running = state.endpoints.get(network)?;
        let at = |address: &IpAddr| SocketAddr::new(*address, running.port);
        let interfaces =
            Netns::current().and_then(|netns| netns.links(async |links| links.addresses().await));
        Some(EndpointReport {
            network: network.clone(),
            public_key: running.public_key,
            port: running.port,
            advertised: self.config.advertise.iter().map(at).collect(),
            interfaces: interfaces.unwrap_or_default().iter().map(at).collect(),
        })
    }

    /// What the node's view holds, item by item.
    pub async fn shadow(&self) -> FromNode {
        FromNode::Shadow(self.state.lock().await.view.shadow())
    }

    /// Takes an update: when this returns, it is enforced and on disk.
    ///
    /// # Errors
    /// If an endpoint cannot be started or the view not be kept. What is revoked is enforced all the same.
    pub async fn update(&self, revision: Revision, changes: &[Change]) -> Result<()> {
        let mut state = self.state.lock().await;
        let changes = state.view.apply(revision, changes);
        let mut by_network: BTreeMap<NetworkName, Vec<Change>> = BTreeMap::new();
        for change in &changes {
            by_network.entry(change.network().clone()).or_default().push(change.clone());
        }
        for (network, changes) in by_network {
            let member = state.view.network(&network).is_some();
            if let Some(running) = state.endpoints.get(&network) {
                // Before the rules: what they deny first counts, too.
                running.service.endpoint.watch_denials(state.view.triggers(&network).next().is_some());
                running.service.endpoint.apply(Instant::now(), &changes);
                if !member {
                    self.stop_endpoint(&mut state, &network).await;
                }
            }
        }
        let started = self.start_missing_endpoints(&mut state).await;
        self.stop_vouching_for_admitted(&mut state);
        // Taken while the state is held: what is kept follows in the order of what was applied.
        let mut kept = self.kept.clone().lock_owned().await;
        let whole = kept.wants_whole().then(|| state.view.view().clone());
        drop(state);
        self.admission.notify_waiters();
        tokio::task::spawn_blocking(move || match whole {
            Some(view) => kept.keep(&view),
            None => kept.append(revision, &changes),
        })
        .await??;
        started
    }

    /// Starts the endpoints of new networks, and those that could not be started before.
    async fn start_missing_endpoints(&self, state: &mut State) -> Result<()> {
        let networks = state.view.networks().map(|(name, _)| name);
        let missing: Vec<NetworkName> =
            networks.filter(|name| !state.endpoints.contains_key(*name)).cloned().collect();
        let mut started = Ok(());
        for network in missing {
            if let Err(error) = self.start_endpoint(state, &network, Duration::ZERO).await {
                started = Err(error);
                continue;
            }
            let report = self.describe_endpoint(state, &network);
            if let (Some(session), Some(report)) = (&state.session, report) {
                let _ = session.send(FromNode::Endpoint(report));
            }
        }
        started
    }

    async fn stop_endpoint(&self, state: &mut State, network: &NetworkName) {
        let own = state.workloads.iter().filter(|(_, w)| w.attachment.report.network == *network);
        let own: Vec<WorkloadId> = own.map(|(id, _)| id.clone()).collect();
        for id in own {
            self.drop_workload(state, &id).await;
        }
        if let Some(running) = state.endpoints.remove(network) {
            self.data_plane.stop(&running.service);
        }
        self.folder.forget_endpoint(network);
        info!(%network, "endpoint stopped: the node does not serve the network any more");
    }

    /// Notes that the coordinator refuses a workload: it stays closed.
    pub async fn refuse(&self, id: &WorkloadId, reason: String) {
        warn!(workload = %id, "refused: {reason}");
        let mut state = self.state.lock().await;
        let State { workloads, endpoints, .. } = &mut *state;
        if let Some(workload) = workloads.get_mut(id) {
            workload.refused = Some(reason);
            set_vouched(endpoints, workload, None);
        }
        drop(state);
        self.admission.notify_waiters();
    }

    /// Vouches for the workloads whose label set this node knows and that the coordinator has not spoken of.
    fn vouch_for_unadmitted(&self, state: &mut State) {
        let State { view, endpoints, workloads, .. } = state;
        for workload in workloads.values_mut() {
            let report = &workload.attachment.report;
            if workload.refused.is_some() || view.workload(&report.network, &report.id).is_some() {
                continue;
            }
            let labels = self.verified(report.labels.clone());
            let identity =
                labels.and_then(|labels| view.identity_of(&report.network, &labels, &report.accepts));
            set_vouched(endpoints, workload, identity);
        }
    }

    fn stop_vouching_for_admitted(&self, state: &mut State) {
        let State { view, endpoints, workloads, .. } = state;
        for workload in workloads.values_mut() {
            let report = &workload.attachment.report;
            if view.workload(&report.network, &report.id).is_some() {
                workload.refused = None;
                set_vouched(endpoints, workload, None);
            }
        }
    }

    /// The labels as the coordinator would have them.
    fn verified(&self, labels: Labels) -> Option<Labels> {
        match &self.membership.site {
            Some(site) => labels.with_fact("site", site).ok(),
            None => Some(labels),
        }
    }
}

/// Addresses that cannot be given out: those of the workloads, and those that the coordinator still holds for workloads
/// that are gone. Its peers may know those under another identity.
fn used_addresses(state: &State, network: &NetworkName, own: &meshward_model::NodeName) -> HashSet<IpAddr> {
    let attached = state.workloads.values().map(|workload| &workload.attachment.report);
    let attached = attached.filter(|report| report.network == *network).flat_map(|report| &report.addresses);
    let held = state.view.items.iter().filter_map(|(key, item)| match (key, item) {
        (ItemKey::Workload(name, _), Item::Workload(spec)) if name == network && spec.node == *own => {
            Some(spec)
        }
        _ => None,
    });
    attached.chain(held.flat_map(|spec| &spec.addresses)).copied().collect()
}

/// Seconds since the epoch.
fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn set_vouched(
    endpoints: &BTreeMap<NetworkName, Running>,
    workload: &mut Workload,
    identity: Option<IdentityId>,
) {
    if workload.vouched == identity {
        return;
    }
    workload.vouched = identity;
    if let Some(running) = endpoints.get(&workload.attachment.report.network) {
        running.service.endpoint.vouch(workload.slot, identity);
    }
}

fn show(state: &State, workload: &Workload) -> Shown {
    let Attachment { report, netns, interface, .. } = &workload.attachment;
    let spec = state.view.workload(&report.network, &report.id);
    let identity = spec.map(|spec| spec.identity).or(workload.vouched);
    let key = identity.map(|identity| ItemKey::Identity(report.network.clone(), identity));
    let held = match key.and_then(|key| state.view.items.get(&key)) {
        Some(Item::Identity(identity)) => identity.quarantined,
        _ => false,
    };
    let shown = match (&workload.refused, spec) {
        (Some(reason), _) => WorkloadState::Refused(reason.clone()),
        _ if workload.attachment.held_until.is_some() => WorkloadState::Quarantined,
        (None, Some(spec)) if spec.quarantined || held => WorkloadState::Quarantined,
        (None, Some(_)) => WorkloadState::Open,
        (None, None) if held => WorkloadState::Quarantined,
        (None, None) if workload.vouched.is_some() => WorkloadState::Vouched,
        (None, None) => WorkloadState::Waiting,
    };
    Shown {
        id: report.id.clone(),
        name: report.name.clone(),
        network: report.network.clone(),
        labels: report.labels.clone(),
        addresses: report.addresses.clone(),
        interface: interface.clone(),
        netns: netns.clone(),
        state: shown,
    }
}
