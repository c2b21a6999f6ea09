//! Ways between this node and its peers: how it is seen, and calls in both directions, so that NATs open.

use super::{Node, State};
use crate::dataplane::Injector;
use meshward_model::{NetworkName, NodeName, control::FromNode, stun::PORT};
use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use tracing::{debug, info, warn};

/// How often what the endpoints have found out is passed on: a call waits no longer.
const WATCH: Duration = Duration::from_millis(50);

impl Node {
    /// Passes on how the endpoints are seen, and whom they call, for ever.
    pub async fn watch_paths(&self) {
        loop {
            tokio::time::sleep(WATCH).await;
            let mut state = self.state.lock().await;
            self.pass_calls(&state);
            self.note_reflexive(&mut state);
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
