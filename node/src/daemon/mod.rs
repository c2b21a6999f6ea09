//! The node: its endpoints, its workloads and its view, and what changes them.

mod attempts;
mod cni;
mod containers;
mod devices;
mod kept_flows;
mod keys;
mod paths;
mod ping;
mod routes;
mod shown;
mod stamps;
mod triggers;
mod workloads;

pub use containers::{Container, Found, Place};
pub use paths::Reach;

use crate::{
    addresses::Allocator,
    attachment::{self, Attachment},
    clock,
    config::Config,
    folder::Folder,
    kept_view::KeptView,
    offloads::Offloads,
    relayed,
    view_writer::{Ticket, ViewWriter},
    workers::{self, ServedEndpoint, Workers},
};
use anyhow::Result;
use attempts::Attempts;
use ipnet::IpNet;
use meshward_api_types::{
    Measured,
    local::{LocalWorkload as Shown, State as WorkloadState},
};
use meshward_control_proto::{
    Change, EndpointReport, Fired, FromNode, InstanceId, Resource, ResourceKey, ViewReplica,
    WorkloadReport, relay::RelaySpec,
};
use meshward_datapath::{Endpoint, RESUME_WINDOW, WorkloadIndex};
use meshward_runtime::{member::Membership, random, tls::clock, write_behind::RETRY};
use meshward_types::{
    AcceptFrom, IdentityId, Labels, NetworkName, PublicKey, Revision, WorkloadId,
    measurement::Measurement, relay::RelayNumber,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU8},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tracing::{error, info, warn};

/// How many kinds of workloads that were let in are remembered for when the coordinator is away.
const REMEMBERED: usize = 4096;

/// For how long an update waits for the endpoints of new networks; then they start while others are
/// taken.
const STARTING: Duration = Duration::from_millis(500);

/// Why a workload is closed that is something else than when it was let in.
const UNJUDGED: &str = "something else is in its network namespace than when it was let in, and the coordinator is away, which would have to judge that";

/// The file with the relays.
const RELAYS: &str = "relays.json";

/// Why the node does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request has not the form that it has to have.
    #[error("{0}")]
    Malformed(String),
    /// What was asked makes no sense as it stands.
    #[error("{0}")]
    Invalid(String),
    /// What was named is not there.
    #[error("{0}")]
    Missing(String),
    /// It is not what the caller takes it to be any more.
    #[error("{0}")]
    Changed(String),
    /// What was named is not known yet: the coordinator has not told this node everything since its
    /// start.
    #[error("{0}")]
    Early(String),
    /// Our own failure; nothing was changed.
    #[error("{0}")]
    Failed(String),
}

/// The node.
pub struct Node {
    pub membership: Membership,
    pub config: Config,
    pub folder: Folder,
    workers: Workers,
    state: Mutex<State>,
    pub view_writer: ViewWriter,
    /// Held while workloads are attached and endpoints started, one after the other: what that
    /// waits for, `state` is not held meanwhile.
    attaching: Mutex<()>,
    /// Told when a workload's state may have changed.
    admission: Notify,
    /// Told when there is a workload to be measured.
    pub to_measure: Notify,
    /// Told when relays may be needed.
    pub relay_wanted: Notify,
    /// Told when a relay was lost.
    pub relay_lost: Notify,
    /// The relays, apart from the coordinator.
    pub relays: watch::Sender<Arc<Vec<RelaySpec>>>,
    /// Those by which this node can be reached.
    pub homes: watch::Sender<Vec<RelayNumber>>,
    /// Held while routes of workloads are changed.
    routing: Arc<Mutex<()>>,
    /// Whether others reach this node directly, as far as is known.
    reach: AtomicU8,
    /// This start of the daemon.
    instance: InstanceId,
}

