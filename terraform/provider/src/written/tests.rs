use super::*;

fn blocks() -> Value {
    Value::from_json(json!({
        "mode": "observe",
        "on_deny": "reject",
        "on_revoke": "reset",
        "udp_timeout": "2m",
        "rule": [
            { "name": "web-to-api", "from": "app=web", "to": "app=api", "allow": ["tcp/8080"] },
            {
                "name": "all",
                "from": "",
                "to": "env in (prod,stage),!old",
                "deny": ["icmp"],
                "observe": true,
            },
        ],
        "guardrail": [{
            "name": "g",
            "from": "env=dev",
            "to": "env=prod",
            "deny": ["any"],
            "on_deny": "drop",
        }],
        "test": [{ "from": "app=web", "to": "app=db", "port": "tcp/5432", "expect": "deny" }],
    }))
}

fn file(name: &str, text: &str) -> PolicyFile {
    PolicyFile { name: name.into(), text: text.into() }
}

#[test]
fn blocks_are_written_and_read_back_as_they_were() {
    let written = policy("shop", &blocks()).unwrap().unwrap();
    let own = file(POLICY, &written.text);
    assert!(check(std::slice::from_ref(&own), Some("shop"), Some((POLICY, &written))).is_empty());
    let read = read_back(&own, &"shop".parse().unwrap()).unwrap();
    assert_eq!(policy_blocks(&read).unwrap(), blocks());
    assert!(policy("shop", &Value::default()).unwrap().is_none());
}

#[test]
fn a_mistake_in_a_block_is_said_at_the_block() {
    let mut wrong = blocks();
    wrong.set(
        "test",
        Value::from_json(json!([
            { "from": "app=web", "to": "app=db", "port": "tcp/5432", "expect": "deny" },
            { "from": "app=web", "to": "app=api", "port": "tcp/8080", "expect": "deny" },
        ])),
    );
    let written = policy("shop", &wrong).unwrap().unwrap();
    let said = check(&[file(POLICY, &written.text)], Some("shop"), Some((POLICY, &written)));
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].path, Path::of("test").index(1).attribute("expect"));

    let mut wrong = blocks();
    wrong.set(
        "rule",
        Value::from_json(json!([{ "name": "r", "from": "a=b", "to": "", "allow": ["tcp/99999"] }])),
    );
    let written = policy("shop", &wrong).unwrap().unwrap();
    let said = check(&[file(POLICY, &written.text)], Some("shop"), Some((POLICY, &written)));
    assert_eq!(said[0].path, Path::of("rule").index(0).attribute("name"), "{said:?}");
}

#[test]
fn a_mistake_in_a_file_is_said_with_its_line_and_another_network_is_refused() {
    let said =
        check(&[file("a.yaml", "network: shop\nrules:\n  - { name: r }\n")], Some("shop"), None);
    assert!(said[0].detail.starts_with("a.yaml:3"), "{said:?}");
    assert_eq!(said[0].path, Path::of("files").key("a.yaml"));
    let said = check(&[file("a.yaml", "network: lab\n")], Some("shop"), None);
    assert!(said[0].detail.contains("for network lab"), "{said:?}");
}

#[test]
fn what_no_block_says_is_not_made_to_blocks() {
    let text = "network: shop\nroutes: [{ name: r, within: [10.0.0.0/8] }]\n";
    let read = read_back(&file("a.yaml", text), &"shop".parse().unwrap()).unwrap();
    assert!(policy_blocks(&read).is_none() && admission_blocks(&read).is_none());
}

#[test]
fn admission_is_written_and_read_back_as_it_was() {
    let config = Value::from_json(json!({
        "rule": [{
            "name": "released",
            "for": "app=web",
            "images": ["registry.example/shop/*"],
            "privileges": ["capability NET_ADMIN"],
            "shared": "allow",
        }],
    }));
    let written = admission("shop", &config).unwrap();
    let own = file(ADMISSION, &written.text);
    assert!(
        check(std::slice::from_ref(&own), Some("shop"), Some((ADMISSION, &written))).is_empty()
    );
    let read = read_back(&own, &"shop".parse().unwrap()).unwrap();
    assert_eq!(admission_blocks(&read).unwrap(), config);
}

#[test]
fn services_are_written_and_read_back_as_they_were() {
    let config = Value::from_json(json!({
        "dns_zone": "internal",
        "dns_intercept": true,
        "dns_upstreams": ["tls://9.9.9.9#dns.quad9.net"],
        "split_zone": [{ "name": "corp.example", "servers": ["10.8.0.53"] }],
        "service": [
            {
                "name": "api",
                "for": "app=api",
                "ports": ["tcp/80 to 8080", "udp/443"],
                "prefer": ["node", "site"],
                "fan_out": "20",
                "affinity": "10m",
                "weights": [
                    { "selector": "version=2", "weight": 5 },
                    { "selector": "!size", "weight": 0 },
                ],
                "health_http": "/healthz",
                "health_every": "2s",
            },
            { "name": "db", "for": "app=db", "ports": ["tcp/5432"], "health_tcp": 5432 },
        ],
        "rule": [
            { "name": "a", "from": "app=web", "to_service": "api" },
            { "name": "b", "from": "app=job", "to_service": "api", "allow": ["tcp/80"] },
            { "name": "c", "from": "app=old", "to_service": "db", "deny": ["any"] },
            { "name": "d", "from": "app=job", "to": "service=api", "allow": ["tcp/1"] },
        ],
        "guardrail": [],
        "test": [
            { "from": "app=web", "to_service": "api", "port": "tcp/80", "expect": "allow" },
        ],
    }));
    assert_is_read_back(&config);
    let mut wrong = config;
    wrong.set("rule", Value::from_json(json!([{ "name": "a", "from": "", "allow": ["tcp"] }])));
    let said = policy("shop", &wrong).err().unwrap();
    assert!(said[0].detail.contains("one of `to`, `to_service`"), "{said:?}");
}

fn assert_is_read_back(config: &Value) {
    let written = policy("shop", config).unwrap().unwrap();
    let own = file(POLICY, &written.text);
    let said = check(std::slice::from_ref(&own), Some("shop"), Some((POLICY, &written)));
    assert!(said.is_empty(), "{said:?}\n{}", written.text);
    let read = read_back(&own, &"shop".parse().unwrap()).unwrap();
    assert_eq!(policy_blocks(&read).unwrap(), *config);
}

#[test]
fn targets_outside_of_the_mesh_are_written_and_read_back_as_they_were() {
    let config = Value::from_json(json!({
        "rule": [
            {
                "name": "e",
                "from": "app=job",
                "to_cidr": ["203.0.113.0/24"],
                "to_dns": ["*.example.com", "example.com"],
                "via": "zone=eu",
                "allow": ["tcp/443"],
            },
        ],
        "guardrail": [],
        "test": [
            {
                "from": "app=job",
                "to_cidr": ["203.0.113.7/32"],
                "via": "zone=eu",
                "port": "tcp/443",
                "expect": "allow",
            },
            {
                "from": "app=job",
                "to_dns": ["www.example.com"],
                "via": "zone=eu",
                "port": "tcp/443",
                "expect": "allow",
            },
        ],
    }));
    assert_is_read_back(&config);
}
