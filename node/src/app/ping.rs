//! Asking another node for an answer, and what policy says of the workloads on both sides.

use super::node::Node;
use crate::{refusal::Refusal, workers::ServedEndpoint};
use meshward_api_types::{
    diagnosis::{PathKind, Ping, PolicyBetween, Pong},
    local::State as WorkloadState,
};
use meshward_control_proto::{Resource, ResourceKey, ViewReplica};
use meshward_types::{IdentityId, NetworkName, NodeName, WorkloadId, relay::RelayId};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The bound on how long an answer is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The bound on how long a session may take to come about first.
const SESSION_WITHIN: Duration = Duration::from_secs(4);
/// The interval at which the answer is polled for.
const POLL: Duration = Duration::from_millis(2);

/// The target of a ping.
struct Target {
    network: NetworkName,
    node: NodeName,
    workload: Option<WorkloadId>,
    identity: Option<IdentityId>,
    is_quarantined: bool,
}

impl Node {
    /// Asks the node that is named, or that runs what is named, for an answer.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if this node knows nothing of that name, or has no such peer.
    pub async fn ping(&self, wanted: &Ping) -> Result<Pong, Refusal> {
        let target = self.target(wanted)?;
        let served = self.enforcement.endpoint(&target.network);
        let mut pong = self.describe_target(target);
        if pong.node == self.membership.name {
            (pong.path, pong.round_trip_us) = (PathKind::Local, Some(0));
            return Ok(pong);
        }
        let served = served.ok_or_else(|| {
            Refusal::Early(format!("this node has no endpoint in network `{}` yet", pong.network))
        })?;
        let (sent, took) = ask(&served, &pong).await?;
        pong.round_trip_us = took.map(|took| took.as_micros() as u64);
        let stats = served.endpoint.stats(crate::clock::now());
        let peer =
            stats.peers.into_iter().find(|(node, _)| *node == pong.node).map(|(_, stats)| stats);
        // By where it went; a better way may have been found since.
        let Some(address) = sent else { return Ok(pong) };
        pong.path_mtu =
            peer.filter(|peer| peer.address == Some(address)).and_then(|peer| peer.path_mtu);
        match RelayId::at(&address) {
            Some((_, relay)) => (pong.path, pong.relay) = (PathKind::Relayed, Some(relay)),
            None => (pong.path, pong.address) = (PathKind::Direct, Some(address)),
        }
        Ok(pong)
    }

    fn target(&self, wanted: &Ping) -> Result<Target, Refusal> {
        let is_served = |network| self.enforcement.view(|view| view.network(network).is_some());
        if let Some(network) = wanted.network.as_ref().filter(|network| !is_served(network)) {
            let text = format!(
                "this node serves no network `{network}`; `meshctl status` shows those that it does"
            );
            return Err(Refusal::Missing(text));
        }
        if let Some(target) = self.target_workload(wanted) {
            return Ok(target);
        }
        let in_network =
            |network: &NetworkName| wanted.network.as_ref().is_none_or(|own| own == network);
        let node = wanted.node.clone().or_else(|| wanted.target.parse::<NodeName>().ok());
        let node = node.ok_or_else(|| unknown(wanted))?;
        let network = match node == self.membership.name {
            true => {
                let own = self.enforcement.endpoints().into_iter().map(|(network, _)| network);
                own.into_iter().find(in_network)
            }
            false => self.enforcement.view(|view| {
                view.resources.keys().find_map(|key| match key {
                    ResourceKey::Peer(network, peer) if *peer == node && in_network(network) => {
                        Some(network.clone())
                    }
                    _ => None,
                })
            }),
        };
        // Whoever asks may know of a workload that this node need not know.
        let id = wanted.target.parse::<WorkloadId>().ok();
        let workload = wanted.node.as_ref().and(id);
        match network {
            Some(network) => {
                Ok(Target { network, node, workload, identity: None, is_quarantined: false })
            }
            None if wanted.node.is_some() => Err(Refusal::Missing(format!(
                "policy lets no workload of this node and one of node `{node}` talk, so this node \
                has no way to it"
            ))),
            None => Err(unknown(wanted)),
        }
    }

