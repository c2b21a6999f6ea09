//! The whole view of a node: for nodes that cannot be sent a delta, and for tests of the deltas.

use super::{
    drains::Drains,
    network::{Group, NetworkState, WorkloadState, workload_resource},
    node_set::{NodeIndex, NodeSet},
    quarantines::QuarantineState,
    resources::{NetworkResources, refused_resource},
    state::World,
};
use crate::records::{RefusedRecord, WorkloadRecord};
use meshward_control_proto::{
    Resource, ResourceKey, View,
    view::{Digest, Hash128},
};
use meshward_types::{Acl, IdentityId, NetworkName, NodeName, Revision, WorkloadId};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// The parts of a view, collected under the world's lock in a short time. The long lists are shared
/// with the world, and become resources without its lock.
#[derive(Debug, Default)]
pub struct ViewParts {
    revision: Revision,
    /// Networks, triggers, peers and identities.
    resources: Vec<(ResourceKey, Resource)>,
    links: Vec<SharedLink>,
    refused: Vec<Arc<RefusedRecord>>,
    /// The workloads of identities that the node meets.
    groups: Vec<Group>,
    /// The node's own workloads of other identities.
    workloads: Vec<Arc<WorkloadRecord>>,
    /// The workloads that quarantines name.
    quarantined: HashMap<WorkloadId, QuarantineState>,
    drains: Drains,
}

/// A link, whose ACL is shared with the world.
#[derive(Debug)]
struct SharedLink {
    network: NetworkName,
    from: IdentityId,
    to: IdentityId,
    acl: Arc<Acl>,
}

impl ViewParts {
    /// Returns the number of the view's resources.
    pub fn count(&self) -> usize {
        let met: usize = self.groups.iter().map(|group| group.len()).sum();
        self.resources.len() + self.links.len() + self.refused.len() + met + self.workloads.len()
    }

    /// Makes the view.
    pub fn into_view(self) -> View {
        let links = self.links.into_iter().map(|SharedLink { network, from, to, acl }| {
            (ResourceKey::Link(network, from, to), Resource::Link(Arc::unwrap_or_clone(acl)))
        });
        let refused = self.refused.iter().map(|record| refused_resource(record));
        let workloads = self.groups.iter().flat_map(|group| group.values()).chain(&self.workloads);
        let workloads = workloads.map(|record| {
            let quarantine = self.quarantined.get(&record.id).copied().unwrap_or_default();
            let draining = self.drains.of(record).is_some();
            workload_resource(record, WorkloadState { quarantine, draining })
        });
        let resources =
            self.resources.into_iter().chain(links).chain(refused).chain(workloads).collect();
        View { revision: self.revision, resources }
    }
}

impl World {
    /// Returns the view of a node; empty for one that is not a member.
    pub fn view_of(&self, node: &NodeName) -> View {
        self.view_parts(node).into_view()
    }

    /// Returns the parts of [`Self::view_of`].
    pub fn view_parts(&self, node: &NodeName) -> ViewParts {
        let named = self.quarantines.workloads();
        let quarantined = named.map(|id| (id.clone(), self.quarantines.state_of(id))).collect();
        let (revision, drains) = (self.revision, self.drains.clone());
        let mut parts = ViewParts { revision, quarantined, drains, ..ViewParts::default() };
        let Some(node) = self.nodes.index(node) else { return parts };
        for network in self.networks.values() {
            let all = self.resources_of(network);
            if let Some(own) = all.own_network(node) {
                parts.resources.push(own);
                parts.resources.extend(all.triggers());
                add(&all, node, &mut parts);
            }
        }
        parts
    }

    fn resources_of<'a>(&'a self, network: &'a NetworkState) -> NetworkResources<'a> {
        let Self { nodes, quarantines, drains, .. } = self;
        NetworkResources { network, nodes, quarantines, drains }
    }

    /// Returns the digest of [`Self::view_of`], from those of its parts.
    pub fn digest_of(&self, node: &NodeName) -> Digest {
        let mut digest = Digest::default();
        let Some(node) = self.nodes.index(node) else { return digest };
        for network in self.networks.values() {
            let all = self.resources_of(network);
            if let Some((key, resource)) = all.own_network(node) {
                digest.add(Hash128::of(&key, &resource));
                all.triggers().for_each(|(key, resource)| digest.add(Hash128::of(&key, &resource)));
                digest.join(digest_in(&all, node));
            }
        }
        digest
    }
}

