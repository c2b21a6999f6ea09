//! The ways in which rules and tests name what is at the other end: by labels, as a service, or as
//! addresses outside of the mesh.

use crate::egress_label::ROUTE;
use ipnet::IpNet;
use meshward_types::{
    Labels, NamePattern, OutsideTarget, PortSpec, Selector, ServiceName, selector::Requirement,
};
use serde::{Serialize, Serializer, ser::Error};
use std::{fmt, slice};

/// The way in which a rule names the workloads at the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// By their labels.
    #[default]
    Labels,
    /// As the instances of a service.
    Service(ServiceTarget),
    /// As what is behind them, as egress gateways: addresses outside of the mesh, at least one.
    Outside(Vec<OutsideTarget>),
}

impl Target {
    /// Returns the service.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Labels | Self::Outside(_) => None,
            Self::Service(target) => Some(&target.name),
        }
    }

    /// Returns the addresses outside of the mesh to which the rule is limited; none if it is about
    /// everything at the other end.
    pub fn outside(&self) -> &[OutsideTarget] {
        match self {
            Self::Labels | Self::Service(_) => &[],
            Self::Outside(targets) => targets,
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
    /// An address or a name outside of the mesh, by an egress gateway.
    Outside {
        /// The address or name.
        target: OutsideTarget,
        /// The labels of the gateway.
        labels: Labels,
    },
}

impl Destination {
    /// Returns the labels.
    pub fn labels(&self) -> &Labels {
        match self {
            Self::Labels(labels) | Self::Service { labels, .. } | Self::Outside { labels, .. } => {
                labels
            }
        }
    }

    /// Returns the address or name outside of the mesh.
    pub fn outside(&self) -> Option<&OutsideTarget> {
        match self {
            Self::Labels(_) | Self::Service { .. } => None,
            Self::Outside { target, .. } => Some(target),
        }
    }

    /// Returns the labels of the egress gateway that a test names: those of its kind are left out.
    pub fn via(&self) -> Labels {
        let labels = self.labels();
        match labels.iter().find(|(key, _)| key.as_str() == ROUTE) {
            Some((route, _)) => labels.clone().without(route),
            None => labels.clone(),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(labels) => write!(f, "{labels}"),
            Self::Service { name, .. } => write!(f, "service {name}"),
            Self::Outside { target, .. } => write!(f, "{target}"),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Labels(labels) => labels.serialize(serializer),
            Self::Service { name, .. } => serializer.collect_map([("service", name)]),
            Self::Outside { target, .. } => {
                let (cidr, dns) = split(slice::from_ref(target));
                let via = Some(self.via()).filter(|via| !via.is_empty());
                WrittenOutside { cidr, dns, via }.serialize(serializer)
            }
        }
    }
}

/// The keys under which a rule or a test names addresses outside of the mesh.
pub(crate) const OUTSIDE: [&str; 2] = ["cidr", "dns"];

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
        (Target::Outside(targets), _) => {
            let via = Some(via(to)).filter(|via| !via.is_empty());
            let (cidr, dns) = split(targets);
            WrittenOutside { cidr, dns, via }.serialize(serializer)
        }
        (Target::Service(target), _) => serializer.collect_map([(SERVICE, &target.name)]),
        (Target::Labels, Some(value)) => {
            serializer.collect_map([(SERVICE, LongSelector { any_of: [value] })])
        }
        (Target::Labels, None) => {
            let mut written = serde_json::to_value(to).map_err(S::Error::custom)?;
            for key in OUTSIDE {
                // Written short, it would name something outside of the mesh.
                if let Some(value) = written.get_mut(key).filter(|value| value.is_string()) {
                    *value = serde_json::json!({ "in": [value.take()] });
                }
            }
            written.serialize(serializer)
        }
    }
}

/// Returns the selector that a rule names of its egress gateways: that of their kind is left out.
pub(crate) fn via(to: &Selector) -> Selector {
    let others = to.requirements().filter(|(key, _)| key.as_str() != ROUTE);
    others.map(|(key, own)| (key.clone(), own.clone())).collect()
}

/// Addresses outside of the mesh, as a rule or a test names them.
#[derive(Serialize)]
struct WrittenOutside<'a, T> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr: Vec<&'a IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns: Vec<&'a NamePattern>,
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<T>,
}

fn split(targets: &[OutsideTarget]) -> (Vec<&IpNet>, Vec<&NamePattern>) {
    let (mut prefixes, mut patterns) = (vec![], vec![]);
    for target in targets {
        match target {
            OutsideTarget::Cidr(prefix) => prefixes.push(prefix),
            OutsideTarget::Dns(pattern) => patterns.push(pattern),
        }
    }
    (prefixes, patterns)
}
