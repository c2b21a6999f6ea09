use crate::{
    Budget, NewFlow, Policy, SCHEMA, Target, compile,
    reading::{ParsedPolicy, read},
    run_tests,
};
use meshward_types::{
    Affinity, FanOut, HealthCheck, HealthProbe, Labels, Nearness, PolicyFile, Protocol, Verdict,
};
use proptest::prelude::*;
use std::{fmt::Write, time::Duration};

const SHOP: &str = "
network: shop
selectors: { front: { app: web } }
services:
  - name: api
    for: { app: api }
    ports: [{ port: 80, to: 8080 }, { port: 443, protocol: udp }]
    prefer: [node, site]
    health: { http: /healthz, every: 2s }
    fan_out: 20
    affinity: { client: 10m }
    weights: [{ for: { version: next }, weight: 5 }, { for: front, weight: 0 }]
  - { name: web, for: front, ports: [{ port: 80 }], health: { tcp: 81 }, fan_out: all }
dns:
  zone: internal
  zones: { corp.example: [10.8.0.53] }
  upstreams: ['tls://9.9.9.9#dns.quad9.net']
  intercept: true
rules:
  - { name: web-api, from: front, to: { service: api } }
  - { name: job-api, from: { app: job }, to: { service: api }, allow: [tcp/80] }
guardrails:
  - { name: no-quic, from: { app: old }, to: { service: api }, deny: [udp/443] }
tests:
  - { from: { app: web }, to: { service: api }, port: tcp/80, expect: allow }
  - { from: { app: web }, to: { app: api }, port: tcp/80, expect: deny }
  - { from: { app: job }, to: { service: api }, port: udp/443, expect: deny }
";

fn parsed(text: &str) -> ParsedPolicy {
    read(&[PolicyFile { name: "policy".into(), text: text.into() }]).unwrap().remove(0)
}

fn said(text: &str) -> String {
    Policy::parse(text).unwrap_err().to_string()
}

#[test]
fn services_and_settings_of_names_are_read() {
    let policy = parsed(SHOP).policy;
    let [api, web] = &policy.services[..] else { panic!() };
    let ports: Vec<String> = api.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["tcp/80 to 8080", "udp/443"]);
    assert_eq!(api.prefer, [Nearness::Node, Nearness::Site]);
    let health = api.health.as_ref().unwrap();
    assert_eq!(health.probe, HealthProbe::Http("/healthz".into()));
    assert_eq!((health.every, health.timeout), (Duration::from_secs(2), HealthCheck::TIMEOUT));
    assert_eq!(api.fan_out, FanOut::Exactly(20));
    assert_eq!(api.affinity, Affinity::Client(Duration::from_mins(10)));
    let weights: Vec<_> =
        api.weights.iter().map(|rule| (rule.instances.to_string(), rule.weight.get())).collect();
    assert_eq!(weights, [("version=next".into(), 5), ("app=web".into(), 0)]);
    assert_eq!((web.instances.to_string().as_str(), web.fan_out), ("app=web", FanOut::All));
    assert_eq!(web.health.as_ref().unwrap().port, Some(81));
    assert_eq!(policy.dns.zone.as_str(), "internal");
    assert_eq!(policy.dns.upstreams[0].to_string(), "tls://9.9.9.9#dns.quad9.net");
    assert!(policy.dns.intercept && policy.dns.zones.len() == 1);
    assert!(parsed("network: shop\ndns: intercept").policy.dns.intercept);
    assert_eq!(parsed(SHOP).services[&api.name].to_string(), "policy:5:5");
}

#[test]
fn a_rule_about_a_service_allows_the_ports_of_its_instances() {
    let policy = parsed(SHOP).policy;
    let ports = |at: usize| -> Vec<String> {
        policy.rules[at].ports().iter().map(ToString::to_string).collect()
    };
    assert_eq!(policy.rules[0].to.to_string(), "app=api");
    assert_eq!(
        (ports(0), ports(1)),
        (vec!["tcp/8080".into(), "udp/443".into()], vec!["tcp/8080".to_owned()])
    );
    assert_eq!(policy.rules[0].target.service().unwrap().as_str(), "api");
    assert_eq!(policy.guardrails[0].deny[0].to_string(), "udp/443");
    assert!(run_tests(&policy, &Budget::of(Budget::PLAN)).unwrap().is_empty());
    let wrong = SHOP.replace("port: udp/443, expect: deny", "port: udp/443, expect: allow");
    let failed = run_tests(&parsed(&wrong).policy, &Budget::of(Budget::PLAN)).unwrap();
    let failed = failed[0].to_string();
    assert!(failed.contains("from app=job to service api, udp/443: expected allow"), "{failed}");
}

#[test]
fn a_decision_names_the_service() {
    let policy = parsed(SHOP).policy;
    let [from, to]: [Labels; 2] = ["app=web", "app=api"].map(|text| text.parse().unwrap());
    let flow = |port| NewFlow {
        from: &from,
        to: &to,
        outside: None,
        accepts: &[],
        protocol: Protocol::Tcp,
        port,
    };
    let because = policy.decide(&flow(8080)).reason.to_string();
    assert!(because.contains("to app=api (service api)"), "{because}");
    assert_eq!(policy.decide(&flow(80)).verdict, Verdict::Denied, "it is a port of the service");
}

