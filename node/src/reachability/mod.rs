//! Reachability: how other nodes get to this one. Addresses of the host, STUN, ports mapped by the
//! router, relays, and hole punching.

pub mod home_relays;
pub mod netcheck;
pub mod port_mapping;
pub mod relays;

use crate::{
    config::Config,
    coordinator_link::CoordinatorLink,
    endpoints::Endpoints,
    enforcement::Enforcement,
    folder::Folder,
    workers::{Injector, Workers},
};
use meshward_control_proto::{EndpointReport, FromNode, InstanceId, relay::RelaySpec};
use meshward_netns::Netns;
use meshward_runtime::{member::Membership, random};
use meshward_types::{NetworkName, NodeName, relay::RelayNumber, stun::PORT};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

/// The interval at which the endpoints' reflexive addresses and hole-punch requests are passed on.
const INTERVAL: Duration = Duration::from_millis(50);
/// The number of intervals between two reads of this host's addresses.
const ADDRESSES_EVERY: u32 = 4;

/// The part of the node that finds paths to it and away from it.
pub struct Reachability {
    membership: Membership,
    config: Config,
    folder: Folder,
    workers: Arc<Workers>,
    enforcement: Arc<Enforcement>,
    endpoints: Arc<Endpoints>,
    link: Arc<CoordinatorLink>,
    /// This start of the daemon.
    instance: InstanceId,
    state: Mutex<State>,
    /// A [`Direct`], as far as it is known.
    direct: AtomicU8,
    /// The relays, apart from the coordinator.
    relays: watch::Sender<Arc<Vec<RelaySpec>>>,
    /// The relays by which this node can be reached.
    home_relays: watch::Sender<Vec<RelayNumber>>,
    /// Notified when relays may be needed.
    relay_wanted: Notify,
    /// Notified when a relay was lost.
    relay_lost: Notify,
}

#[derive(Default)]
struct State {
    /// The addresses of the host's interfaces.
    interfaces: Vec<IpAddr>,
    coordinator: Option<IpAddr>,
    outside: HashMap<NetworkName, OutsideAddresses>,
}

/// An endpoint's addresses on the other side of a NAT.
#[derive(Default)]
struct OutsideAddresses {
    /// The addresses that STUN servers see (server-reflexive candidates, RFC 8445).
    reflexive: Vec<SocketAddr>,
    /// The port that the router has mapped.
    mapped: Option<SocketAddr>,
}

/// The knowledge whether other nodes reach this one directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direct {
    /// No answer is known yet.
    Unknown,
    /// An endpoint is seen under an address that the host has.
    Yes,
    /// No endpoint is, or UDP does not pass at all.
    No,
}

/// The parts of the node that reachability works with.
pub struct Parts {
    /// The workers.
    pub workers: Arc<Workers>,
    /// Enforcement.
    pub enforcement: Arc<Enforcement>,
    /// The endpoints' lives.
    pub endpoints: Arc<Endpoints>,
    /// The link to the coordinator.
    pub link: Arc<CoordinatorLink>,
}

impl Reachability {
    /// Restores the relays that are on disk, and reads the addresses of the host.
    pub async fn restore(
        membership: Membership,
        config: Config,
        folder: Folder,
        parts: Parts,
    ) -> Self {
        let relays = folder.relays();
        let interfaces = tokio::task::spawn_blocking(host_addresses).await.unwrap_or_default();
        let Parts { workers, enforcement, endpoints, link } = parts;
        Self {
            membership,
            config,
            folder,
            workers,
            enforcement,
            endpoints,
            link,
            instance: InstanceId(random()),
            state: Mutex::new(State { interfaces, ..State::default() }),
            direct: AtomicU8::new(Direct::Unknown as u8),
            relays: watch::Sender::new(Arc::new(relays)),
            home_relays: watch::Sender::new(vec![RelayNumber::COORDINATOR]),
            relay_wanted: Notify::new(),
            relay_lost: Notify::new(),
        }
    }

