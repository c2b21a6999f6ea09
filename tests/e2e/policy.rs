//! Policy on running traffic.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, mesh, tcp_echoes, udp_echoes};
use meshward_api_types::local::State;
use std::time::Duration;

#[test]
fn a_policy_change_cuts_the_running_connection_and_leaves_the_others() {
    let shop = Shop::new(&allow("tcp/8080, tcp/9090"));
    let _echoes = [8080, 9090].map(|port| Echo::start(&shop.api.netns, port));
    let cut = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    let kept = Stream::start(&shop.web.netns, shop.api.v6(), 9090);
    assert!(cut.flows(PATIENCE) && kept.flows(PATIENCE));
    let said = shop.mesh.apply(&allow("tcp/9090")).unwrap();
    assert!(said.contains("closes"), "{said}");
    // What was on its way when the command returned may still arrive.
    std::thread::sleep(Duration::from_millis(50));
    assert!(!cut.flows(SILENCE), "the connection goes on");
    assert!(kept.flows(PATIENCE), "the other connection was cut");
    shop.mesh.apply(&allow("tcp/8080, tcp/9090")).unwrap();
    assert!(cut.flows(PATIENCE), "an allowed connection is taken up where it stood");
}

#[test]
fn a_quarantine_cuts_everything_until_its_release_and_holds_for_newcomers() {
    let shop = Shop::new(&allow("tcp/8080, udp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    let said = shop.mesh.meshctl(&["quarantine", "app=api"]).unwrap();
    assert!(said.contains("1 workload is quarantined; 2 of 2 nodes enforce it"), "{said}");
    std::thread::sleep(Duration::from_millis(50));
    assert!(!stream.flows(SILENCE));
    assert!(!udp_echoes(&shop.web.netns, shop.api.v6(), 8080, 64, SILENCE));
    let late = shop.nodes[0].attach("shop", "app=api").unwrap();
    assert_eq!(late.state, State::Quarantined);
    let _late_echo = Echo::start(&late.netns, 8080);
    assert!(!tcp_echoes(&shop.web.netns, late.v4(), 8080, 64, SILENCE));
    let shown = shop.mesh.meshctl(&["workloads"]).unwrap();
    assert_eq!(shown.matches("quarantined").count(), 2, "{shown}");
    let why = shop
        .mesh
        .meshctl(&["explain", "--from", "app=web", "--to", "app=api", "--port", "tcp/8080"])
        .unwrap();
    assert!(why.contains("quarantine"), "{why}");
    shop.mesh.meshctl(&["release", "app=api"]).unwrap();
    assert!(stream.flows(PATIENCE));
    assert!(tcp_echoes(&shop.web.netns, late.v4(), 8080, 64, PATIENCE));
}

#[test]
fn one_workload_can_be_quarantined_by_its_id() {
    let shop = Shop::new(&allow("tcp/8080"));
    let other = shop.nodes[1].attach("shop", "app=api").unwrap();
    let _echoes = (Echo::start(&shop.api.netns, 8080), Echo::start(&other.netns, 8080));
    shop.mesh.meshctl(&["quarantine", &shop.api.id]).unwrap();
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    assert!(tcp_echoes(&shop.web.netns, other.v4(), 8080, 64, PATIENCE));
    shop.mesh.meshctl(&["release", &shop.api.id]).unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let said = shop.mesh.meshctl(&["release", "app=api"]).unwrap_err().to_string();
    assert!(said.contains("no quarantine holds exactly"), "{said}");
}

#[test]
fn guardrails_and_denials_stand_above_rules_on_the_wire() {
    let policy = "
network: shop
rules:
  - { name: all, from: {}, to: {}, allow: [any] }
  - { name: not-ssh, from: {}, to: {}, deny: [tcp/22] }
guardrails:
  - { name: never, from: { app: web }, to: { app: api }, deny: [tcp/9000-9999] }
  - { name: always, from: { app: web }, to: { app: api }, allow: [tcp/22] }
";
    let shop = Shop::new(policy);
    let _echoes = [22, 80, 9500].map(|port| Echo::start(&shop.api.netns, port));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 80, 64, PATIENCE), "the rule allows");
    assert!(
        tcp_echoes(&shop.web.netns, shop.api.v4(), 22, 64, PATIENCE),
        "the guardrail allows over the denial"
    );
    assert!(
        !tcp_echoes(&shop.web.netns, shop.api.v4(), 9500, 64, SILENCE),
        "the guardrail denies over the rule"
    );
}

#[test]
fn links_show_what_passed_and_what_was_denied() {
    let shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 100_000, PATIENCE));
    assert!(!udp_echoes(&shop.api.netns, shop.web.v4(), 53, 64, SILENCE));
    let shown = shop.mesh.links().unwrap();
    assert_eq!(shown.nodes_answered, 2);
    let link =
        |from: &str| shown.items.iter().find(|link| link.from.get("app") == Some(from)).unwrap();
    assert!(link("web").bytes > 200_000, "both directions count: {shown:?}");
    assert_eq!(link("web").denied, 0);
    assert_eq!(link("api").denied, 1);
    assert_eq!(link("api").acl.entries(), []);
    let table = shop.mesh.meshctl(&["links", "--denied"]).unwrap();
    assert!(table.contains("nothing") && !table.contains("tcp/8080"), "{table}");
}

#[test]
fn a_node_is_told_of_peers_only_while_a_link_needs_them() {
    let mut mesh = mesh();
    let nodes = ["a", "b", "c"].map(|name| mesh.node(name).start().unwrap());
    let _workloads = [
        nodes[0].attach("shop", "app=web"),
        nodes[1].attach("shop", "app=api"),
        nodes[2].attach("shop", "app=other"),
    ]
    .map(|workload| workload.unwrap());
    mesh.apply(&allow("tcp/8080")).unwrap();
    let peers = |node: usize| -> Vec<String> {
        let peers = nodes[node].endpoint().unwrap().peers;
        peers.iter().map(|peer| peer.node.to_string()).collect()
    };
    assert_eq!((peers(0), peers(1), peers(2)), (vec!["b".into()], vec!["a".into()], vec![]));
    mesh.apply("network: shop").unwrap();
    assert_eq!((peers(0), peers(1), peers(2)), (vec![], vec![], vec![]));
}
