//! The deltas of services: nodes that a service comes to concern get it, the others lose it.

use super::{
    deltas::DeltaBuilder,
    node_set::{NodeIndex, NodeSet},
    resources::put,
};
use crate::records::ServiceRecord;
use meshward_control_proto::{Change, ResourceKey};
use meshward_policy::{LinkChange, Policy, PolicyStep, Service};
use meshward_types::{IdentityId, ServiceName};
use std::{collections::BTreeSet, sync::Arc};

/// The services around an identity, before its workload stops.
pub(super) struct ServicesBefore {
    /// The services that select it.
    own: Vec<usize>,
    /// These, and the services that it has a link to.
    around: BTreeSet<usize>,
}

/// The content of a service, for nodes that have it already.
#[derive(Clone, Copy)]
enum Content {
    Known,
    Changed,
}

impl DeltaBuilder<'_> {
    fn service(&self, position: usize) -> Option<Service> {
        self.network.service_at(position).cloned()
    }

    fn service_key(&self, name: &ServiceName) -> ResourceKey {
        ResourceKey::Service(self.network.record.name.clone(), name.clone())
    }

    fn push_service(&mut self, nodes: NodeSet, service: &Service) {
        let changes = self.resources().service(service).into_iter().map(put).collect();
        self.deltas.push(nodes, changes);
    }

    fn push_service_drop(&mut self, nodes: NodeSet, name: &ServiceName) {
        let dropped = Change::Drop(self.service_key(name));
        self.deltas.push(nodes, vec![dropped]);
    }

    /// Finds the nodes that a service concerns now. Appends its end for those that it concerns no
    /// longer, and the service for the others: for all if it has changed.
    fn update_service(&mut self, service: &Service, content: Content) {
        let after = self.network.nodes_concerned(service);
        let before = self.network.services.set_concerned(&service.name, after.clone());
        self.push_service_drop(&before - &after, &service.name);
        let told = match content {
            Content::Known => &after - &before,
            Content::Changed => after,
        };
        self.push_service(told, service);
    }

    /// Appends what the first workload of an identity on a node means for services. `is_new`: the
    /// identity had no workload at all.
    pub(super) fn services_started(&mut self, identity: IdentityId, node: NodeIndex, is_new: bool) {
        if self.network.links.policy().services.is_empty() {
            return;
        }
        if is_new {
            for position in self.network.services_of(identity) {
                let Some(service) = self.service(position) else { continue };
                self.update_service(&service, Content::Known);
            }
        }
        for position in self.network.services_around(identity) {
            let Some(service) = self.service(position) else { continue };
            let is_there = self.network.services.record(&service.name).is_some();
            if is_there && self.network.services.concern(&service.name, node) {
                self.push_service(NodeSet::from_iter([node]), &service);
            }
        }
    }

    /// Returns the services around an identity.
    pub(super) fn services_before(&self, identity: IdentityId) -> ServicesBefore {
        if self.network.links.policy().services.is_empty() {
            return ServicesBefore { own: vec![], around: BTreeSet::new() };
        }
        let own = self.network.services_of(identity);
        ServicesBefore { own, around: self.network.services_around(identity) }
    }

    /// Appends what it means for services that a node has stopped its last workload of an
    /// identity. `ended`: it was the last one of all.
    pub(super) fn services_stopped(
        &mut self,
        before: ServicesBefore,
        node: NodeIndex,
        ended: bool,
    ) {
        let ServicesBefore { own, around } = before;
        if around.is_empty() {
            return;
        }
        if ended {
            for position in own {
                let Some(service) = self.service(position) else { continue };
                self.update_service(&service, Content::Known);
            }
        }
        let needed = self.network.services_needed(node);
        for position in around.difference(&needed) {
            let Some(service) = self.service(*position) else { continue };
            if self.network.services.release(&service.name, node) {
                self.push_service_drop(NodeSet::from_iter([node]), &service.name);
            }
        }
    }

    /// Appends what a change of policy means for services. The links have been changed.
    pub(super) fn services_changed(&mut self, before: &Policy, step: &PolicyStep) {
        let policy: Arc<Policy> = self.network.links.policy().clone();
        if before.services.is_empty() && policy.services.is_empty() {
            return;
        }
        let ends = |LinkChange { to, .. }: &LinkChange| self.network.services_of(*to);
        let touched: BTreeSet<usize> = step.changes.iter().flat_map(ends).collect();
        for gone in before.services.iter().filter(|own| policy.service(&own.name).is_none()) {
            let nodes = self.network.services.set_concerned(&gone.name, NodeSet::default());
            self.push_service_drop(nodes, &gone.name);
        }
        for (position, service) in policy.services.iter().enumerate() {
            if before.service(&service.name) != Some(service) {
                self.update_service(service, Content::Changed);
            } else if touched.contains(&position) {
                self.update_service(service, Content::Known);
            }
        }
    }

    /// Sets the virtual addresses of a service.
    pub(super) fn put_service(&mut self, record: ServiceRecord) {
        let name = record.name.clone();
        let before = self.network.services.put(record);
        let is_same = before.as_ref() == self.network.services.record(&name);
        let service = self.network.links.policy().service(&name).cloned();
        if let Some(service) = service.filter(|_| !is_same && !self.is_muted()) {
            self.update_service(&service, Content::Changed);
        }
    }

    /// Removes the virtual addresses of a service.
    pub(super) fn remove_service(&mut self, name: &ServiceName) {
        self.network.services.remove(name);
        let nodes = self.network.services.set_concerned(name, NodeSet::default());
        self.push_service_drop(nodes, name);
    }
}