    /// Returns what tells this start of the daemon from others.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Passes on how the endpoints are seen, and the hole-punch requests that they make, for ever.
    pub async fn watch_paths(&self) {
        let (mut addresses, mut turn) = (None, 0u32);
        loop {
            tokio::time::sleep(INTERVAL).await;
            turn += 1;
            if turn.is_multiple_of(ADDRESSES_EVERY) {
                let mut now = tokio::task::spawn_blocking(host_addresses).await.unwrap_or_default();
                now.sort_unstable();
                let is_other = addresses.as_ref().is_some_and(|before| *before != now);
                if addresses.as_ref() != Some(&now) {
                    self.state.lock().interfaces.clone_from(&now);
                }
                addresses = Some(now);
                if is_other {
                    self.announce_addresses();
                }
            }
            self.pass_hole_punch_requests();
            self.note_reflexive();
        }
    }

    /// Tells peers and the coordinator at once that this host has other addresses.
    fn announce_addresses(&self) {
        info!("the addresses of this node have changed");
        for (network, served) in self.enforcement.endpoints() {
            served.announce_address();
            self.report_endpoint(&network);
        }
    }

    fn pass_hole_punch_requests(&self) {
        for (network, served) in self.enforcement.endpoints() {
            for peer in served.endpoint.take_hole_punch_requests() {
                debug!(%network, %peer, "hole punch requested");
                self.link.send(FromNode::PunchHole { network: network.clone(), peer });
            }
        }
    }

    fn note_reflexive(&self) {
        for (network, served) in self.enforcement.endpoints() {
            let seen = served.endpoint.reflexive();
            let is_behind_nat = {
                let mut state = self.state.lock();
                let State { outside, interfaces, .. } = &mut *state;
                let known = outside.entry(network.clone()).or_default();
                if known.reflexive == seen {
                    continue;
                }
                known.reflexive.clone_from(&seen);
                let outer = self.outer_addresses(interfaces);
                !seen.iter().all(|address| outer.contains(&address.ip()))
            };
            served.endpoint.set_behind_nat(is_behind_nat);
            self.note_direct(if is_behind_nat { Direct::No } else { Direct::Yes });
            info!(%network, seen_as = ?seen, is_behind_nat, "how the endpoint is seen");
            self.report_endpoint(&network);
        }
    }

    /// Returns the addresses of the host without those of the mesh, which a node with a route has:
    /// from outside, they lead elsewhere.
    fn outer_addresses(&self, interfaces: &[IpAddr]) -> Vec<IpAddr> {
        self.enforcement.view(|view| {
            let prefixes = || view.networks().flat_map(|(_, spec)| &spec.prefixes);
            let is_outer = |address: &&IpAddr| !prefixes().any(|own| own.contains(*address));
            interfaces.iter().filter(is_outer).copied().collect()
        })
    }

    /// Returns the endpoints as the coordinator is told of them.
    pub fn reports(&self) -> Vec<EndpointReport> {
        let all = self.enforcement.endpoints().into_iter();
        all.filter_map(|(network, _)| self.describe_endpoint(&network)).collect()
    }

    /// Tells the coordinator where an endpoint is, if there is a session; otherwise the next one
    /// begins with that.
    pub fn report_endpoint(&self, network: &NetworkName) {
        if self.link.has_session()
            && let Some(report) = self.describe_endpoint(network)
        {
            self.link.send(FromNode::Endpoint(report));
        }
    }

    fn describe_endpoint(&self, network: &NetworkName) -> Option<EndpointReport> {
        let (_, public_key, port) = self.enforcement.running(network)?;
        let at = |address: &IpAddr| SocketAddr::new(*address, port);
        let state = self.state.lock();
        let outside = state.outside.get(network);
        let mapped = outside.and_then(|outside| outside.mapped);
        Some(EndpointReport {
            network: network.clone(),
            public_key,
            port,
            reflexive: outside.map(|outside| outside.reflexive.clone()).unwrap_or_default(),
            advertised: self.config.advertise.iter().map(at).chain(mapped).collect(),
            interfaces: self.outer_addresses(&state.interfaces).iter().map(at).collect(),
            relays: self.home_relays.borrow().clone(),
        })
    }

    /// Forgets an endpoint that was stopped.
    pub fn forget_endpoint(&self, network: &NetworkName) {
        self.state.lock().outside.remove(network);
    }

    /// Notes whether other nodes reach this one directly. `No` stays.
    pub fn note_direct(&self, direct: Direct) {
        let before = self.direct.fetch_max(direct as u8, Relaxed);
        if before < direct as u8 && direct == Direct::No {
            self.relay_wanted.notify_one();
        }
    }

