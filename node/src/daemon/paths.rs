//! Ways between this node and its peers: how it is seen, and calls in both directions, so that NATs
//! open.

use super::{Node, RELAYS, State};
use crate::workers::Injector;
use meshward_control_proto::{FromNode, relay::RelaySpec};
use meshward_netns::Netns;
use meshward_types::{NetworkName, NodeName, relay::RelayNumber, stun::PORT};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tracing::{debug, info, warn};

/// How often what the endpoints have found out is passed on: a call waits no longer.
const WATCH: Duration = Duration::from_millis(50);
/// Every so many turns the addresses of this node are looked at.
const ADDRESSES: u32 = 4;

/// Whether others reach this node directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reach {
    /// It has not been found out.
    Unknown,
    /// They see an endpoint under an address that the node has.
    Open,
    /// They do not, or UDP does not pass at all.
    Hidden,
}

/// The addresses of the host's interfaces; none if the kernel does not tell them.
pub(super) fn own_addresses() -> Vec<IpAddr> {
    let found =
        Netns::current().and_then(|netns| netns.links(async |links| links.addresses().await));
    found.unwrap_or_default()
}

impl Node {
    /// Passes on how the endpoints are seen, and whom they call, for ever.
    pub async fn watch_paths(&self) {
        let (mut addresses, mut turn) = (None, 0u32);
        loop {
            tokio::time::sleep(WATCH).await;
            turn += 1;
            if turn.is_multiple_of(ADDRESSES) {
                let mut now = tokio::task::spawn_blocking(own_addresses).await.unwrap_or_default();
                now.sort_unstable();
                let moved = addresses.as_ref().is_some_and(|before| *before != now);
                if addresses.as_ref() != Some(&now) {
                    self.state.lock().await.interfaces.clone_from(&now);
                }
                addresses = Some(now);
                if moved {
                    self.announce_move().await;
                }
            }
            let mut state = self.state.lock().await;
            self.pass_calls(&state);
            self.note_reflexive(&mut state);
        }
    }

    /// The addresses of this node are others: peers are to know at once, and the coordinator, too.
    async fn announce_move(&self) {
        info!("the addresses of this node have changed");
        let state = self.state.lock().await;
        for (network, running) in &state.endpoints {
            running.served.announce_address();
            self.report_endpoint(&state, network);
        }
    }

    fn pass_calls(&self, state: &State) {
        for (network, running) in &state.endpoints {
            for peer in running.served.endpoint.take_hole_punch_requests() {
                debug!(%network, %peer, "called");
                if let Some(session) = &state.session {
                    let _ = session.send(FromNode::Call { network: network.clone(), peer });
                }
            }
        }
    }

    fn note_reflexive(&self, state: &mut State) {
        let mut moved = Vec::new();
        for (network, running) in &mut state.endpoints {
            let seen = running.served.endpoint.reflexive();
            if seen != running.reflexive {
                running.reflexive = seen;
                moved.push(network.clone());
            }
        }
        for network in moved {
            let Some(report) = self.describe_endpoint(state, &network) else { continue };
            let Some(running) = state.endpoints.get(&network) else { continue };
            let own =
                |address: &SocketAddr| report.interfaces.iter().any(|own| own.ip() == address.ip());
            let behind_nat = !running.reflexive.iter().all(own);
            running.served.endpoint.set_behind_nat(behind_nat);
            self.note_reach(if behind_nat { Reach::Hidden } else { Reach::Open });
            info!(%network, seen_as = ?running.reflexive, behind_nat, "how the endpoint is seen");
            if let Some(session) = &state.session {
                let _ = session.send(FromNode::Endpoint(report));
            }
        }
    }

    /// Notes whether others reach this node directly. What was hidden once stays so.
    pub fn note_reach(&self, reach: Reach) {
        if self.reach.fetch_max(reach as u8, Relaxed) < reach as u8 && reach == Reach::Hidden {
            self.relay_wanted.notify_one();
        }
    }

    /// The UDP ports of the endpoints.
    pub async fn ports(&self) -> BTreeMap<NetworkName, u16> {
        let state = self.state.lock().await;
        state.endpoints.iter().map(|(network, running)| (network.clone(), running.port)).collect()
    }

    /// Where the router has mapped ports of endpoints.
    pub async fn mapped(&self) -> Vec<SocketAddr> {
        self.state.lock().await.endpoints.values().filter_map(|running| running.mapped).collect()
    }

    /// Notes where the router has mapped an endpoint's port, and has peers told.
    pub async fn set_mapped(&self, network: &NetworkName, mapped: Option<SocketAddr>) {
        let mut state = self.state.lock().await;
        let Some(running) = state.endpoints.get_mut(network).filter(|own| own.mapped != mapped)
        else {
            return;
        };
        running.mapped = mapped;
        self.report_endpoint(&state, network);
    }

    /// Whether others can reach this node directly, as far as is known.
    pub fn reach(&self) -> Reach {
        match self.reach.load(Relaxed) {
            0 => Reach::Unknown,
            1 => Reach::Open,
            _ => Reach::Hidden,
        }
    }

    /// The way in for packets that were relayed.
    pub fn injector(&self) -> Injector {
        self.workers.injector()
    }

    /// A peer calls: calls back.
    pub async fn called(&self, network: &NetworkName, peer: &NodeName) {
        let state = self.state.lock().await;
        let Some(running) = state.endpoints.get(network) else { return };
        debug!(%network, %peer, "is called");
        self.relay_wanted.notify_one();
        if running.served.endpoint.answer_hole_punch(peer) {
            running.served.request_handshakes();
        }
    }

    /// Notes where the coordinator is, and asks it how the endpoints are seen.
    pub async fn note_coordinator(&self, coordinator: IpAddr) {
        self.state.lock().await.coordinator = Some(coordinator.to_canonical());
        self.ask_stun().await;
    }

    /// Takes what the coordinator says of relays.
    pub async fn set_relays(&self, relays: Vec<RelaySpec>) {
        if **self.relays.borrow() == relays {
            return;
        }
        if let Err(error) = self.folder.keep_json(RELAYS, &relays) {
            warn!("the relays were not written down: {error:#}");
        }
        self.relays.send_replace(Arc::new(relays));
        self.ask_stun().await;
    }

    /// Notes the relays by which this node can be reached from now on, and has its peers told.
    pub async fn set_homes(&self, homes: Vec<RelayNumber>) {
        self.homes.send_replace(homes);
        let state = self.state.lock().await;
        for network in state.endpoints.keys() {
            self.report_endpoint(&state, network);
        }
    }

    /// Has the endpoints ask how they are seen: those that are configured, or else the coordinator
    /// and the relays.
    async fn ask_stun(&self) {
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
            let coordinator = self.state.lock().await.coordinator;
            servers.extend(coordinator.map(|ip| SocketAddr::new(ip, PORT)));
        }
        for name in names {
            match tokio::net::lookup_host(&name).await {
                Ok(found) => servers.extend(found),
                Err(error) => warn!("the STUN server {name} cannot be found: {error}"),
            }
        }
        let mut state = self.state.lock().await;
        for running in state.endpoints.values() {
            running.served.endpoint.set_stun_servers(&servers);
        }
        state.stun = servers;
    }
}
