//! What a node is told: only what a link of one of its own workloads needs.

use crate::world::{NetworkState, World};
use meshward_model::{
    IdentityId, Item, ItemKey, NetworkName, NodeName, View,
    view::{IdentitySpec, NetworkSpec, PeerSpec, WorkloadSpec},
};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// The view of a node; empty for one that is not a member.
    pub fn view_of(&self, node: &NodeName) -> View {
        let mut items = BTreeMap::new();
        let Some(record) = self.nodes.get(node) else {
            return View { revision: self.revision, items };
        };
        for (name, blocks) in &record.blocks {
            let Some(network) = self.networks.get(name) else { continue };
            let spec = NetworkSpec {
                prefixes: network.record.prefixes.clone(),
                blocks: blocks.clone(),
                mtu: network.record.mtu,
            };
            items.insert(ItemKey::Network(name.clone()), Item::Network(spec));
            self.add_links(node, name, network, &mut items);
        }
        View { revision: self.revision, items }
    }

    fn add_links(
        &self,
        node: &NodeName,
        name: &NetworkName,
        network: &NetworkState,
        items: &mut BTreeMap<ItemKey, Item>,
    ) {
        let own: BTreeSet<IdentityId> =
            network.workloads_on(node).map(|workload| workload.identity).collect();
        let mut met = BTreeSet::new();
        for &identity in &own {
            for (to, acl) in network.links.leaving(identity) {
                items.insert(ItemKey::Link(name.clone(), identity, to), Item::Link(acl.clone()));
                met.insert(to);
            }
            for (from, acl) in network.links.arriving(identity) {
                items.insert(ItemKey::Link(name.clone(), from, identity), Item::Link(acl.clone()));
                met.insert(from);
            }
        }
        for workload in network.workloads_on(node) {
            self.add_workload(name, workload, items);
        }
        let mut peers: BTreeMap<&NodeName, Vec<IdentityId>> = BTreeMap::new();
        for &identity in &met {
            for workload in network.workloads_of(identity).filter(|workload| workload.node != *node) {
                self.add_workload(name, workload, items);
            }
            for host in network.hosts(identity).filter(|host| *host != node) {
                peers.entry(host).or_default().push(identity);
            }
        }
        for &identity in own.union(&met) {
            let Some(labels) = network.links.labels(identity) else { continue };
            let quarantined = self.is_quarantined(name, labels);
            let spec = IdentitySpec { labels: labels.clone(), quarantined };
            items.insert(ItemKey::Identity(name.clone(), identity), Item::Identity(spec));
        }
        for (peer, vouches) in peers {
            let Some(record) = self.nodes.get(peer) else { continue };
            let (Some(endpoint), Some(prefixes)) = (record.endpoints.get(name), record.blocks.get(name))
            else {
                continue;
            };
            let spec = PeerSpec {
                public_key: endpoint.public_key,
                candidates: endpoint.candidates.clone(),
                prefixes: prefixes.clone(),
                vouches,
            };
            items.insert(ItemKey::Peer(name.clone(), peer.clone()), Item::Peer(spec));
        }
    }

    fn add_workload(
        &self,
        name: &NetworkName,
        workload: &crate::records::WorkloadRecord,
        items: &mut BTreeMap<ItemKey, Item>,
    ) {
        let alone = self.quarantines.values().any(|q| q.target.workload.as_ref() == Some(&workload.id));
        let spec = WorkloadSpec {
            node: workload.node.clone(),
            addresses: workload.addresses.clone(),
            identity: workload.identity,
            quarantined: alone,
        };
        items.insert(ItemKey::Workload(name.clone(), workload.id.clone()), Item::Workload(spec));
    }
}