#[derive(Default)]
struct State {
    view: ViewReplica,
    endpoints: BTreeMap<NetworkName, Running>,
    workloads: BTreeMap<WorkloadId, Workload>,
    /// Workloads of before whose network the view does not know: they are taken up when it does.
    homeless: Vec<Attachment>,
    /// The addresses of the host's interfaces.
    interfaces: Vec<IpAddr>,
    /// Whether the coordinator has told everything since this daemon's start.
    told: bool,
    /// To the coordinator, while there is a session.
    session: Option<mpsc::UnboundedSender<FromNode>>,
    /// Whether the coordinator has taken the session: what it says first may be that another
    /// machine has it.
    is_connected: bool,
    attempts: Attempts,
    /// What triggers have caught while there was no session.
    unsaid: Vec<Fired>,
    /// Addresses that are given out for containers which are not there yet.
    reserved: HashSet<(NetworkName, IpAddr)>,
    /// Under which identity workloads like these were let in.
    let_in: HashMap<Kind, IdentityId>,
    /// Who is asked how this node is seen.
    stun: Vec<SocketAddr>,
    /// Where the coordinator is.
    coordinator: Option<IpAddr>,
}

/// What decides whether a workload is let in, apart from its node.
type Kind = (NetworkName, Labels, Vec<AcceptFrom>, Option<Arc<Measurement>>);

fn kind(report: &WorkloadReport) -> Kind {
    (
        report.network.clone(),
        report.labels.clone(),
        report.accepts.clone(),
        report.measurement.clone(),
    )
}

struct Running {
    served: Arc<ServedEndpoint>,
    public_key: PublicKey,
    port: u16,
    allocator: Allocator,
    /// How the endpoint is seen.
    reflexive: Vec<SocketAddr>,
    /// Where the router has mapped its port.
    mapped: Option<SocketAddr>,
    /// The prefixes behind gateways, to which the workloads have ways.
    routes: BTreeSet<IpNet>,
    /// The network's: what is for them does not leave this host but by the mesh.
    prefixes: Vec<IpNet>,
    /// What is on disk of the timestamps of its handshakes: all are below, in seconds since 1970.
    stamps_below: u64,
}

struct Workload {
    attachment: Attachment,
    index: WorkloadIndex,
    vouched: Option<IdentityId>,
    refused: Option<String>,
}

impl Node {
    /// Takes up what is on disk: the last view, its endpoints, and the workloads that still live.
    /// No coordinator is needed for that. What is damaged is set aside, and the rest starts.
    ///
    /// # Errors
    /// If the kernel gives no thread.
    pub async fn restore(
        membership: Membership,
        config: Config,
        folder: Folder,
        relay: relayed::Sender,
    ) -> Result<Arc<Self>> {
        let (view, kept) = KeptView::open(&folder);
        let attachments = folder.workloads();
        let relays: Vec<RelaySpec> = folder.take_up_json(RELAYS).unwrap_or_default();
        let interfaces =
            tokio::task::spawn_blocking(paths::own_addresses).await.unwrap_or_default();
        let state = State { view: view.into(), interfaces, ..State::default() };
        let wanted = Offloads::without(&config.disable_offloads);
        let workers = Workers::start(config.workers, wanted, relay)?;
        let node = Arc::new(Self {
            membership,
            config,
            workers,
            view_writer: ViewWriter::new(folder.troubles().clone()),
            folder,
            state: Mutex::new(state),
            attaching: Mutex::default(),
            admission: Notify::new(),
            to_measure: Notify::new(),
            relay_wanted: Notify::new(),
            relay_lost: Notify::new(),
            relays: watch::Sender::new(Arc::new(relays)),
            homes: watch::Sender::new(vec![RelayNumber::COORDINATOR]),
            routing: Arc::default(),
            reach: AtomicU8::new(0),
            instance: InstanceId(random()),
        });
        let own = Arc::downgrade(&node);
        let whole = move |before: &mut dyn FnMut()| {
            let node = own.upgrade()?;
            let state = node.state.blocking_lock();
            before();
            Some(state.view.view().clone())
        };
        node.view_writer.start(kept, Box::new(whole))?;
        node.start_missing_endpoints(RESUME_WINDOW).await;
        for attachment in attachments {
            node.take_up(attachment).await;
        }
        {
            let mut state = node.state.lock().await;
            node.stop_vouching_for_admitted(&mut state);
            node.take_up_flows(&state);
        }
        Ok(node)
    }

