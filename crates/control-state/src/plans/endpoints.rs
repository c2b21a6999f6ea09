//! Endpoints of nodes: their keys, and the candidate addresses at which they may be reached.

use super::nodes::find_member;
use crate::{
    Plan, Refusal,
    records::{EndpointRecord, Mutation, NodeRecord, Record},
    world::{KeyOwner, World, is_globally_unique},
};
use meshward_control_proto::{EndpointReport, relay::MAX_HOME_RELAYS};
use meshward_types::{
    NetworkName, NodeName, PublicKey,
    relay::{RelayId, RelayNumber, is_relayed},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// The largest number of addresses that are stored of an endpoint, relays not counted.
const MAX_CANDIDATES: usize = 16;

/// A node's reports of its endpoints, with the facts by which they are checked.
pub struct EndpointClaims<'a> {
    /// The reports.
    pub reports: &'a [EndpointReport],
    /// The address from which the node's session comes.
    pub session_address: IpAddr,
    /// Returns the address from which another node's session comes, if it has one.
    pub session_address_of: &'a (dyn Fn(&NodeName) -> Option<IpAddr> + Sync),
    /// The keys whose refusal is in the audit log already.
    pub logged_keys: &'a BTreeSet<PublicKey>,
}

/// An endpoint that was refused because its key has another owner. The endpoint stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedEndpoint {
    /// The network.
    pub network: NetworkName,
    /// The key.
    pub key: PublicKey,
    /// The reason, and how to fix it.
    pub reason: String,
}

/// Stores the keys and candidates of a node's endpoints. A key that has an owner stays with it. A
/// public address belongs to the node whose session comes from it: claims of others are dropped.
///
/// # Errors
/// [`Refusal::Missing`] if the node was removed.
pub fn set_endpoints(
    world: &World,
    name: &NodeName,
    claims: &EndpointClaims,
) -> Result<Plan<Vec<RefusedEndpoint>>, Refusal> {
    let mut node = find_member(world, name)?.clone();
    let before = node.clone();
    let (mut refused, mut losers) = (Vec::new(), BTreeMap::new());
    for report in claims.reports {
        if !node.blocks.contains_key(&report.network) {
            continue;
        }
        if let Some(endpoint) = refuse_key(world, name, report) {
            refused.push(endpoint);
            continue;
        }
        let mut candidates = candidates(report, claims.session_address.to_canonical());
        candidates.retain(|address| claims.resolve(world, name, address, &mut losers));
        candidates.extend(home_relays(world, report).map(|home| RelayId::of(name).address(home)));
        let known = node.endpoints.get(&report.network);
        let previous_key = known.and_then(|known| match known.public_key == report.public_key {
            true => known.previous_key,
            false => Some(known.public_key),
        });
        let record = EndpointRecord { public_key: report.public_key, candidates, previous_key };
        node.endpoints.insert(report.network.clone(), record);
    }
    let mut actions = Vec::new();
    let mut mutations = Vec::new();
    if node != before {
        mutations.push(Mutation::Put(Record::Node(node)));
        actions.push(format!("node {name} reported its endpoints"));
    }
    for (other, record) in losers {
        mutations.push(Mutation::Put(Record::Node(record)));
        actions.push(format!("node {other} lost an address that is node {name}'s"));
    }
    let new = refused.iter().filter(|endpoint| !claims.logged_keys.contains(&endpoint.key));
    actions.extend(new.map(|endpoint| {
        let RefusedEndpoint { network, reason, .. } = endpoint;
        format!("refused an endpoint of node {name} in network {network}: {reason}")
    }));
    Ok(Plan::new(actions.join("; "), mutations, refused))
}

impl EndpointClaims<'_> {
    /// Decides between the claims of nodes on an address. Returns `true` if the node may have it.
    /// Others lose it if the node's session comes from there and theirs do not.
    fn resolve(
        &self,
        world: &World,
        name: &NodeName,
        address: &SocketAddr,
        losers: &mut BTreeMap<NodeName, NodeRecord>,
    ) -> bool {
        let own = self.session_address.to_canonical();
        let address_of =
            |node: &NodeName| (self.session_address_of)(node).map(|address| address.to_canonical());
        let others = world.addresses.claimants(address).iter().filter(|other| *other != name);
        if address.ip() == own && is_globally_unique(own) {
            for other in others.filter(|other| address_of(other) != Some(own)) {
                remove_candidate(world, other, address, losers);
            }
            return true;
        }
        !others.into_iter().any(|other| address_of(other) == Some(address.ip()))
    }
}

/// Refuses a report whose key has another owner.
fn refuse_key(world: &World, name: &NodeName, report: &EndpointReport) -> Option<RefusedEndpoint> {
    let owner = world.keys.owner(&report.public_key)?;
    if *owner == KeyOwner::Node(name.clone()) {
        return None;
    }
    let (network, key) = (report.network.clone(), report.public_key);
    let reason = format!(
        "the WireGuard key {key} belongs to {owner}, which keeps it: give this node another key \
        with `meshctl keys rotate --node {name}`"
    );
    Some(RefusedEndpoint { network, key, reason })
}

/// Returns the relays through which an endpoint can be reached, the nearest first: those of its
/// report that exist, or the coordinator.
fn home_relays(world: &World, report: &EndpointReport) -> impl Iterator<Item = RelayNumber> {
    let exists = |number: &&RelayNumber| {
        **number == RelayNumber::COORDINATOR
            || world.relays.values().any(|relay| relay.number == number.0)
    };
    let mut relays: Vec<RelayNumber> =
        report.relays.iter().filter(exists).take(MAX_HOME_RELAYS).copied().collect();
    if relays.is_empty() {
        relays.push(RelayNumber::COORDINATOR);
    }
    relays.into_iter()
}

/// Removes an address from the candidates of a node.
fn remove_candidate(
    world: &World,
    name: &NodeName,
    address: &SocketAddr,
    changed: &mut BTreeMap<NodeName, NodeRecord>,
) {
    let Some(known) = world.nodes.get(name) else { return };
    let record = changed.entry(name.clone()).or_insert_with(|| known.clone());
    for endpoint in record.endpoints.values_mut() {
        endpoint.candidates.retain(|candidate| candidate != address);
    }
}

/// Returns an endpoint's candidates, the most likely first: those that its operator advertises,
/// those that STUN servers see, the one that the coordinator sees, and those of the node's
/// interfaces.
fn candidates(report: &EndpointReport, session_address: IpAddr) -> Vec<SocketAddr> {
    let guess = SocketAddr::new(session_address, report.port);
    let guess = (report.advertised.is_empty() && !session_address.is_loopback()).then_some(guess);
    let reported = report.advertised.iter().chain(&report.reflexive).copied();
    let all = reported.chain(guess).chain(report.interfaces.iter().copied());
    let mut candidates: Vec<SocketAddr> = Vec::new();
    for candidate in all.filter(is_usable) {
        if candidates.len() < MAX_CANDIDATES && !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    candidates
}

fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    !is_relayed(address) && address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}
