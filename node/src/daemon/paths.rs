//! Ways between this node and its peers: how it is seen, and calls in both directions, so that NATs open.

use super::{Node, State};
use crate::dataplane::Injector;
use meshward_model::{NetworkName, NodeName, control::FromNode, stun::PORT};
use meshward_netns::Netns;
use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use tracing::{debug, info, warn};

/// How often what the endpoints have found out is passed on: a call waits no longer.
const WATCH: Duration = Duration::from_millis(50);
/// Every so many turns the addresses of this node are looked at.
const ADDRESSES: u32 = 4;

/// The addresses of the host's interfaces; none if the kernel does not tell them.
pub(super) fn own_addresses() -> Vec<IpAddr> {
    let found = Netns::current().and_then(|netns| netns.links(async |links| links.addresses().await));
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
            running.service.announce();
            let report = self.describe_endpoint(&state, network);
            if let (Some(session), Some(report)) = (&state.session, report) {
                let _ = session.send(FromNode::Endpoint(report));
            }
        }
    }

    fn pass_calls(&self, state: &State) {
        for (network, running) in &state.endpoints {
            for peer in running.service.endpoint.take_called() {
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
            let seen = running.service.endpoint.reflexive();
            if seen != running.reflexive {
                running.reflexive = seen;
                moved.push(network.clone());
            }
        }
        for network in moved {
            let Some(report) = self.describe_endpoint(state, &network) else { continue };
            let Some(running) = state.endpoints.get(&network) else { continue };
            let own = |address: &SocketAddr| report.interfaces.iter().any(|own| own.ip() == address.ip());
            let behind_nat = running.reflexive.as_ref().is_some_and(|address| !own(address));
            running.service.endpoint.set_behind_nat(behind_nat);
            if behind_nat {
                self.behind_nat.store(true, Relaxed);
                self.relay_wanted.notify_one();
            }
            info!(%network, seen_as = ?running.reflexive, behind_nat, "how the endpoint is seen");
            if let Some(session) = &state.session {
                let _ = session.send(FromNode::Endpoint(report));
            }
        }
    }

    /// Whether others see an endpoint of this node under another address than it has.
    pub fn is_behind_nat(&self) -> bool {
        self.behind_nat.load(Relaxed)
    }

    /// The way in for packets that were relayed.
    pub fn injector(&self) -> Injector {
        self.data_plane.injector()
    }

    /// A peer calls: calls back.
    pub async fn called(&self, network: &NetworkName, peer: &NodeName) {
        let state = self.state.lock().await;
        let Some(running) = state.endpoints.get(network) else { return };
        debug!(%network, %peer, "is called");
        self.relay_wanted.notify_one();
        if running.service.endpoint.call_back(peer) {
            running.service.want_handshakes();
        }
    }

    /// Has the endpoints ask how they are seen: those that are configured, or else the coordinator.
    pub async fn ask_stun(&self, coordinator: IpAddr) {
        let mut servers = Vec::new();
        for name in &self.config.stun {
            match tokio::net::lookup_host(name).await {
                Ok(found) => servers.extend(found),
                Err(error) => warn!("the STUN server {name} cannot be found: {error}"),
            }
        }
        if self.config.stun.is_empty() {
            servers.push(SocketAddr::new(coordinator.to_canonical(), PORT));
        }
        let mut state = self.state.lock().await;
        for running in state.endpoints.values() {
            running.service.endpoint.set_stun_servers(servers.clone());
        }
        state.stun = servers;
    }
}
