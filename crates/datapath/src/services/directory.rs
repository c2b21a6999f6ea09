//! The services of an endpoint, and their instances.

use super::{
    choice::{Distance, Instance, Ranking, mix},
    counters::ServiceCounters,
    load::{InstanceLoad, Micros},
    mapping::Socket,
};
use crate::{
    claims::Claims,
    config::{ServiceConfig, WorkloadConfig},
};
use hashbrown::HashMap;
use ipnet::IpNet;
use meshward_types::{
    Affinity, IdentityId, Nearness, Protocol, ServiceName, ServicePort, Weight, WorkloadId,
};
use std::{net::IpAddr, sync::Arc};

/// The locality of a node, as seen from this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locality {
    /// This node itself.
    Here,
    /// Another node of this node's site.
    SameSite,
    /// A node of another site, or of one that is not known.
    Elsewhere,
}

/// A workload that may be an instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described<'a> {
    pub(crate) id: &'a WorkloadId,
    pub(crate) config: &'a WorkloadConfig,
    pub(crate) locality: Locality,
}

/// The addresses of service blocks, in a form in which one is compared at once.
#[derive(Debug, Default)]
struct Blocks {
    v4: Vec<Block<u32>>,
    v6: Vec<Block<u128>>,
}

#[derive(Debug, Clone, Copy)]
struct Block<T> {
    mask: T,
    network: T,
}

/// An instance of a service, and its workload.
#[derive(Debug)]
struct Member {
    load: Arc<InstanceLoad>,
    addresses: Vec<IpAddr>,
}

/// A service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    config: ServiceConfig,
    /// Instances by address family, IPv4 first, in the order of their distances.
    instances: [Vec<Instance>; 2],
    members: HashMap<WorkloadId, Member>,
    pub(crate) counters: Arc<ServiceCounters>,
}

/// A service as clients know it that may stand in front of a socket of an instance.
pub(crate) struct Front<'a> {
    pub(crate) service: &'a Service,
    /// The service's address of the instance's family.
    pub(crate) address: IpAddr,
    pub(crate) port: ServicePort,
    pub(crate) instance: &'a Instance,
}

/// The services of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Services {
    blocks: Blocks,
    numbers: HashMap<ServiceName, u32>,
    by_number: HashMap<u32, Service>,
    addresses: Claims<IpAddr, u32, u32>,
    /// The services that select an identity.
    selecting: HashMap<IdentityId, Vec<u32>>,
    last_number: u32,
}

