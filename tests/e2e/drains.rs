//! Services and drains as `meshctl` shows and makes them.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, tcp_echoes};
use serde_json::Value;
use std::time::{Duration, Instant};

const POLICY: &str = "
network: shop
services:
  - { name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }], prefer: [node] }
rules:
  - { name: web-to-api, from: { app: web }, to: { service: api } }
";

fn json(shop: &Shop, arguments: &[&str]) -> Value {
    let text = shop.mesh.meshctl(&[arguments, &["-o", "json"]].concat()).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_service_is_shown_with_its_addresses_and_instances_and_opens_their_ports() {
    let shop = Shop::new(POLICY);
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE), "the rule opens it");
    let all = json(&shop, &["services"]);
    assert_eq!(all[0]["dns_name"], "api.shop.mesh");
    assert_eq!(all[0]["addresses"], serde_json::json!(["10.42.255.1", "fd42:0:0:ffff::1"]));
    assert_eq!((all[0]["ready"].as_u64(), all[0]["fan_out"].as_str()), (Some(1), Some("auto")));
    let one = json(&shop, &["service", "show", "api"]);
    assert_eq!(one["instances"][0]["workload"], *shop.api.id);
    assert_eq!(one["instances"][0]["serving"], "ready");
    let network = json(&shop, &["networks"]);
    assert_eq!(network[0]["resolver"], serde_json::json!(["10.42.255.53", "fd42:0:0:ffff::53"]));
    let shown = shop.mesh.meshctl(&["service", "show", "api"]).unwrap();
    for says in ["instances  1 ready", "clients    app=web, tcp/80 (rule web-to-api)"] {
        assert!(shown.contains(says), "{shown}");
    }
    let explain = |port: &str| {
        let asked = ["explain", "--from", "app=web", "--service", "api", "--port", port];
        shop.mesh.meshctl(&asked)
    };
    let said = explain("tcp/80").unwrap();
    assert!(said.contains("allowed") && said.contains("service api"), "{said}");
    let said = explain("tcp/8080").unwrap_err().to_string();
    assert!(said.contains("service `api` has no port tcp/8080; it has tcp/80"), "{said}");
    let said = shop.mesh.meshctl(&["service", "show", "apy"]).unwrap_err().to_string();
    assert!(said.contains("there is no service `apy` in network shop; it has api"), "{said}");
}

#[test]
fn a_service_that_nobody_reaches_says_so_and_weights_are_shown() {
    let weights = "weights: [{ for: { app: api }, weight: 7 }]";
    let policy = POLICY.replace("prefer: [node]", weights);
    let shop = Shop::new(policy.split("rules:").next().unwrap());
    let shown = shop.mesh.meshctl(&["service", "show", "api"]).unwrap();
    for says in ["none: no rule leads to it", "meshctl policy edit shop", "WEIGHT", " 7 "] {
        assert!(shown.contains(says), "{shown}");
    }
    shop.mesh.apply(&POLICY.replace("for: { app: api }", "for: { app: nothing }")).unwrap();
    let shown = shop.mesh.meshctl(&["service", "show", "api"]).unwrap();
    assert!(shown.contains("instances  0 ready"), "{shown}");
}

#[test]
fn an_instance_of_weight_zero_gets_no_connections_until_the_policy_gives_it_some() {
    let weights = |of_next, of_others| {
        let next = format!("{{ for: {{ version: next }}, weight: {of_next} }}");
        let others = format!("{{ for: {{ app: api }}, weight: {of_others} }}");
        POLICY.replace("prefer: [node]", &format!("weights: [{next}, {others}]"))
    };
    let shop = Shop::new(&weights(0, 10));
    // The one that listens is the one of weight 0.
    let next = shop.nodes[1].attach("shop", "app=api,version=next").unwrap();
    let _echo = Echo::start(&next.netns, 8080);
    let [v4, v6] = ["10.42.255.1", "fd42:0:0:ffff::1"].map(|address| address.parse().unwrap());
    let echoes = |to, patience| tcp_echoes(&shop.web.netns, to, 80, 64, patience);
    assert!(!echoes(v4, SILENCE) && !echoes(v6, SILENCE));
    shop.mesh.apply(&weights(1, 0)).unwrap();
    assert!(echoes(v4, PATIENCE) && echoes(v6, PATIENCE));
    let details = json(&shop, &["service", "show", "api"]);
    let instances = details["instances"].as_array().unwrap();
    let weight = |id: &str| {
        let own = instances.iter().find(|instance| instance["workload"] == *id).unwrap();
        own["weight"].as_u64().unwrap()
    };
    assert_eq!((weight(&next.id), weight(&shop.api.id)), (1, 0));
}

#[test]
fn a_drain_waits_for_the_flows_of_others_and_ends_none() {
    let shop = Shop::new(POLICY);
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    let begun = Instant::now();
    let drain = ["drain", &*shop.api.id, "--timeout", "2s", "-m", "upgrade"];
    let said = shop.mesh.meshctl(&drain).unwrap_err().to_string();
    assert!(said.contains("1 open flow left after 2s"), "{said}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(stream.flows(PATIENCE), "a drain cuts nothing");
    let shown = shop.mesh.meshctl(&["workloads"]).unwrap();
    assert!(shown.contains("draining"), "{shown}");
    let shown = shop.mesh.meshctl(&["service", "show", "api"]).unwrap();
    assert!(shown.contains("draining") && shown.contains("by user:admin: upgrade"), "{shown}");
    let drains = json(&shop, &["drain"]);
    assert_eq!(drains[0]["workload"], *shop.api.id);
    assert_eq!(drains[0]["why"], "upgrade");
    assert_eq!(json(&shop, &["service", "show", "api"])["service"]["draining"], 1);
    shop.mesh.meshctl(&["undrain", &shop.api.id]).unwrap();
    assert_eq!(json(&shop, &["service", "show", "api"])["service"]["ready"], 1);
    let said = shop.mesh.meshctl(&["drain", "--node", "cloud", "--timeout", "10s"]).unwrap();
    assert!(said.contains("1 workload is drained") && said.contains("no flows are left"), "{said}");
    let said = shop.mesh.meshctl(&["undrain", &shop.web.id]).unwrap_err().to_string();
    assert!(said.contains("meshctl undrain --node cloud"), "{said}");
}