    /// Returns `true` if this node is to stay connected to its home relays. `is_overdue`: there was
    /// time to find out that it is reached directly.
    fn needs_relays(&self, is_overdue: bool) -> bool {
        match self.direct() {
            Direct::Unknown => is_overdue,
            Direct::Yes => false,
            Direct::No => true,
        }
    }

    fn direct(&self) -> Direct {
        match self.direct.load(Relaxed) {
            0 => Direct::Unknown,
            1 => Direct::Yes,
            _ => Direct::No,
        }
    }

    /// Returns the UDP ports of the endpoints.
    fn ports(&self) -> BTreeMap<NetworkName, u16> {
        let all = self.enforcement.endpoints().into_iter();
        all.filter_map(|(network, _)| {
            let (_, _, port) = self.enforcement.running(&network)?;
            Some((network, port))
        })
        .collect()
    }

    /// Returns the ports of endpoints that the router has mapped.
    fn mapped(&self) -> Vec<SocketAddr> {
        self.state.lock().outside.values().filter_map(|outside| outside.mapped).collect()
    }

    /// Notes the port that the router has mapped for an endpoint, and has peers told.
    fn set_mapped(&self, network: &NetworkName, mapped: Option<SocketAddr>) {
        if self.enforcement.endpoint(network).is_none() {
            return;
        }
        {
            let mut state = self.state.lock();
            let outside = state.outside.entry(network.clone()).or_default();
            if std::mem::replace(&mut outside.mapped, mapped) == mapped {
                return;
            }
        }
        self.report_endpoint(network);
    }

    fn injector(&self) -> Injector {
        self.workers.injector()
    }

    /// Answers a peer's hole-punch request: sends to it, so that this node's NAT opens.
    pub fn answer_hole_punch(&self, network: &NetworkName, peer: &NodeName) {
        let Some(served) = self.enforcement.endpoint(network) else { return };
        debug!(%network, %peer, "hole punch requested by the peer");
        self.relay_wanted.notify_one();
        if served.endpoint.answer_hole_punch(peer) {
            served.request_handshakes();
        }
    }

    /// Notes the coordinator's address, and asks it how the endpoints are seen.
    pub async fn set_coordinator(&self, coordinator: IpAddr) {
        self.state.lock().coordinator = Some(coordinator.to_canonical());
        self.resolve_stun_servers().await;
    }

    /// Replaces the relays by those that the coordinator names.
    pub async fn set_relays(&self, relays: Vec<RelaySpec>) {
        if **self.relays.borrow() == relays {
            return;
        }
        if let Err(error) = self.folder.keep_relays(&relays) {
            warn!("the relays were not written down: {error:#}");
        }
        self.relays.send_replace(Arc::new(relays));
        self.resolve_stun_servers().await;
    }

    /// Notes the relays by which this node can be reached from now on, and has its peers told.
    fn set_home_relays(&self, home_relays: Vec<RelayNumber>) {
        self.home_relays.send_replace(home_relays);
        for (network, _) in self.enforcement.endpoints() {
            self.report_endpoint(&network);
        }
    }

    /// Has the endpoints ask how they are seen: the servers that are configured, or else the
    /// coordinator and the relays.
    async fn resolve_stun_servers(&self) {
        let relays = self.relays.borrow().clone();
        let of_relay = |spec: &RelaySpec| {
            let host = |address: &String| {
                Some(format!("{}:{}", address.rsplit_once(':')?.0, spec.stun_port))
            };
            spec.addresses.iter().filter_map(host).collect::<Vec<_>>()
        };
        let (mut names, mut servers) = (self.config.stun.clone(), Vec::new());
        if names.is_empty() {
            names = relays.iter().flat_map(of_relay).collect();
            let coordinator = self.state.lock().coordinator;
            servers.extend(coordinator.map(|ip| SocketAddr::new(ip, PORT)));
        }
        for name in names {
            match tokio::net::lookup_host(&name).await {
                Ok(found) => servers.extend(found),
                Err(error) => warn!("the STUN server {name} cannot be found: {error}"),
            }
        }
        self.endpoints.set_stun_servers(servers);
    }
}

/// Returns the addresses of the host's interfaces; none if the kernel does not tell them. Blocks.
fn host_addresses() -> Vec<IpAddr> {
    let found =
        Netns::current().and_then(|netns| netns.links(async |links| links.addresses().await));
    found.unwrap_or_default()
}
