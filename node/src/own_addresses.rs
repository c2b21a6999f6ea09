//! The addresses that the view gives to workloads of this node, so that an attach does not search
//! the view for them.

use meshward_control_proto::{Resource, ResourceKey};
use meshward_types::{NetworkName, NodeName, WorkloadId};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

/// The addresses of this node's workloads by network.
#[derive(Default)]
pub(crate) struct OwnAddresses(HashMap<NetworkName, HashMap<WorkloadId, Vec<IpAddr>>>);

impl OwnAddresses {
    /// Notes the resource under a key; `None`: it is gone.
    pub(crate) fn note(&mut self, node: &NodeName, key: &ResourceKey, resource: Option<&Resource>) {
        let ResourceKey::Workload(network, id) = key else { return };
        match resource {
            Some(Resource::Workload(spec)) if spec.node == *node => {
                let own = self.0.entry(network.clone()).or_default();
                own.insert(id.clone(), spec.addresses.clone());
            }
            _ => {
                if let Some(own) = self.0.get_mut(network) {
                    own.remove(id);
                    if own.is_empty() {
                        self.0.remove(network);
                    }
                }
            }
        }
    }

    /// Returns the addresses in a network.
    pub(crate) fn of(&self, network: &NetworkName) -> HashSet<IpAddr> {
        self.0.get(network).into_iter().flat_map(HashMap::values).flatten().copied().collect()
    }
}
