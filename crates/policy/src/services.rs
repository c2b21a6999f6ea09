//! Services of a policy, and rules and tests that name them.

use crate::selecting::Selecting;
use meshward_types::{
    Affinity, FanOut, HealthCheck, Labels, Nearness, PortRange, PortSpec, Selector, ServiceName,
    ServicePort, WeightRule, selector::Requirement,
};
use serde::{Serialize, Serializer};
use std::fmt;

/// The largest number of services of a network.
pub const MAX_SERVICES: usize = 4096;

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

/// The way in which a rule names the workloads at the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// By their labels.
    #[default]
    Labels,
    /// As the instances of a service.
    Service(ServiceTarget),
}

impl Target {
    /// Returns the service.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Labels => None,
            Self::Service(target) => Some(&target.name),
        }
    }
}

/// A service as a rule names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTarget {
    /// The service.
    pub name: ServiceName,
    /// The ports of the service; all of them if it is empty.
    pub ports: Vec<PortSpec>,
}

/// The destination of a policy test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A workload with these labels.
    Labels(Labels),
    /// An instance of a service, with the fewest labels that it selects.
    Service {
        /// The service.
        name: ServiceName,
        /// The labels.
        labels: Labels,
        /// The ports of the instance behind the test's port.
        targets: Vec<PortSpec>,
    },
}

impl Destination {
    /// Returns the labels.
    pub fn labels(&self) -> &Labels {
        match self {
            Self::Labels(labels) | Self::Service { labels, .. } => labels,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(labels) => write!(f, "{labels}"),
            Self::Service { name, .. } => write!(f, "service {name}"),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Labels(labels) => labels.serialize(serializer),
            Self::Service { name, .. } => serializer.collect_map([("service", name)]),
        }
    }
}

/// The key under which a rule or a test names a service.
pub(crate) const SERVICE: &str = "service";

/// A requirement of one value in its long form.
#[derive(Serialize)]
struct LongSelector<'a> {
    #[serde(rename = "in")]
    any_of: [&'a str; 1],
}

/// Returns the value if a selector requires the label `service` to have it, and nothing else:
/// written short, that names a service.
fn looks_like_service(selector: &Selector) -> Option<&str> {
    let mut requirements = selector.requirements();
    match (requirements.next(), requirements.next()) {
        (Some((key, Requirement::In(values))), None) if key.as_str() == SERVICE => {
            match &values[..] {
                [value] => Some(value),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Writes the workloads at the other end of a rule.
pub(crate) fn write_target<S: Serializer>(
    target: &Target,
    to: &Selector,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match (target, looks_like_service(to)) {
        (Target::Service(target), _) => serializer.collect_map([(SERVICE, &target.name)]),
        (Target::Labels, Some(value)) => {
            serializer.collect_map([(SERVICE, LongSelector { any_of: [value] })])
        }
        (Target::Labels, None) => to.serialize(serializer),
    }
}
