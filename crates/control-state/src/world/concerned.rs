//! The nodes that services concern: those that run an instance, and those with an identity from
//! which a link leads to an instance. A service exists for nodes while the policy has it and it has
//! addresses.

use super::{
    network::NetworkState,
    node_set::{NodeIndex, NodeSet},
};
use meshward_policy::Service;
use meshward_types::IdentityId;
use std::collections::BTreeSet;

impl NetworkState {
    /// Returns a service of the policy by its position.
    pub(super) fn service_at(&self, position: usize) -> Option<&Service> {
        self.links.policy().services.get(position)
    }

    /// Returns the positions of the services that select an identity.
    pub(super) fn services_of(&self, identity: IdentityId) -> Vec<usize> {
        let labels = self.links.labels(identity);
        labels.map(|labels| self.services.select(labels)).unwrap_or_default()
    }

    /// Returns the positions of the services that an identity is an instance of, or has a link to.
    pub(super) fn services_around(&self, identity: IdentityId) -> BTreeSet<usize> {
        let reached = self.links.leaving(identity).map(|(to, _)| to);
        reached.chain([identity]).flat_map(|id| self.services_of(id)).collect()
    }

    /// Returns the positions of the services that concern a node.
    pub(super) fn services_needed(&self, node: NodeIndex) -> BTreeSet<usize> {
        self.identities_on(node).flat_map(|identity| self.services_around(identity)).collect()
    }

    /// Returns the nodes that a service concerns, from the links.
    pub(super) fn nodes_concerned(&self, service: &Service) -> NodeSet {
        if self.services.record(&service.name).is_none() {
            return NodeSet::default();
        }
        let instances = self.links.select(&service.instances);
        let clients = instances.iter().flat_map(|id| self.links.arriving(*id)).map(|(id, _)| id);
        let all: BTreeSet<IdentityId> = clients.chain(instances.iter().copied()).collect();
        all.into_iter().filter_map(|id| self.hosts(id)).collect()
    }

    /// Returns the services of the policy that concern a node.
    pub(super) fn services_on(&self, node: NodeIndex) -> impl Iterator<Item = &Service> {
        let concerns = move |service: &&Service| {
            self.services.concerned(&service.name).is_some_and(|nodes| nodes.contains(node))
        };
        self.links.policy().services.iter().filter(concerns)
    }

    /// Finds the nodes that each service concerns, after the network was loaded.
    pub(super) fn find_concerned(&mut self) {
        let policy = self.links.policy().clone();
        for service in &policy.services {
            let nodes = self.nodes_concerned(service);
            self.services.set_concerned(&service.name, nodes);
        }
    }
}
