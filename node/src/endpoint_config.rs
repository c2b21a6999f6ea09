//! The configuration of endpoints, from the resources of the view.

use crate::attachment::Findings;
use meshward_control_proto::{
    Change, Resource, ResourceKey, View,
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec, WorkloadSpec},
};
use meshward_datapath::{
    ConfigChange, Link, NetworkConfig, PeerConfig, PeerSite, Quarantine, ServiceConfig,
    WorkloadConfig,
};
use meshward_types::{
    Health, IdentityId, NetworkName, ServiceName, Weight, WeightRule, WorkloadId,
};
use std::collections::{BTreeMap, BTreeSet};

/// The part of an endpoint's configuration that follows from several resources at once.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    network: NetworkName,
    /// The site of this node.
    site: Option<String>,
    /// The identities that each service's selector matches.
    instances: BTreeMap<ServiceName, BTreeSet<IdentityId>>,
    /// The findings of this node's health checks, which the view has later.
    findings: BTreeMap<WorkloadId, Findings>,
}

impl EndpointConfig {
    /// The configuration of an endpoint that has been told nothing.
    pub(crate) fn new(network: NetworkName) -> Self {
        let (instances, findings) = (BTreeMap::new(), BTreeMap::new());
        Self { network, site: None, instances, findings }
    }

    /// Returns what changes of the view mean for the endpoint. `view` has them already.
    pub(crate) fn changes<'a>(
        &mut self,
        view: &View,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Vec<ConfigChange> {
        let (mut config, mut changed, mut sites_changed) = (Vec::new(), BTreeSet::new(), false);
        for change in changes {
            match change {
                Change::Put(key, resource) => {
                    config.extend(self.put(key, resource));
                    match (key, resource) {
                        (ResourceKey::Network(_), Resource::Network(spec)) => {
                            sites_changed |= self.site != spec.site;
                            self.site.clone_from(&spec.site);
                        }
                        (ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
                            changed.extend(self.note_identity(view, *id, Some(spec)));
                        }
                        (ResourceKey::Service(_, name), Resource::Service(spec)) => {
                            let selected = self.selected(view, spec);
                            self.instances.insert(name.clone(), selected);
                            changed.insert(name.clone());
                        }
                        _ => {}
                    }
                }
                Change::Drop(key) => {
                    config.extend(removal(key));
                    match key {
                        ResourceKey::Identity(_, id) => {
                            changed.extend(self.note_identity(view, *id, None));
                        }
                        ResourceKey::Service(_, name) => _ = self.instances.remove(name),
                        ResourceKey::Workload(_, id) => _ = self.findings.remove(id),
                        _ => {}
                    }
                }
                // The replica has made drops of it.
                Change::Forget(..) => {}
            }
        }
        if sites_changed {
            config.extend(self.peers(view));
        }
        config.extend(changed.into_iter().filter_map(|name| self.put_service(view, name)));
        config
    }

    /// Notes an identity; `None`: it is gone. Returns the services for whose instances that makes a
    /// difference.
    fn note_identity(
        &mut self,
        view: &View,
        id: IdentityId,
        spec: Option<&IdentitySpec>,
    ) -> Vec<ServiceName> {
        let mut changed = Vec::new();
        for (name, instances) in &mut self.instances {
            let service = spec.and_then(|spec| Some((spec, view.service(&self.network, name)?)));
            let is_selected =
                service.is_some_and(|(spec, service)| service.instances.matches(&spec.labels));
            let is_changed = if is_selected { instances.insert(id) } else { instances.remove(&id) };
            // Other labels may have another weight.
            let is_weighted = service.is_some_and(|(_, service)| !service.weights.is_empty());
            if is_changed || is_selected && is_weighted {
                changed.push(name.clone());
            }
        }
        changed
    }

    /// Returns the identities that a service's selector matches.
    fn selected(&self, view: &View, service: &ServiceSpec) -> BTreeSet<IdentityId> {
        let own = view.identities(&self.network);
        own.filter(|(_, spec)| service.instances.matches(&spec.labels)).map(|(id, _)| id).collect()
    }

    fn put_service(&self, view: &View, name: ServiceName) -> Option<ConfigChange> {
        let ServiceSpec { addresses, ports, prefer, affinity, weights, .. } =
            view.service(&self.network, &name)?;
        let identities: Vec<IdentityId> = self.instances.get(&name)?.iter().copied().collect();
        let config = ServiceConfig {
            addresses: addresses.clone(),
            ports: ports.clone(),
            weights: self.weights(view, weights, &identities),
            identities,
            prefer: prefer.clone(),
            affinity: *affinity,
        };
        Some(ConfigChange::PutService(name, config))
    }

    /// Returns the weights of identities that are others than the default.
    fn weights(
        &self,
        view: &View,
        rules: &[WeightRule],
        identities: &[IdentityId],
    ) -> Vec<(IdentityId, Weight)> {
        if rules.is_empty() {
            return vec![];
        }
        let weight = |id: &IdentityId| {
            let labels = &view.identity(&self.network, *id)?.labels;
            Some((*id, WeightRule::weight_of(rules, labels)))
        };
        let all = identities.iter().filter_map(weight);
        all.filter(|(_, weight)| *weight != Weight::default()).collect()
    }

