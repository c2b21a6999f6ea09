//! Services of a policy.

use crate::selecting::Selecting;
use meshward_types::{
    Affinity, FanOut, HealthCheck, Labels, Nearness, NetworkName, PortRange, PortSpec, Selector,
    ServiceName, ServicePort, WeightRule, selector::Requirement,
};

/// The largest number of services of a network.
pub const MAX_SERVICES: usize = 4096;
/// The largest number of services that an error names.
const MAX_NAMED: usize = 8;

/// A name and virtual addresses in front of the workloads that a selector matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name, unique in the network.
    pub name: ServiceName,
    /// The instances.
    pub instances: Selector,
    /// The ports, at least one.
    pub ports: Vec<ServicePort>,
    /// The kinds of nearness by which instances are preferred, the first one first.
    pub prefer: Vec<Nearness>,
    /// The check that nodes make of their own instances.
    pub health: Option<HealthCheck>,
    /// The number of instances that a client's node is linked with.
    pub fan_out: FanOut,
    /// The choice of instances for the later connections of a client.
    pub affinity: Affinity,
    /// The weights of instances, of which the first that selects one counts.
    pub weights: Vec<WeightRule>,
}

impl Service {
    /// Returns the ports of the instances behind the service's ports that `named` matches; behind
    /// all of them if it is empty.
    pub fn targets(&self, named: &[PortSpec]) -> Vec<PortSpec> {
        let is_named = |port: &&ServicePort| {
            named.is_empty() || named.iter().any(|spec| spec.matches(port.protocol, port.port))
        };
        let target = |port: &ServicePort| PortSpec {
            protocol: Some(port.protocol),
            ports: PortRange { first: port.target, last: port.target },
        };
        let mut targets: Vec<PortSpec> = self.ports.iter().filter(is_named).map(target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Returns the fewest labels that an instance has; `None` if it only has to have some label,
    /// with any value.
    pub(crate) fn least_labels(&self) -> Option<Labels> {
        let mut labels = Labels::default();
        for (key, requirement) in self.instances.requirements() {
            match requirement {
                Requirement::In(values) => {
                    let label = format!("{key}={}", values.first()?);
                    labels = labels.with_all(&label.parse().ok()?).ok()?;
                }
                Requirement::Exists => return None,
                Requirement::Not(_) | Requirement::Missing => {}
            }
        }
        Some(labels)
    }

    /// Returns the ports as text.
    pub fn listed_ports(&self) -> String {
        let ports: Vec<String> =
            self.ports.iter().map(|port| format!("{}/{}", port.protocol, port.port)).collect();
        ports.join(", ")
    }
}

/// A service that a policy does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no service `{name}` in network {network}; {mend}")]
pub struct NoService {
    name: ServiceName,
    network: NetworkName,
    /// The services that there are.
    mend: String,
}

impl NoService {
    /// The error for a service that is not among a network's.
    pub(crate) fn new(name: &ServiceName, network: &NetworkName, services: &[Service]) -> Self {
        let names = services.iter().map(|service| service.name.as_str());
        let names: Vec<&str> = names.take(MAX_NAMED).collect();
        let mend = match services.len() {
            0 => "services are written in its policy, under `services:`".to_owned(),
            all if all > MAX_NAMED => format!("it has {} and others", names.join(", ")),
            _ => format!("it has {}", names.join(", ")),
        };
        Self { name: name.clone(), network: network.clone(), mend }
    }
}

/// The services of a policy, found by the labels of their instances.
#[derive(Debug, Clone, Default)]
pub struct ServiceIndex(Selecting<usize>);

impl ServiceIndex {
    /// Creates the index of services.
    pub fn of(services: &[Service]) -> Self {
        let mut index = Selecting::default();
        for (position, service) in services.iter().enumerate() {
            index.insert(position, &service.instances);
        }
        Self(index)
    }

    /// Returns the positions of the services that select labels, in ascending order.
    pub fn select(&self, labels: &Labels) -> Vec<usize> {
        self.0.select(labels)
    }
}
