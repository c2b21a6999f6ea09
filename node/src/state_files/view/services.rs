//! The structures of services.

use super::{acl::ProtocolForm, selector_text::SelectorText};
use meshward_control_proto::view::ServiceSpec;
use meshward_types::{
    Affinity, HealthCheck, HealthProbe, Nearness, Protocol, Selector, ServicePort, Weight,
    WeightRule,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{net::IpAddr, time::Duration};

#[derive(Serialize, Deserialize)]
struct ServiceForm {
    addresses: Vec<IpAddr>,
    #[serde(with = "SelectorText")]
    instances: Selector,
    ports: Vec<PortForm>,
    prefer: Vec<NearnessForm>,
    health: Option<HealthForm>,
    /// The time of an affinity by client.
    affinity: Option<Duration>,
    weights: Vec<WeightForm>,
}

#[derive(Serialize, Deserialize)]
struct WeightForm {
    #[serde(with = "SelectorText")]
    instances: Selector,
    weight: u16,
}

#[derive(Serialize, Deserialize)]
struct PortForm {
    #[serde(with = "ProtocolForm")]
    protocol: Protocol,
    port: u16,
    target: u16,
}

#[derive(Serialize, Deserialize)]
enum NearnessForm {
    Node,
    Site,
}

#[derive(Serialize, Deserialize)]
struct HealthForm {
    #[serde(with = "ProbeForm")]
    probe: HealthProbe,
    port: Option<u16>,
    every: Duration,
    timeout: Duration,
    failures: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "HealthProbe")]
enum ProbeForm {
    Http(String),
    Tcp,
    Grpc(String),
    Exec(Vec<String>),
}

impl From<&ServiceSpec> for ServiceForm {
    fn from(spec: &ServiceSpec) -> Self {
        let ServiceSpec { addresses, instances, ports, prefer, health, affinity, weights } =
            spec.clone();
        let weight =
            |WeightRule { instances, weight }| WeightForm { instances, weight: weight.get() };
        let port = |port| {
            let ServicePort { protocol, port, target } = port;
            PortForm { protocol, port, target }
        };
        let nearness = |nearness| match nearness {
            Nearness::Node => NearnessForm::Node,
            Nearness::Site => NearnessForm::Site,
        };
        let check = |check| {
            let HealthCheck { probe, port, every, timeout, failures } = check;
            HealthForm { probe, port, every, timeout, failures }
        };
        Self {
            addresses,
            instances,
            ports: ports.into_iter().map(port).collect(),
            prefer: prefer.into_iter().map(nearness).collect(),
            health: health.map(check),
            affinity: match affinity {
                Affinity::None => None,
                Affinity::Client(time) => Some(time),
            },
            weights: weights.into_iter().map(weight).collect(),
        }
    }
}

impl From<ServiceForm> for ServiceSpec {
    fn from(form: ServiceForm) -> Self {
        let ServiceForm { addresses, instances, ports, prefer, health, affinity, weights } = form;
        let weight = |WeightForm { instances, weight }| WeightRule {
            instances,
            weight: Weight::new(weight).unwrap_or_default(),
        };
        let port = |PortForm { protocol, port, target }| ServicePort { protocol, port, target };
        let nearness = |form| match form {
            NearnessForm::Node => Nearness::Node,
            NearnessForm::Site => Nearness::Site,
        };
        let check = |HealthForm { probe, port, every, timeout, failures }| HealthCheck {
            probe,
            port,
            every,
            timeout,
            failures,
        };
        Self {
            addresses,
            instances,
            ports: ports.into_iter().map(port).collect(),
            prefer: prefer.into_iter().map(nearness).collect(),
            health: health.map(check),
            affinity: affinity.map_or(Affinity::None, Affinity::Client),
            weights: weights.into_iter().map(weight).collect(),
        }
    }
}

/// The conversion of services.
pub(super) struct ServiceConversion;

impl ServiceConversion {
    pub(super) fn serialize<S: Serializer>(spec: &ServiceSpec, to: S) -> Result<S::Ok, S::Error> {
        ServiceForm::from(spec).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ServiceSpec, D::Error> {
        ServiceForm::deserialize(from).map(ServiceSpec::from)
    }
}