    async fn take_up(&self, attachment: Attachment) {
        let _turn = self.attaching.lock().await;
        let (id, network) = (attachment.report.id.clone(), attachment.report.network.clone());
        let (lives, attachment) = {
            let looked_at = attachment.clone();
            let lives = tokio::task::spawn_blocking(move || looked_at.outlived()).await;
            (lives.unwrap_or(false), attachment)
        };
        if !lives {
            info!(workload = %id, %network, "its namespace, interface or owner is gone");
            self.folder.forget_workload(&id);
            let _ = tokio::task::spawn_blocking(move || attachment::close_left_behind(&attachment))
                .await;
            return;
        }
        {
            let mut state = self.state.lock().await;
            if !state.endpoints.contains_key(&network) {
                warn!(workload = %id, %network, "its network is not known yet: it is closed until it is");
                state.homeless.push(attachment);
                return;
            }
        }
        let report = attachment.report.clone();
        match self.open(attachment).await {
            Ok(()) => {
                info!(workload = %id, %network, "taken up again");
                let mut state = self.state.lock().await;
                // A session that has begun already was not told of it.
                if state.session.is_some() {
                    self.announce(&mut state, &report);
                }
            }
            Err(refusal) => error!(workload = %id, %network, "cannot be taken up again: {refusal}"),
        }
    }

    /// Starts the endpoints of new networks, and those that could not be started before; then takes
    /// up the workloads that waited for them. `resume`: for how long connections of before are
    /// taken up.
    pub async fn start_missing_endpoints(&self, resume: Duration) {
        let missing: Vec<NetworkName> = {
            let state = self.state.lock().await;
            let networks = state.view.networks().map(|(name, _)| name);
            networks.filter(|name| !state.endpoints.contains_key(*name)).cloned().collect()
        };
        let mut failures = Vec::new();
        for network in missing {
            if let Err(error) = self.start_endpoint(&network, resume).await {
                failures.push(format!("the endpoint of {network} cannot start: {error:#}"));
            }
        }
        let why = (!failures.is_empty()).then(|| failures.join("; "));
        self.folder.troubles().note("endpoints", why);
        let waiting = {
            let mut state = self.state.lock().await;
            let State { homeless, endpoints, .. } = &mut *state;
            homeless
                .extract_if(.., |own| endpoints.contains_key(&own.report.network))
                .collect::<Vec<_>>()
        };
        for attachment in waiting {
            self.take_up(attachment).await;
        }
    }

