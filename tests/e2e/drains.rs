//! Services and drains as `meshctl` shows and makes them.

use crate::support::{Echo, PATIENCE, Shop, Stream, tcp_echoes};
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
    let explain = |port: &str| {
        let asked = ["explain", "--from", "app=web", "--service", "api", "--port", port];
        shop.mesh.meshctl(&asked)
    };
    let said = explain("tcp/80").unwrap();
    assert!(said.contains("allowed") && said.contains("service api"), "{said}");
    let said = explain("tcp/8080").unwrap_err().to_string();
    assert!(said.contains("service `api` has no port tcp/8080; it has tcp/80"), "{said}");
    let said = shop.mesh.meshctl(&["service", "show", "apy"]).unwrap_err().to_string();
    assert!(said.contains("there is no service"), "{said}");
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
