//! Changes of subsets by load. They are no records: another coordinator, or this one after a
//! restart, finds them out from what nodes report.

use super::{deltas::Deltas, state::World};
use crate::{loads::FanOutChange, subsets::Linked};
use meshward_control_proto::{InstanceLoad, ResourceKey, view::ResourceHashes};
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use std::collections::BTreeMap;

/// A pair that has left the subsets of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaving {
    /// The network.
    pub network: NetworkName,
    /// The service.
    pub service: ServiceName,
    /// The pair.
    pub linked: Linked,
}

impl World {
    /// Sets the fan-outs of clients whose service has `fan_out: auto`. Returns the deltas, at the
    /// world's revision.
    pub fn set_fan_outs(&mut self, changes: &[FanOutChange]) -> Deltas {
        let mut deltas = Deltas::default();
        let mut by_network: BTreeMap<&NetworkName, Vec<&FanOutChange>> = BTreeMap::new();
        for change in changes {
            by_network.entry(&change.network).or_default().push(change);
        }
        for (network, changes) in by_network {
            self.with_builder(network, &mut deltas, |builder| builder.set_fan_outs(&changes));
        }
        deltas
    }

    /// Returns the pairs that have left the subsets of services, and may have flows.
    pub fn leaving(&self) -> impl Iterator<Item = Leaving> {
        self.networks.iter().flat_map(|(network, state)| {
            state.narrowing.services().flat_map(move |(service, state)| {
                state.leaving().map(move |linked| Leaving {
                    network: network.clone(),
                    service: service.clone(),
                    linked: linked.clone(),
                })
            })
        })
    }

    /// Keeps workloads that a node knew before its session as ones that have left its subsets, where
    /// subsets may have been the reason: so that a coordinator that is restarted, or that takes
    /// over, cuts none of their flows. Returns the deltas, at the world's revision.
    pub fn adopt(&mut self, node: &NodeName, known: &ResourceHashes) -> Deltas {
        let mut deltas = Deltas::default();
        let Some(index) = self.nodes.index(node) else { return deltas };
        let mut by_network: BTreeMap<&NetworkName, Vec<&WorkloadId>> = BTreeMap::new();
        for key in known.keys() {
            if let ResourceKey::Workload(network, id) = key {
                by_network.entry(network).or_default().push(id);
            }
        }
        for (network, ids) in by_network {
            let narrows =
                self.networks.get(network).is_some_and(|state| !state.narrowing.is_empty());
            if narrows {
                self.with_builder(network, &mut deltas, |builder| {
                    builder.adopt(index, ids.into_iter());
                });
            }
        }
        deltas
    }

    /// Releases pairs that have left the subsets of services: they have no flows any more. Returns
    /// the deltas, at the world's revision.
    pub fn release(&mut self, pairs: &[Leaving]) -> Deltas {
        let mut deltas = Deltas::default();
        for Leaving { network, service, linked } in pairs {
            let only = std::slice::from_ref(linked);
            self.with_builder(network, &mut deltas, |builder| builder.release(service, only));
        }
        deltas
    }

    /// Returns `true` if a node may have flows with an instance through a service, so that it can
    /// report its load.
    pub fn may_report(&self, node: &NodeName, load: &InstanceLoad) -> bool {
        let known = || {
            let network = self.networks.get(&load.network)?;
            let record = network.workloads.get(&load.instance)?;
            network.links.policy().service(&load.service)?;
            let node = self.nodes.index(node)?;
            let is_known = network.narrowing.knows(node, &load.instance)
                || network.meets_widely(node, record.identity);
            is_known.then_some(())
        };
        known().is_some()
    }
}
