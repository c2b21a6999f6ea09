//! The members of subsets: clients' nodes and instances, as they come and change.

use super::{
    deltas::DeltaBuilder, narrowing::Located, network::NetworkState, node_set::NodeIndex,
    nodes::Nodes,
};
use crate::{records::WorkloadRecord, subsets::Instance};
use meshward_types::{InstanceStates, ServiceName, WorkloadId};
use std::collections::BTreeSet;

impl NetworkState {
    /// Makes a node a client of services, or no longer one, by the identities that it runs.
    pub(super) fn update_client(
        &mut self,
        nodes: &Nodes,
        node: NodeIndex,
        services: &BTreeSet<ServiceName>,
    ) {
        for name in services {
            let is_client =
                self.identities_on(node).any(|identity| self.narrowing.uses(identity, name));
            match nodes.name(node) {
                Some(node_name) if is_client => {
                    let at = Located { node: node_name, site: nodes.site(node) };
                    self.narrowing.put_client(name, node, at);
                }
                _ => self.narrowing.remove_client(name, node),
            }
        }
    }

    /// Makes a workload an instance of services, or changes it.
    pub(super) fn put_instance(
        &mut self,
        nodes: &Nodes,
        id: &WorkloadId,
        services: &BTreeSet<ServiceName>,
    ) {
        let Some(record) = self.workloads.get(id).cloned() else { return };
        let Some(node) = nodes.index(&record.node) else { return };
        let Some(labels) = self.links.labels(record.identity) else { return };
        let (site, states) = (nodes.site(node), self.states(&record));
        for name in services {
            if let Some(weight) = self.narrowing.service(name).map(|own| own.weight_of(labels)) {
                let serving = states.serving(name);
                let instance = Instance { id, node: node.0, site, weight, serving };
                self.narrowing.put_instance(name, instance);
            }
        }
    }

    /// Returns the states of a workload as an instance of services. One that a quarantine names is
    /// reached by nobody.
    fn states(&self, record: &WorkloadRecord) -> InstanceStates {
        let state = self.state(&record.id);
        let states = state.states(record);
        InstanceStates { draining: states.draining || state.quarantine.quarantined, ..states }
    }
}

impl DeltaBuilder<'_> {
    /// Appends what the state or the record of a workload, which has changed, means for nodes that
    /// know subsets.
    pub(super) fn instance_changed(&mut self, record: &WorkloadRecord) {
        let selecting: BTreeSet<ServiceName> =
            self.network.narrowing.selecting(record.identity).cloned().collect();
        if selecting.is_empty() {
            return;
        }
        self.network.put_instance(self.nodes, &record.id, &selecting);
        let doubts = self.network.settle(self.nodes, None);
        self.resolve(doubts, None);
    }

    /// Appends what the site of a node, which has changed, means for nodes that know subsets.
    pub(super) fn site_changed(&mut self, node: NodeIndex) {
        if self.network.narrowing.is_empty() {
            return;
        }
        let identities: Vec<_> = self.network.identities_on(node).collect();
        let narrowing = &self.network.narrowing;
        let used: BTreeSet<ServiceName> =
            identities.iter().flat_map(|own| narrowing.used_by(*own)).cloned().collect();
        self.network.update_client(self.nodes, node, &used);
        let own: Vec<_> = self.network.workloads_on(node).cloned().collect();
        for record in own {
            let selecting = self.network.narrowing.selecting(record.identity).cloned().collect();
            self.network.put_instance(self.nodes, &record.id, &selecting);
        }
        let doubts = self.network.settle(self.nodes, None);
        self.resolve(doubts, None);
    }
}
