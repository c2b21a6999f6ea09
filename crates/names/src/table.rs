//! The table of a network's names.

use crate::{
    entry::{NameChange, NamedService, NamedWorkload, NetworkNames},
    reach::Reach,
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use meshward_types::WorkloadId;
use std::{net::IpAddr, sync::Arc};

/// The holder of a name.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// A service's name goes before those of workloads.
    pub(crate) service: Option<Arc<NamedService>>,
    pub(crate) workloads: Vec<Instance>,
}

/// A workload in the table.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: WorkloadId,
    pub(crate) workload: Arc<NamedWorkload>,
}

/// The name of an address.
#[derive(Debug, Clone)]
pub(crate) enum AddressHolder {
    Workload(Instance),
    Service(Box<str>),
}

/// The names of a network.
#[derive(Debug)]
pub struct Names {
    pub(crate) network: NetworkNames,
    /// The serial number of the zone.
    pub(crate) serial: u32,
    pub(crate) hosts: HashMap<Box<str>, Host, RandomState>,
    pub(crate) addresses: HashMap<IpAddr, AddressHolder, RandomState>,
    pub(crate) reach: Reach,
    workloads: HashMap<WorkloadId, Arc<NamedWorkload>, RandomState>,
}

impl Names {
    /// Names of a network of which nothing else is known.
    pub fn new(network: NetworkNames) -> Self {
        Self {
            network,
            serial: 0,
            hosts: HashMap::default(),
            addresses: HashMap::default(),
            reach: Reach::default(),
            workloads: HashMap::default(),
        }
    }

    /// Returns the network, as its names are answered.
    pub fn network(&self) -> &NetworkNames {
        &self.network
    }

    /// Replaces the network's settings.
    pub fn set_network(&mut self, network: NetworkNames) {
        self.network = network;
    }

    /// Sets the serial number of the zone, which grows with each change (RFC 1982).
    pub fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
    }

    /// Makes a change.
    pub fn apply(&mut self, change: NameChange) {
        match change {
            NameChange::PutWorkload(id, workload) => self.put_workload(id, workload),
            NameChange::RemoveWorkload(id) => self.remove_workload(&id),
            NameChange::PutService(name, service) => {
                self.put_service(name.as_str().into(), service);
            }
            NameChange::RemoveService(name) => self.remove_service(name.as_str()),
            NameChange::PutIdentity { id, is_quarantined } => {
                self.reach.put_identity(id, is_quarantined);
            }
            NameChange::RemoveIdentity(id) => self.reach.remove_identity(id),
            NameChange::PutLink { from, to, acl } => self.reach.put_link(from, to, acl),
            NameChange::RemoveLink { from, to } => self.reach.remove_link(from, to),
        }
    }

    fn put_workload(&mut self, id: WorkloadId, workload: NamedWorkload) {
        self.remove_workload(&id);
        let workload = Arc::new(workload);
        let instance = Instance { id: id.clone(), workload: workload.clone() };
        if let Some(name) = &workload.name {
            let host = self.hosts.entry(name.as_str().into()).or_default();
            host.workloads.push(instance.clone());
        }
        for address in &workload.addresses {
            self.addresses.insert(*address, AddressHolder::Workload(instance.clone()));
        }
        self.workloads.insert(id, workload);
    }

    fn remove_workload(&mut self, id: &WorkloadId) {
        let Some(workload) = self.workloads.remove(id) else { return };
        for address in &workload.addresses {
            match self.addresses.get(address) {
                Some(AddressHolder::Workload(own)) if own.id == *id => {
                    self.addresses.remove(address);
                }
                _ => {}
            }
        }
        if let Some(name) = &workload.name {
            self.change_host(name.as_str(), |host| {
                if let Some(at) = host.workloads.iter().position(|own| own.id == *id) {
                    host.workloads.swap_remove(at);
                }
            });
        }
    }

    fn put_service(&mut self, name: Box<str>, service: NamedService) {
        self.remove_service(&name);
        for address in &service.addresses {
            self.addresses.insert(*address, AddressHolder::Service(name.clone()));
        }
        self.hosts.entry(name).or_default().service = Some(Arc::new(service));
    }

    fn remove_service(&mut self, name: &str) {
        let service = self.hosts.get_mut(name).and_then(|host| host.service.take());
        for address in service.iter().flat_map(|service| &service.addresses) {
            match self.addresses.get(address) {
                Some(AddressHolder::Service(own)) if **own == *name => {
                    self.addresses.remove(address);
                }
                _ => {}
            }
        }
        self.change_host(name, |_| {});
    }

    /// Changes the holder of a name, and forgets the name if nobody holds it any more.
    fn change_host(&mut self, name: &str, change: impl FnOnce(&mut Host)) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        change(host);
        if host.service.is_none() && host.workloads.is_empty() {
            self.hosts.remove(name);
        }
    }
}
