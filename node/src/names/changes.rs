//! The changes of names that follow from changes of a network's view and of the configuration of
//! its endpoint, which has worked out the instances of services.

use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, WorkloadSpec},
};
use meshward_datapath::{ConfigChange, ServiceConfig};
use meshward_names::{NameChange, NamedService, NamedWorkload};

/// Returns what a change of the view means for names.
pub(super) fn of_view(change: &Change) -> Option<NameChange> {
    match change {
        Change::Put(key, resource) => of_put(key, resource),
        Change::Drop(key) => of_drop(key),
        // The replica has made drops of it.
        Change::Forget(..) => None,
    }
}

/// Returns what a change of an endpoint's configuration means for the names of services.
pub(crate) fn of_config(change: &ConfigChange) -> Option<NameChange> {
    match change {
        ConfigChange::PutService(name, config) => {
            let ServiceConfig { addresses, ports, identities, .. } = config;
            let (addresses, ports, identities) =
                (addresses.clone(), ports.clone(), identities.clone());
            let service = NamedService { addresses, ports, identities };
            Some(NameChange::PutService(name.clone(), service))
        }
        ConfigChange::RemoveService(name) => Some(NameChange::RemoveService(name.clone())),
        _ => None,
    }
}

fn of_put(key: &ResourceKey, resource: &Resource) -> Option<NameChange> {
    match (key, resource) {
        (ResourceKey::Workload(_, id), Resource::Workload(spec)) => {
            Some(NameChange::PutWorkload(id.clone(), workload(spec)))
        }
        (ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
            let IdentitySpec { quarantined: is_quarantined, .. } = *spec;
            Some(NameChange::PutIdentity { id: *id, is_quarantined })
        }
        (&ResourceKey::Link(_, from, to), Resource::Link(acl)) => {
            Some(NameChange::PutLink { from, to, acl: acl.clone() })
        }
        _ => None,
    }
}

fn of_drop(key: &ResourceKey) -> Option<NameChange> {
    match key {
        ResourceKey::Workload(_, id) => Some(NameChange::RemoveWorkload(id.clone())),
        ResourceKey::Identity(_, id) => Some(NameChange::RemoveIdentity(*id)),
        &ResourceKey::Link(_, from, to) => Some(NameChange::RemoveLink { from, to }),
        ResourceKey::Network(_)
        | ResourceKey::Peer(..)
        | ResourceKey::Service(..)
        | ResourceKey::Trigger(..)
        | ResourceKey::Refused(..) => None,
    }
}

fn workload(spec: &WorkloadSpec) -> NamedWorkload {
    NamedWorkload {
        name: spec.name.clone(),
        addresses: spec.addresses.clone(),
        identity: spec.identity,
        is_quarantined: spec.quarantined,
    }
}