#[test]
fn a_policy_with_services_is_written_as_it_was_read() {
    let policy = parsed(SHOP).policy;
    let yaml = policy.to_yaml().unwrap();
    assert_eq!(Policy::parse(&yaml).unwrap(), policy, "{yaml}");
    let label = "network: shop\nrules: [{ name: a, from: {}, to: { service: x }, allow: [tcp/1] }]";
    let policy = parsed(label).policy;
    assert_eq!(policy.rules[0].target, Target::Labels, "there are no services: it is a label");
    assert_eq!(policy.rules[0].to.to_string(), "service=x");
    assert_eq!(Policy::parse(&policy.to_yaml().unwrap()).unwrap(), policy);
    let both =
        SHOP.replace("to: { service: api } }", "to: { service: { in: [api] } }, allow: [tcp] }");
    let policy = parsed(&both).policy;
    assert_eq!(
        (&policy.rules[0].target, policy.rules[0].to.to_string().as_str()),
        (&Target::Labels, "service=api")
    );
    let yaml = policy.to_yaml().unwrap();
    assert_eq!(Policy::parse(&yaml).unwrap(), policy, "{yaml}");
}

#[test]
fn services_may_stand_in_other_files_than_rules() {
    let services =
        "network: shop\nservices: [{ name: api, for: { app: api }, ports: [{ port: 80 }] }]";
    let rules = "network: shop\nrules: [{ name: a, from: {}, to: { service: api } }]";
    let file = |name: &str, text: &str| PolicyFile { name: name.into(), text: text.into() };
    let policy = read(&[file("a", rules), file("b", services)]).unwrap().remove(0).policy;
    assert_eq!(policy.rules[0].allow[0].to_string(), "tcp/80");
    let twice = read(&[file("a", services), file("b", services)]).unwrap_err().to_string();
    assert!(twice.contains("b:2:12: there is a service `api` already, at a:2:12"), "{twice}");
}

#[test]
fn a_mistake_in_a_service_is_named_with_its_place_and_its_mend() {
    for (find, replace, says) in [
        (
            "{ service: api } }",
            "{ service: apy } }",
            "policy:20:50: no service is called `apy`; did you mean `api`?",
        ),
        ("{ service: api } }", "{ service: zzz } }", "or write `{ service: { in: [NAME] } }`"),
        (
            "allow: [tcp/80]",
            "allow: [tcp/81]",
            "service `api` has no port tcp/81; it has tcp/80, udp/443",
        ),
        ("port: tcp/80, expect: allow", "port: tcp/8080, expect: allow", "has no port tcp/8080"),
        ("name: api", "name: Api", "is not a service name"),
        ("  - { name: web,", "  - { name: api,", "there is a service `api` already, at policy:5:5"),
        ("prefer: [node, site]", "prefer: [node, rack]", "`rack` is not known here"),
        ("prefer: [node, site]", "prefer: [node, node]", "`prefer` has the same word twice"),
        ("fan_out: 20", "fan_out: 0", "write auto, all, a number from 1 to 10000"),
        ("fan_out: 20", "fan_ot: 20", "did you mean `fan_out`?"),
        (
            "{ client: 10m }",
            "client",
            "`none` or `{ client: 10m }` was expected here, not `client`",
        ),
        ("{ client: 10m }", "{ client: 8d }", "`client` must be from 1s to 7days"),
        ("http: /healthz", "http: healthz", "a path that begins with `/` was expected here"),
        ("http: /healthz", "http: /a, tcp: 80", "a health check has exactly one of"),
        ("every: 2s", "every: 50ms", "`every` must be from 100ms to 1h"),
        ("every: 2s", "every: 2s, timeout: 3s", "`timeout` must be from 10ms to 2s"),
        ("every: 2s", "every: 2s, failures: 0", "`failures` must be from 1 to 100"),
        ("http: /healthz", "exec: []", "`exec` is a command and its arguments"),
        (
            "port: 80, to: 8080",
            "port: 0, to: 8080",
            "a port from 1 to 65535 was expected here, not `0`",
        ),
        (
            "port: 443, protocol: udp",
            "port: 443, protocol: sctp",
            "has ports of tcp and udp, not of sctp",
        ),
        ("port: 443, protocol: udp", "port: 80", "the service has port tcp/80 already"),
        ("ports: [{ port: 80 }]", "ports: []", "a service has from 1 to 64 ports"),
        ("ports: [{ port: 80 }], ", "", "`ports` is missing in a service"),
        ("zone: internal", "zone: a..b", "`a..b` is no domain name"),
        ("corp.example: [10.8.0.53]", "corp.example: []", "zone corp.example has no server"),
        ("corp.example: [10.8.0.53]", "internal: [10.8.0.53]", "the own zone"),
        ("[10.8.0.53]", "[dns.corp.example]", "named by its IP address"),
        ("intercept: true", "interceptt: true", "did you mean `intercept`?"),
    ] {
        let text = SHOP.replacen(find, replace, 1);
        assert_ne!(text, SHOP, "{find}");
        let error = said(&text);
        assert!(error.contains(says), "{replace}: {error}");
        assert!(error.lines().all(|line| line.starts_with("policy:")), "{error}");
    }
    let any = SHOP.replacen("for: { app: api }", "for: { app: { exists: true } }", 1);
    assert!(said(&any).contains("selects by labels of any value"), "{}", said(&any));
}

