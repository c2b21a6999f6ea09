//! Services and the settings of name resolution, and what names a service.

mod weights;

use super::{
    problems::{SourceSpan, did_you_mean, span},
    reader::{Document, Parts, Reader, Sets},
    tree::{Kind, Node},
};
use crate::{
    services::{MAX_SERVICES, Service},
    target::{Destination, SERVICE},
};
use meshward_types::{
    Affinity, DnsSettings, DomainName, FanOut, HealthCheck, HealthProbe, Labels, Lasting, Nearness,
    PortSpec, Protocol, ServiceName, ServicePort, Upstream,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The largest number of ports of a service.
const MAX_PORTS: usize = 64;
/// The largest number of words of a command that checks health, and its longest word in bytes.
const MAX_COMMAND: (usize, usize) = (64, 4096);
/// The longest path of a request that checks health, in bytes.
const MAX_PATH: usize = 1024;
/// The bounds of the time between two health checks.
const EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_hours(1));
/// The largest number of failures that make an instance unhealthy.
const MAX_FAILURES: u32 = 100;
/// The bounds of the time of an affinity.
const AFFINITY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(168));
/// The largest number of split zones, and of servers in a list.
const MAX_ZONES: usize = 256;
const MAX_SERVERS: usize = 8;

/// The services of a network, from all of its documents, with the spans of their names.
#[derive(Default)]
pub(super) struct Services {
    pub(super) all: Vec<Service>,
    pub(super) spans: BTreeMap<ServiceName, SourceSpan>,
    /// `true` if documents have services, even if none can be read.
    pub(super) is_written: bool,
}

impl Services {
    /// Returns the name of a service that a node has with `{ service: NAME }`. In a network without
    /// services, that selects by the label `service`.
    pub(super) fn named_by<'n>(&self, node: &'n Node) -> Option<&'n Node> {
        let Kind::Map(entries) = &node.kind else { return None };
        let [(key, value)] = &entries[..] else { return None };
        let is_naming = key.text() == Some(SERVICE) && value.text().is_some();
        (self.is_written && is_naming).then_some(value)
    }

    fn find(&self, name: &str) -> Option<&Service> {
        self.all.iter().find(|service| service.name.as_str() == name)
    }
}

/// A service that a rule or a test may name.
pub(super) enum Naming<'a> {
    /// It names this one.
    Service(&'a Service),
    /// It names one that does not exist: that was reported.
    Unknown,
    /// It names labels.
    Labels,
}

impl Reader {
    /// Reads the services of a network.
    pub(super) fn services(&mut self, documents: &[Document<'_>], sets: &Sets) -> Services {
        let mut services = Services::default();
        for document in documents {
            let parts = document.parts();
            for node in self.list(&parts, "services") {
                services.is_written = true;
                let Some(service) = self.service(parts.file, sets, node) else { continue };
                let own = span(parts.file, node.at);
                if let Some(taken) = services.spans.get(&service.name) {
                    let text = format!(
                        "there is a service `{}` already, at {taken}; give each its own name",
                        service.name
                    );
                    self.problem(parts.file, node.at, text);
                    continue;
                }
                if services.all.len() == MAX_SERVICES {
                    let text = format!("a network has at most {MAX_SERVICES} services");
                    self.problem(parts.file, node.at, text);
                    return services;
                }
                services.spans.insert(service.name.clone(), own);
                services.all.push(service);
            }
        }
        services
    }

    fn service(&mut self, file: &str, sets: &Sets, node: &Node) -> Option<Service> {
        let known = ["name", "for", "ports", "prefer", "health", "fan_out", "affinity", "weights"];
        let parts = self.parts(file, "a service", node, &known)?;
        let name = self.required::<ServiceName>(&parts, "name");
        let instances = self.whom(&parts, sets, "for");
        let ports = self.service_ports(&parts);
        let prefer = self.optional::<Vec<Nearness>>(&parts, "prefer").unwrap_or_default();
        if prefer.iter().collect::<BTreeSet<_>>().len() < prefer.len() {
            let at = parts.get("prefer").map_or(parts.at, |node| node.at);
            self.problem(file, at, "`prefer` has the same word twice; leave one of them out");
        }
        let health = parts.get("health").and_then(|node| self.health(file, node));
        let fan_out = self.fan_out(&parts);
        let affinity = self.affinity(&parts);
        let weights = self.weights(&parts, sets);
        Some(Service {
            name: name?,
            instances: instances?,
            ports,
            prefer,
            health,
            fan_out,
            affinity,
            weights,
        })
    }

    fn service_ports(&mut self, parts: &Parts) -> Vec<ServicePort> {
        self.there(parts, "ports");
        let items = self.list(parts, "ports");
        if parts.get("ports").is_some() && !(1..=MAX_PORTS).contains(&items.len()) {
            let at = parts.get("ports").map_or(parts.at, |node| node.at);
            let text = format!(
                "a service has from 1 to {MAX_PORTS} ports; write for instance \
                `ports: [{{ port: 80, to: 8080 }}]`"
            );
            self.problem(parts.file, at, text);
        }
        let mut ports: Vec<ServicePort> = Vec::new();
        for item in items.iter().take(MAX_PORTS) {
            let Some(port) = self.service_port(parts.file, item) else { continue };
            let ServicePort { protocol, port: number, .. } = port;
            if ports.iter().any(|own| (own.protocol, own.port) == (protocol, number)) {
                let text = format!("the service has port {protocol}/{number} already");
                self.problem(parts.file, item.at, text);
                continue;
            }
            ports.push(port);
        }
        ports
    }

    fn service_port(&mut self, file: &str, node: &Node) -> Option<ServicePort> {
        let parts = self.parts(file, "a port of a service", node, &["port", "to", "protocol"])?;
        let (port, target) = (self.port_number(&parts, "port"), self.port_number(&parts, "to"));
        self.there(&parts, "port");
        let protocol = self.optional::<Protocol>(&parts, "protocol").unwrap_or(Protocol::Tcp);
        if !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            let at = parts.get("protocol").map_or(parts.at, |node| node.at);
            let text = format!("a service has ports of tcp and udp, not of {protocol}");
            self.problem(file, at, text);
        }
        Some(ServicePort { protocol, port: port?, target: target.or(port)? })
    }