impl Services {
    /// Sets the prefixes from which services have their addresses.
    pub(crate) fn set_blocks(&mut self, prefixes: &[IpNet]) {
        self.blocks = Blocks::default();
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => {
                    let (mask, network) = (net.netmask().to_bits(), net.network().to_bits());
                    self.blocks.v4.push(Block { mask, network });
                }
                IpNet::V6(net) => {
                    let (mask, network) = (net.netmask().to_bits(), net.network().to_bits());
                    self.blocks.v6.push(Block { mask, network });
                }
            }
        }
    }

    /// Returns whether an address is in a service block: other packets are spared all the rest.
    #[inline]
    pub(crate) fn are_at(&self, address: &IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let address = address.to_bits();
                self.blocks.v4.iter().any(|block| address & block.mask == block.network)
            }
            IpAddr::V6(address) => {
                let address = address.to_bits();
                self.blocks.v6.iter().any(|block| address & block.mask == block.network)
            }
        }
    }

    /// Returns the service that has an address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<&Service> {
        self.by_number.get(self.addresses.get(&address)?)
    }

    /// Returns the services that may stand in front of a TCP socket of an identity.
    pub(crate) fn fronts(&self, identity: IdentityId, socket: Socket) -> Vec<Front<'_>> {
        let Socket { address, port } = socket;
        let numbers = self.selecting.get(&identity).into_iter().flatten();
        let services = numbers.filter_map(|number| self.by_number.get(number));
        let own = services.filter_map(|service| Some((service, service.instance_at(address)?)));
        own.flat_map(|(service, instance)| {
            let ServiceConfig { addresses, ports, .. } = &service.config;
            let addresses = addresses.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
            let is_to = |own: &&ServicePort| own.protocol == Protocol::Tcp && own.target == port;
            addresses.flat_map(move |address| {
                let fronts = ports.iter().filter(is_to);
                fronts.map(move |port| Front { service, address: *address, port: *port, instance })
            })
        })
        .collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.by_number.values()
    }

    /// Adds or changes a service. `workloads`: all that may be instances.
    pub(crate) fn put<'a>(
        &mut self,
        name: ServiceName,
        config: ServiceConfig,
        workloads: impl Iterator<Item = Described<'a>>,
    ) {
        let number = self.numbers.get(&name).copied().unwrap_or_else(|| {
            self.last_number = self.last_number.wrapping_add(1);
            self.last_number
        });
        let before = self.by_number.remove(&number);
        let addresses_before = before.iter().flat_map(|service| &service.config.addresses);
        for address in addresses_before.filter(|address| !config.addresses.contains(address)) {
            self.addresses.remove(address, number);
        }
        for address in &config.addresses {
            self.addresses.put(*address, number, number, |_, _| false);
        }
        self.stop_selecting(number, before.as_ref());
        for identity in &config.identities {
            self.selecting.entry(*identity).or_default().push(number);
        }
        let mut service = Service::new(name.clone(), config, before);
        service.take_in(workloads);
        self.numbers.insert(name, number);
        self.by_number.insert(number, service);
    }

    /// Removes a service.
    pub(crate) fn remove(&mut self, name: &ServiceName) {
        let Some(number) = self.numbers.remove(name) else { return };
        let service = self.by_number.remove(&number);
        self.stop_selecting(number, service.as_ref());
        for address in service.iter().flat_map(|service| &service.config.addresses) {
            self.addresses.remove(address, number);
        }
    }

    /// Applies what the coordinator says of a workload; `None`: it is gone. `before`: the identity
    /// that it had.
    pub(crate) fn put_workload(
        &mut self,
        now: Micros,
        id: &WorkloadId,
        before: Option<IdentityId>,
        workload: Option<Described<'_>>,
    ) {
        if self.by_number.is_empty() {
            return;
        }
        let numbers_of = |identity: Option<IdentityId>| -> Vec<u32> {
            identity.and_then(|identity| self.selecting.get(&identity).cloned()).unwrap_or_default()
        };
        let (left, joined) =
            (numbers_of(before), numbers_of(workload.map(|workload| workload.config.identity)));
        for number in left.iter().filter(|number| !joined.contains(number)) {
            if let Some(service) = self.by_number.get_mut(number) {
                service.remove_instance(id);
            }
        }
        for number in joined {
            if let (Some(service), Some(workload)) = (self.by_number.get_mut(&number), workload) {
                service.put_instance(now, workload);
            }
        }
    }

    /// Takes in again all instances of all services: nodes have moved.
    pub(crate) fn replace_all<'a>(
        &mut self,
        workloads: &(impl Iterator<Item = Described<'a>> + Clone),
    ) {
        for service in self.by_number.values_mut() {
            service.take_in(workloads.clone());
        }
    }

    fn stop_selecting(&mut self, number: u32, service: Option<&Service>) {
        for identity in service.iter().flat_map(|service| &service.config.identities) {
            if let Some(numbers) = self.selecting.get_mut(identity) {
                numbers.retain(|own| *own != number);
                if numbers.is_empty() {
                    self.selecting.remove(identity);
                }
            }
        }
    }
}

impl Service {
    fn new(name: ServiceName, config: ServiceConfig, before: Option<Self>) -> Self {
        let (members, counters) =
            before.map(|before| (before.members, before.counters)).unwrap_or_default();
        Self { name, config, instances: [vec![], vec![]], members, counters }
    }

    /// Returns the port that a connection to the service is for.
    pub(crate) fn port(&self, protocol: Protocol, port: u16) -> Option<ServicePort> {
        let mut ports = self.config.ports.iter();
        ports.find(|own| own.protocol == protocol && own.port == port).copied()
    }

