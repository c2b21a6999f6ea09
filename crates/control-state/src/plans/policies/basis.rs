//! The basis: the part of the world on which policies are prepared, without its lock.

use crate::{
    Refusal,
    records::QuarantineRecord,
    world::{NetworkState, World},
};
use meshward_policy::LinkInputs;
use meshward_types::{NetworkName, PolicyFile, Revision};
use std::{collections::BTreeMap, sync::Arc};

/// The policies and the inputs of their links at one revision.
#[derive(Debug, Clone)]
pub struct Basis {
    /// The revision.
    pub revision: Revision,
    pub(super) networks: BTreeMap<NetworkName, NetworkBasis>,
    /// The quarantines that select labels.
    pub(super) quarantines: Vec<QuarantineRecord>,
}

#[derive(Debug, Clone)]
pub(super) struct NetworkBasis {
    pub(super) files: Arc<Vec<PolicyFile>>,
    pub(super) inputs: LinkInputs,
}

impl Basis {
    /// Takes the basis from the world, at the cost of some reference counts for each network.
    pub fn of(world: &World) -> Self {
        let basis = |network: &NetworkState| NetworkBasis {
            files: network.policy_files.clone(),
            inputs: network.links.inputs().clone(),
        };
        let networks = world.networks.iter().map(|(name, network)| (name.clone(), basis(network)));
        Self {
            revision: world.revision,
            networks: networks.collect(),
            quarantines: world.quarantines.by_labels().cloned().collect(),
        }
    }

    pub(super) fn find(&self, name: &NetworkName) -> Result<&NetworkBasis, Refusal> {
        self.networks.get(name).ok_or_else(|| crate::plans::networks::missing(name))
    }
}