/// The parts of a network that a node needs to know.
struct Needs {
    own: BTreeSet<IdentityId>,
    met: BTreeSet<IdentityId>,
    /// The identities of which the node knows all workloads.
    met_widely: BTreeSet<IdentityId>,
    links: BTreeSet<(IdentityId, IdentityId)>,
}

impl Needs {
    fn of(network: &NetworkState, node: NodeIndex) -> Self {
        let own: BTreeSet<IdentityId> = network.identities_on(node).collect();
        let (mut met, mut links) = (BTreeSet::new(), BTreeSet::new());
        for &identity in &own {
            links.extend(network.links.leaving(identity).map(|(to, _)| (identity, to)));
            links.extend(network.links.arriving(identity).map(|(from, _)| (from, identity)));
            met.extend(network.links.neighbours(identity));
        }
        let met_widely =
            met.iter().copied().filter(|other| network.meets_widely(node, *other)).collect();
        Self { own, met, met_widely, links }
    }
}

fn add(all: &NetworkResources, node: NodeIndex, parts: &mut ViewParts) {
    let (network, name) = (all.network, all.name());
    let Needs { own, met, met_widely, links } = Needs::of(network, node);
    parts.links.extend(links.into_iter().filter_map(|(from, to)| {
        let acl = network.links.acl(from, to)?.clone();
        Some(SharedLink { network: name.clone(), from, to, acl })
    }));
    parts.refused.extend(network.refused_on(node).cloned());
    parts.resources.extend(network.services_on(node).filter_map(|own| all.service(own)));
    parts.resources.extend(own.union(&met).filter_map(|identity| all.identity(*identity)));
    let groups = met_widely.iter().filter_map(|identity| network.group(*identity).cloned());
    parts.groups.extend(groups);
    let unmet = network.workloads_on(node).filter(|record| !met_widely.contains(&record.identity));
    parts.workloads.extend(unmet.cloned());
    let known = known_by_subsets(network, node).map(|own| all.workload_for(node, own));
    parts.resources.extend(known);
    let peers = peers(all, node, &met_widely);
    parts.resources.extend(peers.iter().filter_map(|peer| all.peer(peer)));
}

fn digest_in(all: &NetworkResources, node: NodeIndex) -> Digest {
    let network = all.network;
    let Needs { own, met, met_widely, links } = Needs::of(network, node);
    let links = links
        .into_iter()
        .filter_map(|(from, to)| Some(all.link(from, to, network.links.acl(from, to)?)));
    let identities = own.union(&met).filter_map(|identity| all.identity(*identity));
    let unmet = network.workloads_on(node).filter(|record| !met_widely.contains(&record.identity));
    let known = known_by_subsets(network, node).map(|own| all.workload_for(node, own));
    let refused = network.refused_on(node).map(|record| refused_resource(record));
    let resources =
        links.chain(identities).chain(refused).chain(unmet.map(|record| all.workload(record)));
    let resources = resources.chain(known);
    let services = network.services_on(node).filter_map(|own| all.service(own));
    let resources = resources.chain(services);
    let mut digest: Digest =
        resources.map(|(key, resource)| Hash128::of(&key, &resource)).collect();
    for identity in &met_widely {
        digest.join(network.digest_of(*identity));
    }
    let peers = peers(all, node, &met_widely);
    peers.iter().filter_map(|peer| network.peer(peer)).for_each(|hash| digest.add(hash));
    digest
}

/// Returns the workloads that a node knows because of subsets alone.
fn known_by_subsets(
    network: &NetworkState,
    node: NodeIndex,
) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
    network.narrowing.known_to(node).filter_map(|id| network.workloads.get(id))
}

/// Returns the peers of a node: the other nodes that run a workload that it knows.
fn peers(all: &NetworkResources, node: NodeIndex, met_widely: &BTreeSet<IdentityId>) -> NodeSet {
    let network = all.network;
    let mut peers: NodeSet =
        met_widely.iter().filter_map(|identity| network.hosts(*identity)).collect();
    let hosts = known_by_subsets(network, node).filter_map(|own| all.nodes.index(&own.node));
    peers.extend(hosts);
    peers.remove(node);
    peers
}