    pub(crate) fn affinity(&self) -> Affinity {
        self.config.affinity
    }

    pub(crate) fn ranking(&self) -> Ranking {
        if self.config.weights.is_empty() { Ranking::Even } else { Ranking::Weighted }
    }

    fn weight_of(&self, identity: IdentityId) -> Weight {
        let mut weights = self.config.weights.iter();
        weights.find(|(own, _)| *own == identity).map(|(_, weight)| *weight).unwrap_or_default()
    }

    /// Returns the instances that have an address of the family of `address`.
    pub(crate) fn instances_like(&self, address: IpAddr) -> &[Instance] {
        &self.instances[usize::from(address.is_ipv6())]
    }

    /// Returns the instance at an address.
    pub(crate) fn instance_at(&self, address: IpAddr) -> Option<&Instance> {
        self.instances_like(address).iter().find(|instance| instance.address == address)
    }

    /// Returns what is known of each instance, by its workload.
    pub(crate) fn loads(&self) -> impl Iterator<Item = (&WorkloadId, &Arc<InstanceLoad>)> {
        self.members.iter().map(|(id, member)| (id, &member.load))
    }

    fn selects(&self, identity: IdentityId) -> bool {
        self.config.identities.contains(&identity)
    }

    /// Takes in all instances among workloads, in place of those of before.
    fn take_in<'a>(&mut self, workloads: impl Iterator<Item = Described<'a>>) {
        self.instances = [vec![], vec![]];
        let mut before = std::mem::take(&mut self.members);
        for workload in workloads {
            if !self.selects(workload.config.identity) {
                continue;
            }
            let load = before.remove(workload.id).map(|member| member.load).unwrap_or_default();
            self.add(workload, load);
        }
        for instances in &mut self.instances {
            instances.sort_by_key(|instance| (instance.distance, instance.hash));
        }
    }

    /// Adds an instance, or changes it.
    fn put_instance(&mut self, now: Micros, workload: Described<'_>) {
        let is_first = self.members.is_empty();
        let before = self.take_out(workload.id);
        let load = before.unwrap_or_else(|| match is_first {
            true => Arc::default(),
            false => Arc::new(InstanceLoad::joined_at(now)),
        });
        self.add(workload, load);
        for instances in &mut self.instances {
            // All but one are in order.
            instances.sort_by_key(|instance| (instance.distance, instance.hash));
        }
    }

    fn remove_instance(&mut self, id: &WorkloadId) {
        self.take_out(id);
    }

    fn take_out(&mut self, id: &WorkloadId) -> Option<Arc<InstanceLoad>> {
        let member = self.members.remove(id)?;
        for instances in &mut self.instances {
            instances.retain(|instance| !member.addresses.contains(&instance.address));
        }
        Some(member.load)
    }

    fn add(&mut self, workload: Described<'_>, load: Arc<InstanceLoad>) {
        let Described { id, config, locality } = workload;
        let distance = distance(&self.config.prefer, locality);
        let weight = self.weight_of(config.identity);
        let serving = config.states.serving(&self.name);
        for &address in &config.addresses {
            self.instances[usize::from(address.is_ipv6())].push(Instance {
                address,
                hash: hash_of_address(address),
                distance,
                identity: config.identity,
                serving,
                is_open: !config.quarantine.is_active(),
                weight,
                load: load.clone(),
            });
        }
        let addresses = config.addresses.clone();
        self.members.insert(id.clone(), Member { load, addresses });
    }
}

/// Returns the distance of an instance at a locality, by what a service prefers.
fn distance(prefer: &[Nearness], locality: Locality) -> Distance {
    let is_near = |nearness: &Nearness| match nearness {
        Nearness::Node => locality == Locality::Here,
        Nearness::Site => locality != Locality::Elsewhere,
    };
    prefer.iter().position(is_near).unwrap_or(prefer.len()) as Distance
}

/// Returns a hash of an address that is the same everywhere and at all times.
pub(crate) fn hash_of_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => mix(u64::from(address.to_bits()), 4),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            mix((bits >> 64) as u64, mix(bits as u64, 6))
        }
    }
}