    /// Reads a port from 1 to 65535.
    fn port_number(&mut self, parts: &Parts, key: &str) -> Option<u16> {
        let node = parts.get(key)?;
        let number = node.text().and_then(|text| text.parse::<u16>().ok()).filter(|port| *port > 0);
        if number.is_none() {
            let text = format!("a port from 1 to 65535 was expected here, not {}", node.called());
            self.problem(parts.file, node.at, text);
        }
        number
    }

    fn health(&mut self, file: &str, node: &Node) -> Option<HealthCheck> {
        let known = ["http", "tcp", "grpc", "exec", "port", "every", "timeout", "failures"];
        let parts = self.parts(file, "a health check", node, &known)?;
        let kinds = ["http", "tcp", "grpc", "exec"];
        if kinds.iter().filter(|kind| parts.get(kind).is_some()).count() != 1 {
            let text = "a health check has exactly one of `http: /path`, `tcp: PORT`, \
                `grpc: SERVICE` and `exec: [COMMAND, ARGUMENT]`";
            self.problem(file, node.at, text);
            return None;
        }
        let port = self.port_number(&parts, "port");
        if parts.get("port").is_some() && (parts.get("tcp").or(parts.get("exec"))).is_some() {
            self.problem(file, node.at, "`port` goes with `http` and `grpc`");
        }
        let (probe, port) = if parts.get("tcp").is_some() {
            (HealthProbe::Tcp, Some(self.port_number(&parts, "tcp")?))
        } else if parts.get("exec").is_some() {
            (self.command(&parts)?, None)
        } else if parts.get("grpc").is_some() {
            (HealthProbe::Grpc(self.health_text(&parts, "grpc")?), port)
        } else {
            (HealthProbe::Http(self.health_text(&parts, "http")?), port)
        };
        let every = self.health_time(&parts, "every", EVERY).unwrap_or(HealthCheck::EVERY);
        let within = (Duration::from_millis(10), every);
        let timeout = self.health_time(&parts, "timeout", within);
        let timeout = timeout.unwrap_or(HealthCheck::TIMEOUT.min(every));
        let failures = self.optional::<u32>(&parts, "failures").unwrap_or(HealthCheck::FAILURES);
        if !(1..=MAX_FAILURES).contains(&failures) {
            let at = parts.get("failures").map_or(parts.at, |node| node.at);
            self.problem(file, at, format!("`failures` must be from 1 to {MAX_FAILURES}"));
        }
        Some(HealthCheck { probe, port, every, timeout, failures })
    }

