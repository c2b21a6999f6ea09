//! Services and settings of name resolution of a `meshward_policy`: their blocks, as they are
//! configured, written to the policy and read back.

use crate::checks;
use meshward_policy::Service;
use meshward_terraform::{Attribute, Block, Diagnostic, Nested, Type, Value};
use meshward_types::{
    Affinity, DnsSettings, FanOut, HealthCheck, HealthProbe, Lasting, Selector, ServicePort,
    WeightRule,
};
use serde_json::{Map, json};

/// Returns the block `service`.
pub(crate) fn service() -> Nested {
    let attributes = vec![
        Attribute::required("name", Type::String, "The name, unique in the network.")
            .checked(checks::service),
        Attribute::required("for", Type::String, "The instances: a selector such as `app=api`.")
            .checked(checks::selector),
        Attribute::required(
            "ports",
            Type::strings(),
            "The ports: `tcp/80`, or `tcp/80 to 8080` if the instances have another port.",
        ),
        Attribute::optional(
            "prefer",
            Type::strings(),
            "The instances to prefer, in this order: `node` (on the client's node), `site` (in its \
             site).",
        ),
        Attribute::optional(
            "fan_out",
            Type::String,
            "How many instances the node of a client is linked with: `auto` (20, and more while their \
             load needs it; the default), `all`, a number, or a range such as `5-50`.",
        )
        .checked(checks::fan_out),
        Attribute::optional(
            "weights",
            Type::objects(&[("selector", Type::String), ("weight", Type::Number)]),
            "The shares of new connections that instances get, in proportion: `selector` has their \
             labels, `weight` is a number from 0 to 1000. The first that selects an instance counts; others \
             have 100.",
        ),
        Attribute::optional(
            "affinity",
            Type::String,
            "How long a client keeps its instance after its last connection, such as `10m`. \
             Default: each connection has its own choice.",
        ),
    ];
    let block = Block::of(attributes.into_iter().chain(health()).collect());
    Nested::list("service", "Services: names and virtual addresses in front of workloads.", block)
}

fn health() -> [Attribute; 8] {
    let optional = Attribute::optional;
    [
        optional("health_http", Type::String, "The health check: GET this path of an instance."),
        optional("health_tcp", Type::Number, "The health check: connect to this port."),
        optional(
            "health_grpc",
            Type::String,
            "The health check: ask gRPC's health service about this service, or, if empty, about \
             the server.",
        ),
        optional("health_exec", Type::strings(), "The health check: run this command."),
        optional(
            "health_port",
            Type::Number,
            "The port for `health_http` and `health_grpc`. Default: that of the first of `ports`.",
        ),
        optional(
            "health_every",
            Type::String,
            "The time between two checks, from `100ms` to `1h`. Default: `5s`.",
        ),
        optional("health_timeout", Type::String, "The time for one check. Default: `1s`."),
        optional(
            "health_failures",
            Type::Number,
            "The failures in a row that make an instance unhealthy. Default: 3.",
        ),
    ]
}

/// Returns the attributes for the settings of name resolution.
pub(crate) fn dns_attributes() -> Vec<Attribute> {
    vec![
        Attribute::optional(
            "dns_zone",
            Type::String,
            "The zone of the names of workloads and services: NAME.NETWORK.ZONE. Default: `mesh`.",
        ),
        Attribute::optional(
            "dns_upstreams",
            Type::strings(),
            "The DNS servers for all other names: `10.8.0.53`, `tls://ADDRESS#NAME`, \
             `https://ADDRESS/dns-query#NAME` or `quic://ADDRESS#NAME`. Default: those of the host.",
        ),
        Attribute::optional(
            "dns_intercept",
            Type::Bool,
            "Whether nodes also answer queries to other addresses, port 53.",
        ),
    ]
}

/// Returns the block `split_zone`.
pub(crate) fn split_zone() -> Nested {
    let attributes = vec![
        Attribute::required("name", Type::String, "The suffix of the names: `corp.example`."),
        Attribute::required("servers", Type::strings(), "The DNS servers for these names."),
    ];
    Nested::list("split_zone", "DNS servers for the names of a zone.", Block::of(attributes))
}

/// Converts a block `service` to an item of the policy's list.
pub(crate) fn item(block: &Value) -> Result<serde_json::Value, Diagnostic> {
    let invalid = |text: String| Diagnostic::error("Invalid service", text);
    let who: Selector = block
        .get("for")
        .text()
        .unwrap_or_default()
        .parse()
        .map_err(|error| invalid(format!("{error}")))?;
    let mut ports = Vec::new();
    for port in block.get("ports").elements() {
        let port: ServicePort = port.text().unwrap_or_default().parse().map_err(invalid)?;
        ports.push(json!({ "port": port.port, "to": port.target, "protocol": port.protocol }));
    }
    let mut item = Map::new();
    item.insert("name".into(), block.get("name").to_json());
    item.insert("for".into(), json!(who));
    item.insert("ports".into(), ports.into());
    if !block.get("prefer").elements().is_empty() {
        item.insert("prefer".into(), block.get("prefer").to_json());
    }
    if let Some(fan_out) = block.get("fan_out").text() {
        item.insert("fan_out".into(), fan_out.into());
    }
    if let Some(time) = block.get("affinity").text() {
        item.insert("affinity".into(), json!({ "client": time }));
    }
    let mut weights = Vec::new();
    for weight in block.get("weights").elements() {
        let who = weight.get("selector").text().unwrap_or_default().parse::<Selector>();
        let who = who.map_err(|error| invalid(format!("{error}")))?;
        weights.push(json!({ "for": who, "weight": weight.get("weight").to_json() }));
    }
    if !weights.is_empty() {
        item.insert("weights".into(), weights.into());
    }
    let mut health = Map::new();
    for attribute in health_names() {
        let value = block.get(&format!("health_{attribute}"));
        if !value.is_null() {
            health.insert(attribute.into(), value.to_json());
        }
    }
    if !health.is_empty() {
        item.insert("health".into(), health.into());
    }
    Ok(item.into())
}