    /// Returns the workload that a ping names by its id or address, or, on this node, by its name.
    fn target_workload(&self, wanted: &Ping) -> Option<Target> {
        let in_network =
            |network: &NetworkName| wanted.network.as_ref().is_none_or(|own| own == network);
        let (address, id) =
            (wanted.target.parse::<IpAddr>().ok(), wanted.target.parse::<WorkloadId>().ok());
        let named = self.workloads.find_all(|own| {
            own.report.name.as_str() == wanted.target && in_network(&own.report.network)
        });
        let is_named = |id: &WorkloadId| named.len() == 1 && named[0].0 == *id;
        self.enforcement.view(|view| {
            view.resources.iter().find_map(|(key, resource)| {
                let (ResourceKey::Workload(network, own), Resource::Workload(spec)) =
                    (key, resource)
                else {
                    return None;
                };
                let has_address = |address: IpAddr| {
                    spec.addresses.contains(&address)
                        || spec.prefixes.iter().any(|prefix| prefix.contains(&address))
                };
                let is_it =
                    id.as_ref() == Some(own) || address.is_some_and(has_address) || is_named(own);
                if !is_it || !in_network(network) {
                    return None;
                }
                let identity = view.identity(network, spec.identity);
                let is_identity_quarantined = identity.is_some_and(|identity| identity.quarantined);
                Some(Target {
                    network: network.clone(),
                    node: spec.node.clone(),
                    workload: Some(own.clone()),
                    identity: Some(spec.identity),
                    is_quarantined: is_identity_quarantined || spec.quarantined,
                })
            })
        })
    }

    fn describe_target(&self, target: Target) -> Pong {
        let Target { network, node, workload, identity, is_quarantined } = target;
        let own = self.workloads.all().into_iter().filter(|own| own.network == network);
        let own = own.filter(|own| Some(&own.id) != workload.as_ref());
        let policy = own.filter_map(|own| {
            let standing = self.enforcement.standing(&network, &own.id);
            let from = standing.spec.map(|spec| spec.identity).or(standing.vouched);
            let is_open = matches!(own.state, WorkloadState::Open | WorkloadState::Vouched);
            let (to, from) = self.enforcement.view(|view| {
                Some((link(view, &network, from, identity?), link(view, &network, identity, from?)))
            })?;
            Some(PolicyBetween {
                workload: own.id,
                name: own.name,
                to,
                from,
                isolated: is_quarantined || !is_open,
            })
        });
        let policy = policy.collect();
        let (labels, network_mtu) = self.enforcement.view(|view| {
            let spec = identity.and_then(|id| view.identity(&network, id));
            let labels = spec.map(|spec| spec.labels.clone());
            (labels, view.network(&network).map_or(0, |spec| spec.mtu))
        });
        Pong {
            policy,
            network_mtu,
            node,
            network,
            workload,
            labels,
            round_trip_us: None,
            path: PathKind::None,
            address: None,
            relay: None,
            path_mtu: None,
        }
    }
}

/// Describes the flows that one identity may begin towards another; empty if there are none.
fn link(
    view: &ViewReplica,
    network: &NetworkName,
    from: Option<IdentityId>,
    to: IdentityId,
) -> String {
    let key = from.map(|from| ResourceKey::Link(network.clone(), from, to));
    match key.and_then(|key| view.resources.get(&key)) {
        Some(Resource::Link(acl)) => acl.to_string(),
        _ => String::new(),
    }
}

fn unknown(wanted: &Ping) -> Refusal {
    let inside =
        wanted.network.as_ref().map_or(String::new(), |network| format!(" in network `{network}`"));
    Refusal::Missing(format!(
        "this node knows no peer, workload or address `{}`{inside}: it knows those that policy \
        lets its own workloads talk with; `meshctl nodes` and `meshctl workloads` list all",
        wanted.target
    ))
}

/// Sends a ping. Returns the address that it went to and the round-trip time, if there were any.
async fn ask(
    served: &Arc<ServedEndpoint>,
    pong: &Pong,
) -> Result<(Option<SocketAddr>, Option<Duration>), Refusal> {
    let gone =
        || Refusal::Missing(format!("node `{}` is no peer of this node any more", pong.node));
    let begun = Instant::now();
    let sent = loop {
        match served.ping(&pong.node).map_err(|_| gone())? {
            Some(sent) => break sent,
            None if begun.elapsed() > SESSION_WITHIN => return Ok((None, None)),
            None => tokio::time::sleep(10 * POLL).await,
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < ANSWER_WITHIN {
        if let Some(took) = served.endpoint.ping_rtt(&pong.node, sent.number) {
            return Ok((Some(sent.address), Some(took)));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok((Some(sent.address), None))
}
