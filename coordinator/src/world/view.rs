//! The whole view of a node: what a snapshot is made from, and what deltas are tested against.

use super::{World, deltas::Items, network::NetworkState};
use meshward_model::{
    IdentityId, Item, ItemKey, NodeName, View,
    view::{Digest, Hash128},
};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// The view of a node; empty for one that is not a member.
    pub fn view_of(&self, node: &NodeName) -> View {
        let mut items = BTreeMap::new();
        if let Some(node) = self.nodes.index(node) {
            for network in self.networks.values() {
                let all = Items { network, nodes: &self.nodes, quarantines: &self.quarantines };
                if let Some((key, item)) = all.own_network(node) {
                    items.insert(key, item);
                    items.extend(all.triggers());
                    add(&all, node, &mut items);
                }
            }
        }
        View { revision: self.revision, items }
    }

    /// The digest of [`Self::view_of`], from those of its parts.
    pub fn digest_of(&self, node: &NodeName) -> Digest {
        let mut digest = Digest::default();
        let Some(node) = self.nodes.index(node) else { return digest };
        for network in self.networks.values() {
            let all = Items { network, nodes: &self.nodes, quarantines: &self.quarantines };
            if let Some((key, item)) = all.own_network(node) {
                digest.add(Hash128::of(&key, &item));
                all.triggers().for_each(|(key, item)| digest.add(Hash128::of(&key, &item)));
                digest.join(digest_in(&all, node));
            }
        }
        digest
    }
}

/// What a node needs to know of a network.
struct Needs {
    own: BTreeSet<IdentityId>,
    met: BTreeSet<IdentityId>,
    links: BTreeSet<(IdentityId, IdentityId)>,
}

impl Needs {
    fn of(network: &NetworkState, node: u32) -> Self {
        let own: BTreeSet<IdentityId> = network.identities_on(node).collect();
        let (mut met, mut links) = (BTreeSet::new(), BTreeSet::new());
        for &identity in &own {
            links.extend(network.links.leaving(identity).map(|(to, _)| (identity, to)));
            links.extend(network.links.arriving(identity).map(|(from, _)| (from, identity)));
            met.extend(network.links.neighbours(identity));
        }
        Self { own, met, links }
    }
}

fn add(all: &Items, node: u32, items: &mut BTreeMap<ItemKey, Item>) {
    let network = all.network;
    let Needs { own, met, links } = Needs::of(network, node);
    for (from, to) in links {
        items.extend(network.links.acl(from, to).map(|acl| all.link(from, to, acl)));
    }
    items.extend(network.refused_on(node).map(|record| all.refused(record)));
    items.extend(own.union(&met).filter_map(|identity| all.identity(*identity)));
    let met_workloads = met.iter().flat_map(|identity| network.workloads_of(*identity));
    items.extend(network.workloads_on(node).chain(met_workloads).map(|record| all.workload(record)));
    let hosts = met.iter().filter_map(|identity| network.hosts(*identity)).flatten();
    let peers: BTreeSet<u32> = hosts.filter(|host| *host != node).collect();
    items.extend(peers.into_iter().filter_map(|peer| all.peer(peer)));
}

fn digest_in(all: &Items, node: u32) -> Digest {
    let network = all.network;
    let Needs { own, met, links } = Needs::of(network, node);
    let links =
        links.into_iter().filter_map(|(from, to)| Some(all.link(from, to, network.links.acl(from, to)?)));
    let identities = own.union(&met).filter_map(|identity| all.identity(*identity));
    let unmet = network.workloads_on(node).filter(|record| !met.contains(&record.identity));
    let refused = network.refused_on(node).map(|record| all.refused(record));
    let items = links.chain(identities).chain(refused).chain(unmet.map(|record| all.workload(record)));
    let mut digest: Digest = items.map(|(key, item)| Hash128::of(&key, &item)).collect();
    met.iter().for_each(|identity| digest.join(network.digest_of(*identity)));
    let mut peers = network.meeting(node);
    peers.remove(node);
    // Whom a node meets, meets it: links are kept by both ends.
    peers.iter().filter_map(|peer| network.peer(peer)).for_each(|hash| digest.add(hash));
    digest
}