    /// Reads the path of `http`, or the service of `grpc`.
    fn health_text(&mut self, parts: &Parts, key: &str) -> Option<String> {
        let text = self.optional::<String>(parts, key)?;
        let is_plain = text.len() <= MAX_PATH && text.bytes().all(|b| b.is_ascii_graphic());
        if !is_plain || key == "http" && !text.starts_with('/') {
            let at = parts.get(key).map_or(parts.at, |node| node.at);
            let what = match key {
                "http" => "a path that begins with `/`",
                _ => "the name of a service of gRPC, or \"\" for the whole server,",
            };
            let text = format!(
                "{what} was expected here: at most {MAX_PATH} characters of ASCII, without spaces"
            );
            self.problem(parts.file, at, text);
            return None;
        }
        Some(text)
    }

    fn command(&mut self, parts: &Parts) -> Option<HealthProbe> {
        let words: Vec<String> =
            self.texts(parts, "exec").into_iter().map(|(word, _)| word.to_owned()).collect();
        let (most, longest) = MAX_COMMAND;
        let is_word = |word: &String| word.len() <= longest && !word.contains('\0');
        let is_command = (1..=most).contains(&words.len())
            && words.iter().all(is_word)
            && words.first().is_some_and(|first| !first.is_empty());
        if !is_command {
            let at = parts.get("exec").map_or(parts.at, |node| node.at);
            let text = format!(
                "`exec` is a command and its arguments, from 1 to {most} words of at most \
                {longest} bytes, such as [curl, -f, http://localhost/]"
            );
            self.problem(parts.file, at, text);
            return None;
        }
        Some(HealthProbe::Exec(words))
    }

    fn health_time(
        &mut self,
        parts: &Parts,
        key: &str,
        (least, most): (Duration, Duration),
    ) -> Option<Duration> {
        let Lasting(time) = self.optional(parts, key)?;
        if !(least..=most).contains(&time) {
            let at = parts.get(key).map_or(parts.at, |node| node.at);
            let [least, most] = [least, most].map(|time| String::from(Lasting(time)));
            self.problem(parts.file, at, format!("`{key}` must be from {least} to {most}"));
        }
        Some(time)
    }

    fn fan_out(&mut self, parts: &Parts) -> FanOut {
        let Some(node) = parts.get("fan_out") else { return FanOut::Auto };
        match node.text().unwrap_or_default().parse() {
            Ok(fan_out) => fan_out,
            Err(text) => {
                self.problem(parts.file, node.at, text);
                FanOut::Auto
            }
        }
    }

    fn affinity(&mut self, parts: &Parts) -> Affinity {
        let Some(node) = parts.get("affinity") else { return Affinity::None };
        let file = parts.file;
        match &node.kind {
            Kind::Scalar { text, .. } if **text == *"none" => Affinity::None,
            Kind::Map(_) => {
                let Some(parts) = self.parts(file, "an affinity", node, &["client"]) else {
                    return Affinity::None;
                };
                self.there(&parts, "client");
                let time = self.health_time(&parts, "client", AFFINITY);
                time.map_or(Affinity::None, Affinity::Client)
            }
            Kind::Scalar { .. } | Kind::List(_) => {
                let text = format!(
                    "`none` or `{{ client: 10m }}` was expected here, not {}",
                    node.called()
                );
                self.problem(file, node.at, text);
                Affinity::None
            }
        }
    }

