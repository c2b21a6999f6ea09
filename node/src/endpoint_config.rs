//! The configuration of endpoints, from the resources of the view.

use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec, WorkloadSpec},
};
use meshward_datapath::{
    ConfigChange, Link, NetworkConfig, PeerConfig, PeerSite, Quarantine, WorkloadConfig,
};
use meshward_types::Serving;

/// Returns what changes of the view of one network mean for its endpoint.
pub(crate) fn config_changes<'a>(
    changes: impl IntoIterator<Item = &'a Change>,
) -> impl Iterator<Item = ConfigChange> {
    changes.into_iter().filter_map(|change| match change {
        Change::Put(key, resource) => put(key, resource),
        Change::Drop(key) => removal(key),
        // The replica has made drops of it.
        Change::Forget(..) => None,
    })
}

fn put(key: &ResourceKey, resource: &Resource) -> Option<ConfigChange> {
    Some(match (key, resource) {
        (ResourceKey::Network(_), Resource::Network(spec)) => {
            ConfigChange::SetNetwork(network(spec))
        }
        (ResourceKey::Peer(_, node), Resource::Peer(spec)) => {
            ConfigChange::PutPeer(node.clone(), peer(spec))
        }
        (ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
            let IdentitySpec { quarantined, reset, .. } = *spec;
            ConfigChange::PutIdentity(*id, quarantine(quarantined, reset))
        }
        (ResourceKey::Workload(_, id), Resource::Workload(spec)) => {
            ConfigChange::PutWorkload(id.clone(), workload(spec))
        }
        (&ResourceKey::Link(_, from, to), Resource::Link(acl)) => {
            ConfigChange::PutLink(Link { from, to }, acl.clone())
        }
        _ => return None,
    })
}

/// Returns what it means for an endpoint that a resource is dropped from the view.
pub(crate) fn removal(key: &ResourceKey) -> Option<ConfigChange> {
    match key {
        ResourceKey::Peer(_, node) => Some(ConfigChange::RemovePeer(node.clone())),
        ResourceKey::Identity(_, id) => Some(ConfigChange::RemoveIdentity(*id)),
        ResourceKey::Workload(_, id) => Some(ConfigChange::RemoveWorkload(id.clone())),
        &ResourceKey::Link(_, from, to) => Some(ConfigChange::RemoveLink(Link { from, to })),
        // An endpoint is stopped with its network; the others are not of the data path.
        ResourceKey::Network(_)
        | ResourceKey::Trigger(..)
        | ResourceKey::Refused(..)
        | ResourceKey::Service(..) => None,
    }
}

fn network(spec: &NetworkSpec) -> NetworkConfig {
    let NetworkSpec { prefixes, mtu, conduct, .. } = spec;
    NetworkConfig {
        prefixes: prefixes.clone(),
        service_blocks: vec![],
        mtu: *mtu,
        conduct: *conduct,
    }
}

fn peer(spec: &PeerSpec) -> PeerConfig {
    let PeerSpec { public_key, candidates, prefixes, .. } = spec;
    PeerConfig {
        public_key: *public_key,
        candidates: candidates.clone(),
        prefixes: prefixes.clone(),
        site: PeerSite::Other,
    }
}

fn workload(spec: &WorkloadSpec) -> WorkloadConfig {
    let WorkloadSpec { node, addresses, prefixes, identity, quarantined, reset, .. } = spec;
    WorkloadConfig {
        node: node.clone(),
        addresses: addresses.clone(),
        prefixes: prefixes.clone(),
        identity: *identity,
        quarantine: quarantine(*quarantined, *reset),
        serving: Serving::Ready,
    }
}

fn quarantine(quarantined: bool, reset: bool) -> Quarantine {
    match (quarantined, reset) {
        (false, _) => Quarantine::None,
        (true, false) => Quarantine::Silent,
        (true, true) => Quarantine::Reset,
    }
}