#[test]
fn a_mistake_in_a_weight_is_named_with_its_place_and_its_mend() {
    for (find, replace, says) in [
        ("weight: 5", "weight: 1001", "a number from 0 (no connections) to 1000 was expected"),
        ("weight: 5", "weight: -1", "instances without a weight have 100"),
        ("weight: 5", "weigth: 5", "did you mean `weight`?"),
        ("{ for: front, weight: 0 }", "{ weight: 0 }", "`for` is missing in a weight"),
    ] {
        let text = SHOP.replacen(find, replace, 1);
        assert_ne!(text, SHOP, "{find}");
        let error = said(&text);
        assert!(error.contains(says) && error.starts_with("policy:12:"), "{replace}: {error}");
    }
    let many = "{ for: front, weight: 1 }, ".repeat(65);
    let text = SHOP.replacen("{ for: front, weight: 0 }", &many, 1);
    assert!(said(&text).contains("a service has at most 64 weights"), "{}", said(&text));
}

#[test]
fn editors_accept_the_services_that_are_read() {
    let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
    let valid = |text: &str| {
        let value: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        schema.iter_errors(&value).map(|error| error.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(valid(SHOP), Vec::<String>::new());
    assert_eq!(valid("network: shop\ndns: intercept"), Vec::<String>::new());
    let rule = "network: shop\nrules: [{ name: a, from: {}, to: { app: api } }]";
    assert!(!valid(rule).is_empty(), "only a service has ports of its own");
}

fn service() -> impl Strategy<Value = String> {
    let port = (1..4u16, 1..4u16, any::<bool>());
    (0..2u8, prop::collection::btree_map(1..5u16, port, 1..3)).prop_map(|(app, ports)| {
        let ports = ports.iter().map(|(port, (to, _, udp))| {
            let protocol = if *udp { "udp" } else { "tcp" };
            format!("{{ port: {}, to: {to}, protocol: {protocol} }}", port + 100)
        });
        let ports = ports.collect::<Vec<_>>().join(", ");
        format!("for: {{ app: a{app} }}, ports: [{ports}]")
    })
}

proptest! {
    /// A rule about a service is a rule about its instances and their ports.
    #[test]
    fn a_service_opens_what_a_rule_by_labels_would(
        services in prop::collection::vec(service(), 1..3),
        rules in prop::collection::vec((0..2u8, 0..2usize, any::<bool>()), 1..4),
    ) {
        let mut text = "network: shop\nservices:\n".to_owned();
        for (at, service) in services.iter().enumerate() {
            writeln!(text, "  - {{ name: s{at}, {service} }}").unwrap();
        }
        text += "rules:\n";
        for (at, (from, service, denies)) in rules.iter().enumerate() {
            let service = service % services.len();
            let deny = if *denies { ", deny: [any]" } else { "" };
            let from = format!("{{ app: c{from} }}");
            let to = format!("{{ service: s{service} }}");
            writeln!(text, "  - {{ name: r{at}, from: {from}, to: {to}{deny} }}").unwrap();
        }
        let policy = parsed(&text).policy;
        let mut plain = policy.clone();
        plain.services.clear();
        plain.rules.iter_mut().for_each(|rule| rule.target = Target::Labels);
        prop_assert_eq!(&Policy::parse(&policy.to_yaml().unwrap()).unwrap(), &policy);
        for (from, to) in (0..2).flat_map(|from| (0..2).map(move |to| (from, to))) {
            let from: Labels = format!("app=c{from}").parse().unwrap();
            let to: Labels = format!("app=a{to}").parse().unwrap();
            let acl = compile(&policy, &from, &to, &[]);
            prop_assert_eq!(&acl, &compile(&plain, &from, &to, &[]));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for port in 0..6 {
                    let flow = NewFlow { from: &from, to: &to, outside: None, accepts: &[], protocol, port };
                    prop_assert_eq!(acl.verdict(protocol, port), policy.decide(&flow).verdict);
                    let rule = |denies: bool| rules.iter().enumerate().any(|(at, (_, _, own))| {
                        let rule = &policy.rules[at];
                        *own == denies && rule.from.matches(&from) && rule.to.matches(&to)
                            && rule.ports().iter().any(|spec| spec.matches(protocol, port))
                    });
                    prop_assert_eq!(acl.allows(protocol, port), rule(false) && !rule(true));
                }
            }
        }
    }
}
