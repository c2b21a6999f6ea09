//! The form in which services and settings of name resolution are written as YAML.

use crate::services::Service;
use meshward_types::{
    Affinity, DnsSettings, DomainName, FanOut, HealthCheck, HealthProbe, Lasting, Nearness,
    Protocol, Selector, ServiceName, ServicePort, Upstream, WeightRule,
};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WrittenService::from(self).serialize(serializer)
    }
}

/// A service.
#[derive(Serialize)]
struct WrittenService<'a> {
    name: &'a ServiceName,
    r#for: &'a Selector,
    ports: Vec<WrittenPort>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    prefer: &'a [Nearness],
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<WrittenHealth<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fan_out: Option<WrittenFanOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity: Option<WrittenAffinity>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weights: Vec<WrittenWeight<'a>>,
}

#[derive(Serialize)]
struct WrittenPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u16>,
}

#[derive(Serialize)]
struct WrittenHealth<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    every: Lasting,
    timeout: Lasting,
    failures: u32,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenFanOut {
    Word(String),
    Number(u32),
}

#[derive(Serialize)]
struct WrittenAffinity {
    client: Lasting,
}

#[derive(Serialize)]
struct WrittenWeight<'a> {
    r#for: &'a Selector,
    weight: u16,
}

impl<'a> From<&'a Service> for WrittenService<'a> {
    fn from(service: &'a Service) -> Self {
        let Service { name, instances, ports, prefer, health, fan_out, affinity, weights } =
            service;
        let weight = |rule: &'a WeightRule| WrittenWeight {
            r#for: &rule.instances,
            weight: rule.weight.get(),
        };
        let port = |port: &ServicePort| WrittenPort {
            protocol: (port.protocol != Protocol::Tcp).then_some(port.protocol),
            port: port.port,
            to: (port.target != port.port).then_some(port.target),
        };
        Self {
            name,
            r#for: instances,
            ports: ports.iter().map(port).collect(),
            prefer,
            health: health.as_ref().map(WrittenHealth::from),
            fan_out: match fan_out {
                FanOut::Auto => None,
                FanOut::Exactly(number) => Some(WrittenFanOut::Number(*number)),
                FanOut::All | FanOut::Between { .. } => {
                    Some(WrittenFanOut::Word(fan_out.to_string()))
                }
            },
            affinity: match affinity {
                Affinity::None => None,
                Affinity::Client(time) => Some(WrittenAffinity { client: Lasting(*time) }),
            },
            weights: weights.iter().map(weight).collect(),
        }
    }
}

impl<'a> From<&'a HealthCheck> for WrittenHealth<'a> {
    fn from(check: &'a HealthCheck) -> Self {
        let HealthCheck { probe, port, every, timeout, failures } = check;
        let mut written = Self {
            http: None,
            tcp: None,
            grpc: None,
            exec: None,
            port: *port,
            every: Lasting(*every),
            timeout: Lasting(*timeout),
            failures: *failures,
        };
        match probe {
            HealthProbe::Http(path) => written.http = Some(path),
            HealthProbe::Tcp => (written.tcp, written.port) = (*port, None),
            HealthProbe::Grpc(service) => written.grpc = Some(service),
            HealthProbe::Exec(command) => written.exec = Some(command),
        }
        written
    }
}

/// The settings of name resolution.
#[derive(Serialize)]
struct WrittenDns<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a DomainName>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    zones: &'a BTreeMap<DomainName, Vec<Upstream>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    upstreams: &'a [Upstream],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    intercept: bool,
}

/// Writes the settings of name resolution.
pub(crate) fn write_dns<S: Serializer>(
    dns: &DnsSettings,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let DnsSettings { zone, zones, upstreams, intercept } = dns;
    let is_usual = zone.as_str() == DnsSettings::ZONE;
    let zone = (!is_usual).then_some(zone);
    WrittenDns { zone, zones, upstreams, intercept: *intercept }.serialize(serializer)
}
