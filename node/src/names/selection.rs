//! The changes of names that follow from changes of a network's view. Services select identities by
//! their labels, so a change of either is one of the services' names.

use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, ServiceSpec, WorkloadSpec},
};
use meshward_names::{NameChange, NamedService, NamedWorkload};
use meshward_types::{IdentityId, Labels, ServiceName};
use std::collections::{BTreeSet, HashMap};

/// The services of a network, and the labels by which they select.
#[derive(Debug, Default)]
pub(crate) struct ServiceSelection {
    labels: HashMap<IdentityId, Labels>,
    services: HashMap<ServiceName, SelectedService>,
}

#[derive(Debug)]
struct SelectedService {
    spec: ServiceSpec,
    identities: BTreeSet<IdentityId>,
}

impl ServiceSelection {
    /// Notes a change of the view, and returns what it means for names.
    pub(crate) fn apply(&mut self, change: &Change) -> Vec<NameChange> {
        match change {
            Change::Put(key, resource) => self.put(key, resource),
            Change::Drop(key) => self.remove(key),
            // The replica has made drops of it.
            Change::Forget(..) => vec![],
        }
    }

    fn put(&mut self, key: &ResourceKey, resource: &Resource) -> Vec<NameChange> {
        match (key, resource) {
            (ResourceKey::Workload(_, id), Resource::Workload(spec)) => {
                vec![NameChange::PutWorkload(id.clone(), workload(spec))]
            }
            (ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
                self.put_identity(*id, spec)
            }
            (ResourceKey::Service(_, name), Resource::Service(spec)) => {
                let selected = self.labels.iter().filter(|(_, own)| spec.instances.matches(own));
                let identities = selected.map(|(id, _)| *id).collect();
                let service = SelectedService { spec: spec.clone(), identities };
                let change = NameChange::PutService(name.clone(), service.named());
                self.services.insert(name.clone(), service);
                vec![change]
            }
            (&ResourceKey::Link(_, from, to), Resource::Link(acl)) => {
                vec![NameChange::PutLink { from, to, acl: acl.clone() }]
            }
            _ => vec![],
        }
    }

    fn put_identity(&mut self, id: IdentityId, spec: &IdentitySpec) -> Vec<NameChange> {
        let is_quarantined = spec.quarantined;
        let mut changes = vec![NameChange::PutIdentity { id, is_quarantined }];
        self.labels.insert(id, spec.labels.clone());
        for (name, service) in &mut self.services {
            let is_selected = service.spec.instances.matches(&spec.labels);
            let has_changed = match is_selected {
                true => service.identities.insert(id),
                false => service.identities.remove(&id),
            };
            if has_changed {
                changes.push(NameChange::PutService(name.clone(), service.named()));
            }
        }
        changes
    }

    fn remove(&mut self, key: &ResourceKey) -> Vec<NameChange> {
        match key {
            ResourceKey::Workload(_, id) => vec![NameChange::RemoveWorkload(id.clone())],
            ResourceKey::Identity(_, id) => {
                self.labels.remove(id);
                let mut changes = vec![NameChange::RemoveIdentity(*id)];
                for (name, service) in &mut self.services {
                    if service.identities.remove(id) {
                        changes.push(NameChange::PutService(name.clone(), service.named()));
                    }
                }
                changes
            }
            ResourceKey::Service(_, name) => {
                self.services.remove(name);
                vec![NameChange::RemoveService(name.clone())]
            }
            &ResourceKey::Link(_, from, to) => vec![NameChange::RemoveLink { from, to }],
            ResourceKey::Network(_)
            | ResourceKey::Peer(..)
            | ResourceKey::Trigger(..)
            | ResourceKey::Refused(..) => vec![],
        }
    }
}

impl SelectedService {
    fn named(&self) -> NamedService {
        NamedService {
            addresses: self.spec.addresses.clone(),
            ports: self.spec.ports.clone(),
            identities: self.identities.iter().copied().collect(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_control_proto::view::IdentitySpec;
    use meshward_types::Affinity;

    fn put_identity(id: u32, labels: &str) -> Change {
        let labels = labels.parse().unwrap();
        let spec = IdentitySpec { labels, accepts: vec![], quarantined: false, reset: false };
        let network = "shop".parse().unwrap();
        Change::Put(ResourceKey::Identity(network, IdentityId(id)), Resource::Identity(spec))
    }

    fn put_service(selector: &str) -> Change {
        let spec = ServiceSpec {
            addresses: vec!["10.20.255.1".parse().unwrap()],
            instances: selector.parse().unwrap(),
            ports: vec![],
            prefer: vec![],
            health: None,
            affinity: Affinity::None,
            weights: vec![],
        };
        let key = ResourceKey::Service("shop".parse().unwrap(), "api".parse().unwrap());
        Change::Put(key, Resource::Service(spec))
    }

    /// The identities of the last change of the service, if there is one.
    fn identities(changes: &[NameChange]) -> Option<Vec<u32>> {
        changes.iter().rev().find_map(|change| match change {
            NameChange::PutService(_, service) => {
                Some(service.identities.iter().map(|id| id.0).collect())
            }
            _ => None,
        })
    }

    #[test]
    fn a_service_has_the_identities_that_its_selector_matches_whatever_comes_first() {
        let mut selection = ServiceSelection::default();
        assert_eq!(identities(&selection.apply(&put_identity(1, "app=api,v=1"))), None);
        assert_eq!(identities(&selection.apply(&put_service("app=api"))), Some(vec![1]));
        assert_eq!(identities(&selection.apply(&put_identity(2, "app=api"))), Some(vec![1, 2]));
        assert_eq!(identities(&selection.apply(&put_identity(3, "app=web"))), None);
        assert_eq!(identities(&selection.apply(&put_identity(2, "app=api"))), None, "as it was");
        let gone = Change::Drop(ResourceKey::Identity("shop".parse().unwrap(), IdentityId(1)));
        assert_eq!(identities(&selection.apply(&gone)), Some(vec![2]));
        assert_eq!(identities(&selection.apply(&put_service("app=web"))), Some(vec![3]));
    }
}