    /// Sets the findings of a workload's health checks. Returns what changes.
    pub(crate) fn set_findings(
        &mut self,
        view: &View,
        id: &WorkloadId,
        findings: &Findings,
    ) -> Option<ConfigChange> {
        let spec = view.workload(&self.network, id)?;
        let before = match findings.is_empty() {
            true => self.findings.remove(id),
            false => self.findings.insert(id.clone(), findings.clone()),
        };
        let is_same = before.unwrap_or_default() == *findings;
        (!is_same).then(|| ConfigChange::PutWorkload(id.clone(), self.workload(id, spec)))
    }

    /// Returns all peers, as changes that put them.
    fn peers(&self, view: &View) -> Vec<ConfigChange> {
        let own = view.resources.iter().filter(|(key, _)| *key.network() == self.network);
        own.filter_map(|(key, resource)| match (key, resource) {
            (ResourceKey::Peer(_, node), Resource::Peer(spec)) => {
                Some(ConfigChange::PutPeer(node.clone(), self.peer(spec)))
            }
            _ => None,
        })
        .collect()
    }

    fn put(&self, key: &ResourceKey, resource: &Resource) -> Option<ConfigChange> {
        Some(match (key, resource) {
            (ResourceKey::Network(_), Resource::Network(spec)) => {
                ConfigChange::SetNetwork(network(spec))
            }
            (ResourceKey::Peer(_, node), Resource::Peer(spec)) => {
                ConfigChange::PutPeer(node.clone(), self.peer(spec))
            }
            (ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
                let IdentitySpec { quarantined, reset, .. } = *spec;
                ConfigChange::PutIdentity(*id, quarantine(quarantined, reset))
            }
            (ResourceKey::Workload(_, id), Resource::Workload(spec)) => {
                ConfigChange::PutWorkload(id.clone(), self.workload(id, spec))
            }
            (&ResourceKey::Link(_, from, to), Resource::Link(acl)) => {
                ConfigChange::PutLink(Link { from, to }, acl.clone())
            }
            _ => return None,
        })
    }

    fn workload(&self, id: &WorkloadId, spec: &WorkloadSpec) -> WorkloadConfig {
        let WorkloadSpec {
            node, addresses, prefixes, identity, quarantined, reset, states, ..
        } = spec;
        let mut states = states.clone();
        for (service, health) in self.findings.get(id).into_iter().flatten() {
            match health {
                Health::Unhealthy => states.unhealthy.insert(service.clone()),
                Health::Healthy => states.unhealthy.remove(service),
            };
        }
        WorkloadConfig {
            node: node.clone(),
            addresses: addresses.clone(),
            prefixes: prefixes.clone(),
            identity: *identity,
            quarantine: quarantine(*quarantined, *reset),
            states,
        }
    }

    fn peer(&self, spec: &PeerSpec) -> PeerConfig {
        let PeerSpec { public_key, candidates, prefixes, site } = spec;
        let is_same = site.is_some() && *site == self.site;
        PeerConfig {
            public_key: *public_key,
            candidates: candidates.clone(),
            prefixes: prefixes.clone(),
            site: if is_same { PeerSite::Same } else { PeerSite::Other },
        }
    }
}

/// Returns what it means for an endpoint that a resource is dropped from the view.
pub(crate) fn removal(key: &ResourceKey) -> Option<ConfigChange> {
    match key {
        ResourceKey::Peer(_, node) => Some(ConfigChange::RemovePeer(node.clone())),
        ResourceKey::Identity(_, id) => Some(ConfigChange::RemoveIdentity(*id)),
        ResourceKey::Workload(_, id) => Some(ConfigChange::RemoveWorkload(id.clone())),
        &ResourceKey::Link(_, from, to) => Some(ConfigChange::RemoveLink(Link { from, to })),
        ResourceKey::Service(_, name) => Some(ConfigChange::RemoveService(name.clone())),
        // An endpoint is stopped with its network; the others are not of the data path.
        ResourceKey::Network(_) | ResourceKey::Trigger(..) | ResourceKey::Refused(..) => None,
    }
}

fn network(spec: &NetworkSpec) -> NetworkConfig {
    let NetworkSpec { prefixes, service_blocks, mtu, conduct, .. } = spec;
    NetworkConfig {
        prefixes: prefixes.clone(),
        service_blocks: service_blocks.clone(),
        mtu: *mtu,
        conduct: *conduct,
    }
}

fn quarantine(quarantined: bool, reset: bool) -> Quarantine {
    match (quarantined, reset) {
        (false, _) => Quarantine::None,
        (true, false) => Quarantine::Silent,
        (true, true) => Quarantine::Reset,
    }
}

#[cfg(test)]
mod tests;
