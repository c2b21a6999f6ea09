//! The services of a network: their virtual addresses, and the nodes that each concerns.

use super::node_set::{NodeIndex, NodeSet};
use crate::records::ServiceRecord;
use meshward_policy::{Service, ServiceIndex};
use meshward_types::{Labels, ServiceName};
use std::collections::{BTreeMap, HashMap};

/// The services of a network.
#[derive(Debug, Default)]
pub struct Services {
    records: BTreeMap<ServiceName, ServiceRecord>,
    /// The services of the policy by the labels of their instances.
    index: ServiceIndex,
    /// The nodes that each service concerns.
    concerned: HashMap<ServiceName, NodeSet>,
}

impl Services {
    /// Returns the virtual addresses of all services.
    pub fn records(&self) -> impl Iterator<Item = &ServiceRecord> {
        self.records.values()
    }

    /// Returns the virtual addresses of a service.
    pub fn record(&self, name: &ServiceName) -> Option<&ServiceRecord> {
        self.records.get(name)
    }

    /// Returns the nodes that a service concerns.
    pub fn concerned(&self, name: &ServiceName) -> Option<&NodeSet> {
        self.concerned.get(name)
    }

    /// Returns the positions of the services of the policy that select labels.
    pub(super) fn select(&self, labels: &Labels) -> Vec<usize> {
        self.index.select(labels)
    }

    /// Sets the virtual addresses of a service. Returns those of before.
    pub(super) fn put(&mut self, record: ServiceRecord) -> Option<ServiceRecord> {
        self.records.insert(record.name.clone(), record)
    }

    /// Removes the virtual addresses of a service.
    pub(super) fn remove(&mut self, name: &ServiceName) {
        self.records.remove(name);
    }

    /// Sets the services of the policy.
    pub(super) fn set_policy(&mut self, services: &[Service]) {
        self.index = ServiceIndex::of(services);
    }

    /// Sets the nodes that a service concerns. Returns those of before.
    pub(super) fn set_concerned(&mut self, name: &ServiceName, nodes: NodeSet) -> NodeSet {
        let before = match nodes.is_empty() {
            true => self.concerned.remove(name),
            false => self.concerned.insert(name.clone(), nodes),
        };
        before.unwrap_or_default()
    }

    /// Notes that a service concerns a node. Returns `true` if it did not before.
    pub(super) fn concern(&mut self, name: &ServiceName, node: NodeIndex) -> bool {
        self.concerned.entry(name.clone()).or_default().insert(node)
    }

    /// Notes that a service does not concern a node. Returns `true` if it did before.
    pub(super) fn release(&mut self, name: &ServiceName, node: NodeIndex) -> bool {
        let Some(nodes) = self.concerned.get_mut(name) else { return false };
        let removed = nodes.remove(node);
        if nodes.is_empty() {
            self.concerned.remove(name);
        }
        removed
    }
}