    /// Returns the service that a node names.
    pub(super) fn naming<'a>(
        &mut self,
        file: &str,
        node: &Node,
        services: &'a Services,
    ) -> Naming<'a> {
        let Some(value) = services.named_by(node) else { return Naming::Labels };
        let name = value.text().unwrap_or_default();
        if let Some(service) = services.find(name) {
            return Naming::Service(service);
        }
        let name: String = name.chars().take(80).collect();
        let known = services.all.iter().map(|service| service.name.as_str());
        let mend = did_you_mean(&name, known).unwrap_or_else(|| {
            "name one under `services:`, or write `{ service: { in: [NAME] } }` to select by the \
            label `service`"
                .into()
        });
        self.problem(file, value.at, format!("no service is called `{name}`; {mend}"));
        Naming::Unknown
    }

    /// Checks that ports which a rule or a test names are those of the service. Returns the ports
    /// of the instances behind them.
    pub(super) fn service_targets(
        &mut self,
        parts: &Parts,
        key: &str,
        service: &Service,
        named: &[PortSpec],
    ) -> Vec<PortSpec> {
        for spec in named {
            if service.targets(&[*spec]).is_empty() {
                let at = parts.get(key).map_or(parts.at, |node| node.at);
                let (name, ports) = (&service.name, service.listed_ports());
                let text = format!("service `{name}` has no port {spec}; it has {ports}");
                self.problem(parts.file, at, text);
            }
        }
        service.targets(named)
    }

    /// Reads the destination of a test.
    pub(super) fn destination(
        &mut self,
        parts: &Parts,
        services: &Services,
        port: PortSpec,
    ) -> Option<Destination> {
        let node = self.there(parts, "to")?;
        if let Some(outside) = self.outside(parts) {
            return self.outside_destination(outside);
        }
        let service = match self.naming(parts.file, node, services) {
            Naming::Labels => {
                return self.fitting::<Labels>(parts.file, node).map(Destination::Labels);
            }
            Naming::Unknown => return None,
            Naming::Service(service) => service,
        };
        let targets = self.service_targets(parts, "port", service, &[port]);
        let Some(labels) = service.least_labels() else {
            let text = format!(
                "service `{}` selects by labels of any value; write labels of an instance here",
                service.name
            );
            self.problem(parts.file, node.at, text);
            return None;
        };
        Some(Destination::Service { name: service.name.clone(), labels, targets })
    }

    /// Reads the settings of name resolution, which are `intercept` or a map.
    pub(super) fn dns(&mut self, parts: &Parts, kept: &mut Option<DnsSettings>) {
        let Some(node) = parts.get("dns") else { return };
        let file = parts.file;
        let given = match &node.kind {
            Kind::Scalar { text, .. } if **text == *"intercept" => {
                Some(DnsSettings { intercept: true, ..DnsSettings::default() })
            }
            _ => self.dns_settings(file, node),
        };
        let Some(given) = given else { return };
        if kept.as_ref().is_some_and(|kept| *kept != given) {
            let text = "another document of this network has another `dns`; say it once";
            self.problem(file, node.at, text);
        }
        *kept = Some(given);
    }

    fn dns_settings(&mut self, file: &str, node: &Node) -> Option<DnsSettings> {
        let known = ["zone", "zones", "upstreams", "intercept"];
        let parts = self.parts(file, "`dns`", node, &known)?;
        let usual = DnsSettings::default();
        let zone = self.optional::<DomainName>(&parts, "zone").unwrap_or(usual.zone);
        let intercept = self.optional(&parts, "intercept").unwrap_or_default();
        let upstreams = self.servers(&parts, "upstreams");
        let zones = self.zones(&parts, &zone);
        Some(DnsSettings { zone, zones, upstreams, intercept })
    }

    fn servers(&mut self, parts: &Parts, key: &str) -> Vec<Upstream> {
        let texts = self.texts(parts, key);
        if texts.len() > MAX_SERVERS {
            let at = parts.get(key).map_or(parts.at, |node| node.at);
            self.problem(parts.file, at, format!("at most {MAX_SERVERS} servers are asked"));
        }
        let mut servers = Vec::new();
        for (text, at) in texts.into_iter().take(MAX_SERVERS) {
            match text.parse() {
                Ok(server) => servers.push(server),
                Err(text) => self.problem(parts.file, at, text),
            }
        }
        servers
    }

    /// Reads split zones. The network's own zone is none of them.
    fn zones(&mut self, parts: &Parts, own: &DomainName) -> BTreeMap<DomainName, Vec<Upstream>> {
        let mut zones = BTreeMap::new();
        let Some(node) = parts.get("zones") else { return zones };
        let Kind::Map(entries) = &node.kind else {
            let text = format!(
                "`zones` is a map such as {{ corp.example: [10.8.0.53] }}; {} stands here",
                node.called()
            );
            self.problem(parts.file, node.at, text);
            return zones;
        };
        if entries.len() > MAX_ZONES {
            self.problem(parts.file, node.at, format!("at most {MAX_ZONES} zones are split off"));
        }
        let all = Parts { file: parts.file, what: "`zones`", at: node.at, entries };
        for (key, value) in entries.iter().take(MAX_ZONES) {
            let text = key.text().unwrap_or_default();
            let zone = match text.parse::<DomainName>() {
                Ok(zone) => zone,
                Err(text) => {
                    self.problem(parts.file, key.at, text);
                    continue;
                }
            };
            if zone == *own {
                let text = format!("nodes themselves answer names below {zone}, the own zone");
                self.problem(parts.file, key.at, text);
            }
            let servers = self.servers(&all, text);
            if servers.is_empty() && matches!(&value.kind, Kind::List(_)) || value.is_nothing() {
                let text = format!("zone {zone} has no server; write for instance [10.8.0.53]");
                self.problem(parts.file, value.at, text);
            }
            if zones.insert(zone, servers).is_some() {
                self.problem(parts.file, key.at, format!("`{text}` stands here twice"));
            }
        }
        zones
    }
}

#[cfg(test)]
mod tests;
