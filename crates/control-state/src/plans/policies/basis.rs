//! The basis that policies are worked out on, beside the world.

use crate::{
    Refusal,
    records::QuarantineRecord,
    world::{NetworkState, World},
};
use meshward_policy::Ground;
use meshward_types::{NetworkName, PolicyFile, Revision};
use std::{collections::BTreeMap, sync::Arc};

/// The policies, and what their links follow from, at one revision.
#[derive(Debug, Clone)]
pub struct Basis {
    pub revision: Revision,
    pub(super) networks: BTreeMap<NetworkName, NetworkBasis>,
    /// The quarantines that select labels.
    pub(super) quarantines: Vec<QuarantineRecord>,
}

#[derive(Debug, Clone)]
pub(super) struct NetworkBasis {
    pub(super) files: Arc<Vec<PolicyFile>>,
    pub(super) ground: Ground,
}

impl Basis {
    /// The basis of now: some counters for each network.
    pub fn of(world: &World) -> Self {
        let basis = |network: &NetworkState| NetworkBasis {
            files: network.policy_files.clone(),
            ground: network.links.ground().clone(),
        };
        let networks = world.networks.iter().map(|(name, network)| (name.clone(), basis(network)));
        Self {
            revision: world.revision,
            networks: networks.collect(),
            quarantines: world.quarantines.selecting().cloned().collect(),
        }
    }

    pub(super) fn find(&self, name: &NetworkName) -> Result<&NetworkBasis, Refusal> {
        self.networks.get(name).ok_or_else(|| crate::plans::networks::missing(name))
    }
}
