//! Asking another node for an answer, and what policy says of the workloads on both sides.

use super::{Node, Refusal, State};
use crate::workers::ServedEndpoint;
use meshward_api_types::diagnosis::{PathKind, Ping, PolicyBetween, Pong};
use meshward_control_proto::{Resource, ResourceKey};
use meshward_types::{IdentityId, NetworkName, NodeName, WorkloadId, relay::RelayId};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// For how long an answer is waited for, and a session before it.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a session may take that has to come about first.
const SESSION: Duration = Duration::from_secs(4);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(2);

/// What a ping is about.
struct Target {
    network: NetworkName,
    node: NodeName,
    workload: Option<WorkloadId>,
    identity: Option<IdentityId>,
    held: bool,
}

impl Node {
    /// Asks the node that is named, or that runs what is named, for an answer.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if this node knows nothing of that name, or has no such peer.
    pub async fn ping(&self, wanted: &Ping) -> Result<Pong, Refusal> {
        let (mut pong, served) = {
            let state = self.state.lock().await;
            let target = self.target(&state, wanted)?;
            let served = state.endpoints.get(&target.network).map(|running| running.served.clone());
            (self.describe_target(&state, target), served)
        };
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
        let Some(place) = sent else { return Ok(pong) };
        pong.path_mtu =
            peer.filter(|peer| peer.address == Some(place)).and_then(|peer| peer.path_mtu);
        match RelayId::at(&place) {
            Some((_, relay)) => (pong.path, pong.relay) = (PathKind::Relayed, Some(relay)),
            None => (pong.path, pong.address) = (PathKind::Direct, Some(place)),
        }
        Ok(pong)
    }

    fn target(&self, state: &State, wanted: &Ping) -> Result<Target, Refusal> {
        if let Some(network) = &wanted.network
            && state.view.network(network).is_none()
        {
            let text = format!(
                "this node serves no network `{network}`; `meshctl status` shows those that it does"
            );
            return Err(Refusal::Missing(text));
        }
        let in_network =
            |network: &NetworkName| wanted.network.as_ref().is_none_or(|own| own == network);
        let (address, id) =
            (wanted.target.parse::<IpAddr>().ok(), wanted.target.parse::<WorkloadId>().ok());
        // A workload of this node is known by its name, too.
        let named = state.workloads.values().map(|workload| &workload.attachment.report);
        let named = named
            .filter(|report| report.name.as_str() == wanted.target && in_network(&report.network));
        let named: Vec<_> = named.map(|report| report.id.clone()).collect();
        let is_named = |id: &WorkloadId| named.len() == 1 && named[0] == *id;
        for (key, resource) in &state.view.resources {
            let (ResourceKey::Workload(network, own), Resource::Workload(spec)) = (key, resource)
            else {
                continue;
            };
            let is_it = id.as_ref() == Some(own)
                || address.is_some_and(|address| {
                    spec.addresses.contains(&address)
                        || spec.prefixes.iter().any(|p| p.contains(&address))
                })
                || is_named(own);
            if is_it && in_network(network) {
                let identity = state
                    .view
                    .resources
                    .get(&ResourceKey::Identity(network.clone(), spec.identity));
                let held =
                    matches!(identity, Some(Resource::Identity(identity)) if identity.quarantined);
                return Ok(Target {
                    network: network.clone(),
                    node: spec.node.clone(),
                    workload: Some(own.clone()),
                    identity: Some(spec.identity),
                    held: held || spec.quarantined,
                });
            }
        }
        let node = wanted.node.clone().or_else(|| wanted.target.parse::<NodeName>().ok());
        let node = node.ok_or_else(|| unknown(wanted))?;
        let own = state.endpoints.keys().find(|network| in_network(network));
        let network = match node == self.membership.name {
            true => own.cloned(),
            false => state.view.resources.keys().find_map(|key| match key {
                ResourceKey::Peer(network, peer) if *peer == node && in_network(network) => {
                    Some(network.clone())
                }
                _ => None,
            }),
        };
        // Whoever asks may know of a workload that this node need not know.
        let workload = wanted.node.as_ref().and(id);
        match network {
            Some(network) => Ok(Target { network, node, workload, identity: None, held: false }),
            None if wanted.node.is_some() => Err(Refusal::Missing(format!(
                "policy lets no workload of this node and one of node `{node}` talk, so this node has no way to it"
            ))),
            None => Err(unknown(wanted)),
        }
    }

    fn describe_target(&self, state: &State, target: Target) -> Pong {
        let Target { network, node, workload, identity, held } = target;
        let resource = identity
            .and_then(|id| state.view.resources.get(&ResourceKey::Identity(network.clone(), id)));
        let labels = match resource {
            Some(Resource::Identity(spec)) => Some(spec.labels.clone()),
            _ => None,
        };
        let own = state.workloads.values().filter(|own| own.attachment.report.network == network);
        let own = own.filter(|own| Some(&own.attachment.report.id) != workload.as_ref());
        let policy = own.filter_map(|own| {
            let report = &own.attachment.report;
            let spec = state.view.workload(&network, &report.id);
            let from = spec.map(|spec| spec.identity).or(own.vouched);
            let shown = super::show(state, own).state;
            let is_open =
                matches!(shown, super::WorkloadState::Open | super::WorkloadState::Vouched);
            Some(PolicyBetween {
                workload: report.id.clone(),
                name: report.name.clone(),
                to: link(state, &network, from, identity?),
                from: link(state, &network, identity, from?),
                held: held || !is_open,
            })
        });
        Pong {
            policy: policy.collect(),
            network_mtu: state.view.network(&network).map_or(0, |spec| spec.mtu),
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

/// What one identity may begin towards another, in words; empty: nothing.
fn link(state: &State, network: &NetworkName, from: Option<IdentityId>, to: IdentityId) -> String {
    let key = from.map(|from| ResourceKey::Link(network.clone(), from, to));
    match key.and_then(|key| state.view.resources.get(&key)) {
        Some(Resource::Link(acl)) => acl.to_string(),
        _ => String::new(),
    }
}

fn unknown(wanted: &Ping) -> Refusal {
    let inside =
        wanted.network.as_ref().map_or(String::new(), |network| format!(" in network `{network}`"));
    Refusal::Missing(format!(
        "this node knows no peer, workload or address `{}`{inside}: it knows those that policy lets its own workloads talk with; `meshctl nodes` and `meshctl workloads` list all",
        wanted.target
    ))
}

/// Where a ping went, and how long its answer took, if one came.
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
            None if begun.elapsed() > SESSION => return Ok((None, None)),
            None => tokio::time::sleep(10 * LOOK).await,
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(took) = served.endpoint.ping_rtt(&pong.node, sent.number) {
            return Ok((Some(sent.address), Some(took)));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok((Some(sent.address), None))
}