fn health_names() -> [&'static str; 8] {
    ["http", "tcp", "grpc", "exec", "port", "every", "timeout", "failures"]
}

/// Converts a service to its block.
pub(crate) fn block(service: &Service) -> Value {
    let Service { name, instances, ports, prefer, health, fan_out, affinity, weights } = service;
    let mut block = Map::new();
    block.insert("name".into(), json!(name));
    block.insert("for".into(), selector_text(instances).into());
    block.insert("ports".into(), ports.iter().map(ToString::to_string).collect());
    if !prefer.is_empty() {
        block.insert("prefer".into(), json!(prefer));
    }
    if *fan_out != FanOut::Auto {
        block.insert("fan_out".into(), fan_out.to_string().into());
    }
    if let Affinity::Client(time) = affinity {
        block.insert("affinity".into(), json!(Lasting(*time)));
    }
    if !weights.is_empty() {
        let weight = |rule: &WeightRule| json!({ "selector": selector_text(&rule.instances), "weight": rule.weight.get() });
        block.insert("weights".into(), weights.iter().map(weight).collect());
    }
    if let Some(check) = health {
        block.extend(health_of(check));
    }
    Value::from_json(block.into())
}

/// Returns a selector as it is configured: the empty text for all workloads.
pub(crate) fn selector_text(selector: &Selector) -> String {
    if selector.is_empty() { String::new() } else { selector.to_string() }
}

/// Returns the attributes of a health check, without those that have their default.
fn health_of(check: &HealthCheck) -> Map<String, serde_json::Value> {
    let HealthCheck { probe, port, every, timeout, failures } = check;
    let mut all = Map::new();
    let mut set = |name: &str, value: serde_json::Value| {
        all.insert(format!("health_{name}"), value);
    };
    match probe {
        HealthProbe::Http(path) => set("http", json!(path)),
        HealthProbe::Tcp => set("tcp", json!(port)),
        HealthProbe::Grpc(service) => set("grpc", json!(service)),
        HealthProbe::Exec(command) => set("exec", json!(command)),
    }
    if let (Some(port), HealthProbe::Http(_) | HealthProbe::Grpc(_)) = (port, probe) {
        set("port", json!(port));
    }
    if *every != HealthCheck::EVERY {
        set("every", json!(Lasting(*every)));
    }
    if *timeout != HealthCheck::TIMEOUT.min(*every) {
        set("timeout", json!(Lasting(*timeout)));
    }
    if *failures != HealthCheck::FAILURES {
        set("failures", json!(failures));
    }
    all
}

/// Returns the settings of name resolution of a configuration; `None` if there are none.
pub(crate) fn dns(config: &Value) -> Option<serde_json::Value> {
    let mut dns = Map::new();
    if let Some(zone) = config.get("dns_zone").text() {
        dns.insert("zone".into(), zone.into());
    }
    if !config.get("dns_upstreams").elements().is_empty() {
        dns.insert("upstreams".into(), config.get("dns_upstreams").to_json());
    }
    if *config.get("dns_intercept") == Value::Bool(true) {
        dns.insert("intercept".into(), true.into());
    }
    let zones: Map<_, _> = config
        .get("split_zone")
        .elements()
        .iter()
        .map(|zone| {
            let name = zone.get("name").text().unwrap_or_default();
            (name.to_owned(), zone.get("servers").to_json())
        })
        .collect();
    if !zones.is_empty() {
        dns.insert("zones".into(), zones.into());
    }
    (!dns.is_empty()).then(|| dns.into())
}

/// Sets the attributes and blocks of name resolution.
pub(crate) fn set_dns(blocks: &mut Value, dns: &DnsSettings) {
    let DnsSettings { zone, zones, upstreams, intercept } = dns;
    if zone.as_str() != DnsSettings::ZONE {
        blocks.set("dns_zone", zone.as_str());
    }
    if !upstreams.is_empty() {
        blocks.set("dns_upstreams", Value::from_json(json!(upstreams)));
    }
    if *intercept {
        blocks.set("dns_intercept", true);
    }
    let zones = zones
        .iter()
        .map(|(name, servers)| Value::from_json(json!({ "name": name, "servers": servers })));
    let zones: Vec<Value> = zones.collect();
    if !zones.is_empty() {
        blocks.set("split_zone", Value::List(zones));
    }
}