    /// Tries again to start the endpoints that could not be started, for ever.
    pub async fn start_what_could_not(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            self.start_missing_endpoints(Duration::ZERO).await;
        }
    }

    async fn start_endpoint(&self, network: &NetworkName, resume: Duration) -> Result<()> {
        let _turn = self.attaching.lock().await;
        if self.state.lock().await.endpoints.contains_key(network) {
            return Ok(());
        }
        let (folder, first, workers) =
            (self.folder.clone(), self.config.first_port, self.workers.workers());
        let read = {
            let network = network.clone();
            move || {
                let (secret, before) =
                    (folder.endpoint_key(&network), folder.previous_endpoint_key(&network));
                let sockets = workers::bind(folder.endpoint_port(&network), first, workers)?;
                let port = sockets[0].local_addr()?.port();
                folder.keep_endpoint_port(&network, port);
                let floor = folder.stamp_limit(&network);
                let below = stamps::limit(floor, seconds_now());
                if let Err(error) = folder.keep_stamp_limit(&network, below) {
                    warn!(%network, "{error:#}");
                }
                anyhow::Ok((secret, before, sockets, port, floor, below))
            }
        };
        let prefixes = {
            let state = self.state.lock().await;
            state.view.network(network).map(|spec| spec.prefixes.clone()).unwrap_or_default()
        };
        {
            let prefixes = prefixes.clone();
            let _ = tokio::task::spawn_blocking(move || attachment::refuse_here(&prefixes)).await;
        }
        let (secret, before, sockets, port, floor, below) =
            tokio::task::spawn_blocking(read).await??;
        self.forget_previous_key_in_time(network);
        let mut state = self.state.lock().await;
        if state.view.network(network).is_none() || state.endpoints.contains_key(network) {
            return Ok(());
        }
        let name = self.membership.name.clone();
        let endpoint = match before {
            None => Endpoint::new(name, secret, clock::now(), resume),
            Some((before, left)) => {
                let endpoint = Endpoint::new(name, before, clock::now(), resume);
                endpoint.rotate_key(clock::now(), secret, left);
                endpoint
            }
        };
        endpoint.set_timestamp_floor(floor);
        endpoint.set_timestamp_limit(below);
        let public_key = endpoint.public_key();
        endpoint.watch_denials(state.view.triggers(network).next().is_some());
        endpoint.apply(clock::now(), &state.view.network_changes(network));
        let served = self.workers.serve(network, endpoint, sockets)?;
        info!(%network, %port, "endpoint started");
        served.endpoint.set_stun_servers(&state.stun);
        let running = Running {
            served,
            public_key,
            port,
            allocator: Allocator::default(),
            reflexive: vec![],
            mapped: None,
            routes: state.view.routes(network),
            stamps_below: below,
            prefixes,
        };
        state.endpoints.insert(network.clone(), running);
        self.report_endpoint(&state, network);
        self.admission.notify_waiters();
        Ok(())
    }

    /// Begins a session: what to say first, and from now on, where to say what changes.
    pub async fn begin_session(
        &self,
        to_coordinator: mpsc::UnboundedSender<FromNode>,
    ) -> Vec<FromNode> {
        let mut state = self.state.lock().await;
        for fired in std::mem::take(&mut state.unsaid) {
            let _ = to_coordinator.send(FromNode::Fired(fired));
        }
        state.session = Some(to_coordinator);
        let networks: Vec<NetworkName> = state.endpoints.keys().cloned().collect();
        let endpoints =
            networks.iter().filter_map(|network| self.describe_endpoint(&state, network));
        let measured = state.workloads.values().filter(|workload| workload.attachment.measured);
        let has = FromNode::has(
            endpoints.collect(),
            measured.map(|workload| workload.attachment.report.clone()).collect(),
        );
        let hello = FromNode::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.instance,
            clock: clock(),
            revision: state.view.revision,
            digest: state.view.digest(),
        };
        std::iter::once(hello).chain(has).collect()
    }

    /// This start of the daemon.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Notes that the coordinator has taken the session that was begun.
    pub async fn note_connected(&self) {
        let mut state = self.state.lock().await;
        state.is_connected = state.session.is_some();
    }

    /// Ends a session: from now on the node vouches for what starts.
    pub async fn end_session(&self) {
        let mut state = self.state.lock().await;
        state.session = None;
        state.is_connected = false;
        self.vouch_for_unadmitted(&mut state);
        drop(state);
        self.admission.notify_waiters();
    }

    /// Tells the coordinator where an endpoint is, if it can be told; otherwise the next session
    /// begins with that.
    fn report_endpoint(&self, state: &State, network: &NetworkName) {
        let Some(session) = &state.session else { return };
        if let Some(report) = self.describe_endpoint(state, network) {
            let _ = session.send(FromNode::Endpoint(report));
        }
    }

    fn describe_endpoint(&self, state: &State, network: &NetworkName) -> Option<EndpointReport> {
        let running = state.endpoints.get(network)?;
        let at = |address: &IpAddr| SocketAddr::new(*address, running.port);
        // A node with a route has an address of the mesh: who sent to that from outside would send
        // it to who knows whom.
        let prefixes = || state.view.networks().flat_map(|(_, spec)| &spec.prefixes);
        let is_outer = |address: &&IpAddr| !prefixes().any(|prefix| prefix.contains(*address));
        Some(EndpointReport {
            network: network.clone(),
            public_key: running.public_key,
            port: running.port,
            reflexive: running.reflexive.clone(),
            advertised: self.config.advertise.iter().map(at).chain(running.mapped).collect(),
            interfaces: state.interfaces.iter().filter(is_outer).map(at).collect(),
            relays: self.homes.borrow().clone(),
        })
    }

    /// What the node's view holds, resource by resource.
    pub async fn resource_hashes(&self) -> Vec<FromNode> {
        FromNode::resource_hashes(self.state.lock().await.view.resource_hashes())
    }

    /// Takes an update: when this returns, it is enforced; it is on disk when the view's writer
    /// says so.
    pub async fn enforce(self: &Arc<Self>, revision: Revision, changes: &[Change]) -> Ticket {
        let mut state = self.state.lock().await;
        let changes = state.view.apply(revision, changes);
        state.told = true;
        let mut by_network: BTreeMap<&NetworkName, Vec<Change>> = BTreeMap::new();
        for change in &changes {
            by_network.entry(change.network()).or_default().push(change.clone());
        }
        for (network, changes) in &by_network {
            if let Some(running) = state.endpoints.get(*network) {
                // Before the rules: what they deny first counts, too.
                running
                    .served
                    .endpoint
                    .watch_denials(state.view.triggers(network).next().is_some());
                running.served.endpoint.apply(clock::now(), changes);
                running.served.apply_flow_changes();
            }
        }
        // What cuts has cut by now; what takes longer follows.
        for network in by_network.into_keys() {
            if state.view.network(network).is_none() {
                self.stop_endpoint(&mut state, network);
            }
            self.spread_routes(&mut state, network);
        }
        self.leave_to_coordinator(&mut state);
        self.stop_vouching_for_admitted(&mut state);
        let ticket = self.view_writer.keep(revision, changes);
        drop(state);
        self.admission.notify_waiters();
        // A container that is being attached, or a slow disk, does not hold the next update up.
        let node = self.clone();
        let starting =
            tokio::spawn(async move { node.start_missing_endpoints(Duration::ZERO).await });
        let _ = tokio::time::timeout(STARTING, starting).await;
        ticket
    }

    fn stop_endpoint(&self, state: &mut State, network: &NetworkName) {
        let Some(running) = state.endpoints.get(network).map(|running| running.served.clone())
        else {
            return;
        };
        let own = state.workloads.iter().filter(|(_, w)| w.attachment.report.network == *network);
        let own: Vec<WorkloadId> = own.map(|(id, _)| id.clone()).collect();
        for id in own {
            self.drop_workload(state, &id);
        }
        let gone =
            state.endpoints.remove(network).map(|running| running.prefixes).unwrap_or_default();
        self.in_order(move || attachment::refuse_here_no_more(&gone));
        self.workers.stop(&running);
        self.folder.forget_endpoint(network);
        info!(%network, "endpoint stopped: the node does not serve the network any more");
    }

    /// Closes everything, for ever: this node is no member of the mesh any more. Its workloads keep
    /// running, without an interface of the mesh.
    ///
    /// # Errors
    /// If it cannot be noted on disk. Everything is closed all the same.
    pub async fn close(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        let noted = self.folder.keep_removed(seconds_now());
        let networks: Vec<NetworkName> = state.endpoints.keys().cloned().collect();
        for network in networks {
            self.stop_endpoint(&mut state, &network);
        }
        state.view = ViewReplica::default();
        noted
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

    /// Vouches for the workloads whose label set this node knows and that the coordinator has not
    /// spoken of.
    fn vouch_for_unadmitted(&self, state: &mut State) {
        let State { view, endpoints, workloads, let_in, .. } = state;
        for workload in workloads.values_mut() {
            let report = &workload.attachment.report;
            let (network, id) = (&report.network, &report.id);
            let spoken = workload.refused.is_some()
                || view.workload(network, id).is_some()
                || view.refusal(network, id).is_some();
            if spoken || !workload.attachment.measured || report.objection.is_some() {
                continue;
            }
            let like = let_in.get(&kind(report)).copied().filter(|identity| {
                view.resources.contains_key(&ResourceKey::Identity(network.clone(), *identity))
            });
            // What admission has to judge, this node does not: it can only let in what is like what
            // was let in.
            let judged = report.measurement.is_some()
                || view.network(network).is_none_or(|spec| spec.admission);
            let identity = like.or_else(|| {
                let labels = self.verified(report.labels.clone()).filter(|_| !judged)?;
                view.identity_of(network, &labels, &report.accepts)
            });
            set_vouched(endpoints, workload, identity);
        }
    }

    fn stop_vouching_for_admitted(&self, state: &mut State) {
        let State { view, endpoints, workloads, let_in, .. } = state;
        for workload in workloads.values_mut() {
            let report = &workload.attachment.report;
            if workload.attachment.let_in_as.is_some() {
                continue;
            }
            if let Some(spec) = view.workload(&report.network, &report.id) {
                if let_in.len() >= REMEMBERED {
                    let_in.clear();
                }
                let_in.insert(kind(report), spec.identity);
                workload.refused = None;
                set_vouched(endpoints, workload, None);
            } else if view.refusal(&report.network, &report.id).is_some() {
                let_in.remove(&kind(report));
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

/// Seconds since the epoch.
pub fn seconds_now() -> u64 {
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
        running.served.endpoint.set_vouched_identity(workload.index, identity);
    }
}

fn show(state: &State, workload: &Workload) -> Shown {
    let Workload { attachment, vouched, refused, .. } = workload;
    show_attachment(state, attachment, *vouched, refused.as_deref())
}

fn show_attachment(
    state: &State,
    attachment: &Attachment,
    vouched: Option<IdentityId>,
    refused: Option<&str>,
) -> Shown {
    let Attachment { report, netns, interface, .. } = attachment;
    let spec = state.view.workload(&report.network, &report.id);
    let identity = spec.map(|spec| spec.identity).or(vouched);
    let key = identity.map(|identity| ResourceKey::Identity(report.network.clone(), identity));
    let held = match key.and_then(|key| state.view.resources.get(&key)) {
        Some(Resource::Identity(identity)) => identity.quarantined,
        _ => false,
    };
    let unjudged = attachment.let_in_as.as_ref().map(|_| UNJUDGED);
    let refusal = state.view.refusal(&report.network, &report.id).or(refused).or(unjudged);
    let shown = match (refusal, spec) {
        (Some(reason), _) => WorkloadState::Refused(reason.to_owned()),
        _ if !attachment.measured => WorkloadState::Unmeasured,
        _ if attachment.held_until.is_some() => WorkloadState::Quarantined,
        (None, Some(spec)) if spec.quarantined || held => WorkloadState::Quarantined,
        (None, Some(_)) => WorkloadState::Open,
        (None, None) if held => WorkloadState::Quarantined,
        (None, None) if vouched.is_some() => WorkloadState::Vouched,
        (None, None) => WorkloadState::Waiting,
    };
    Shown {
        id: report.id.clone(),
        name: report.name.clone(),
        network: report.network.clone(),
        labels: report.labels.clone(),
        addresses: report.addresses.clone(),
        prefixes: report.prefixes.clone(),
        interface: interface.clone(),
        netns: netns.clone(),
        measured: report.measurement.as_deref().map(Measured::from),
        state: shown,
    }
}

#[cfg(test)]
mod restore_tests;
