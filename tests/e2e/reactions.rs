//! The reactions of the mesh: triggers, and quarantines with an end and with forensics.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, tcp_echoes, udp_echoes};
use meshward_lab::Mesh;
use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

fn with_trigger(then: &str) -> String {
    format!(
        "{}triggers: [{{ name: scan, watch: {{ app: web }}, when: {{ denied_flows: 6, \
         distinct_ports: 5, within: 10s }}, {then} }}]\n",
        allow("tcp/8080")
    )
}

/// Has `web` try what it may not.
fn scan(shop: &Shop) {
    for port in 20..28 {
        udp_echoes(&shop.web.netns, shop.api.v4(), port, 8, Duration::from_millis(20));
    }
}

fn is_quarantined(mesh: &Mesh, id: &str) -> bool {
    let all = mesh.workloads().unwrap();
    all.iter().any(|workload| workload.id.as_str() == id && workload.quarantined)
}

#[test]
fn a_scanning_workload_is_quarantined_for_a_time() {
    let shop = Shop::new(&with_trigger("then: quarantine, for: 3s"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    scan(&shop);
    shop.mesh.wait(|| is_quarantined(&shop.mesh, &shop.web.id)).unwrap();
    assert!(!stream.flows(SILENCE));
    let shown = shop.mesh.meshctl(&["quarantines"]).unwrap();
    assert!(shown.contains("trigger:scan") && shown.contains("was denied"), "{shown}");
    shop.mesh.wait(|| !is_quarantined(&shop.mesh, &shop.web.id)).unwrap();
    // TCP tries again after twice the time each time.
    assert!(stream.flows(3 * PATIENCE), "its time is over");
    let audit = shop.mesh.meshctl(&["audit"]).unwrap();
    assert!(audit.contains("trigger:scan") && audit.contains("is over"), "{audit}");
}

#[test]
fn few_denials_are_no_scan() {
    let shop = Shop::new(&with_trigger("then: quarantine"));
    for _ in 0..20 {
        udp_echoes(&shop.web.netns, shop.api.v4(), 22, 8, Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(!is_quarantined(&shop.mesh, &shop.web.id), "many flows, but to one port");
}

#[test]
fn a_trigger_gives_labels_that_other_rules_speak_of() {
    let policy = with_trigger("then: { label: { suspect: 'yes' } }").replace(
        "allow: [tcp/8080] }]",
        "allow: [tcp/8080] }, { name: shun, from: { suspect: 'yes' }, to: {}, deny: [any] }]",
    );
    let shop = Shop::new(&policy);
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    scan(&shop);
    let labelled = || shop.mesh.meshctl(&["workloads"]).unwrap().contains("suspect=yes");
    shop.mesh.wait(labelled).unwrap();
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
}

#[test]
fn a_webhook_is_told_what_was_seen() {
    // It is on a network of the coordinator's own, which has to be allowed.
    let shop = Shop::with(&["--webhook-network", "127.0.0.0/8"], &allow("tcp/8080"));
    let server = shop.mesh.site.netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let port = server.local_addr().unwrap().port();
    let told = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        text
    });
    shop.mesh
        .apply(&with_trigger(&format!("then: {{ webhook: 'http://127.0.0.1:{port}/hook?a=b' }}")))
        .unwrap();
    scan(&shop);
    let text = told.join().unwrap();
    assert!(text.starts_with("POST /hook?a=b HTTP/1.1"), "{text}");
    assert!(text.contains("\"trigger\":\"scan\"") && text.contains(&shop.web.id), "{text}");
    assert!(!is_quarantined(&shop.mesh, &shop.web.id));
    let told = || shop.mesh.meshctl(&["audit"]).unwrap().contains("told http://127.0.0.1");
    shop.mesh.wait(told).unwrap();
}

#[test]
fn a_node_alone_holds_the_workload_until_the_coordinator_takes_over() {
    let mut shop = Shop::new(&with_trigger("then: quarantine, for: 10m, alone: true"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    shop.mesh.coordinator.kill();
    shop.mesh.wait(|| !shop.nodes[0].is_connected()).unwrap();
    scan(&shop);
    let held = |shop: &Shop| shop.nodes[0].meshctl(&["attached"]).unwrap().contains("quarantined");
    shop.mesh.wait(|| held(&shop)).unwrap();
    assert!(!stream.flows(SILENCE), "by the node's own decision");
    shop.nodes[0].kill();
    shop.nodes[0].start().unwrap();
    assert!(held(&shop), "a restart of the daemon forgets nothing");
    shop.mesh.restart_coordinator().unwrap();
    shop.mesh.wait(|| shop.nodes.iter().all(meshward_lab::Node::is_connected)).unwrap();
    assert!(!stream.flows(SILENCE));
}

#[test]
fn what_was_caught_while_the_coordinator_was_away_is_told_when_it_is_back() {
    let mut shop = Shop::new(&with_trigger("then: quarantine"));
    shop.mesh.coordinator.kill();
    shop.mesh.wait(|| !shop.nodes[0].is_connected()).unwrap();
    scan(&shop);
    std::thread::sleep(Duration::from_millis(600));
    let held = shop.nodes[0].meshctl(&["attached"]).unwrap();
    assert!(!held.contains("quarantined"), "the trigger does not let the node decide: {held}");
    shop.mesh.restart_coordinator().unwrap();
    shop.mesh.wait(|| is_quarantined(&shop.mesh, &shop.web.id)).unwrap();
}

#[test]
fn forensics_reach_a_quarantined_workload_and_nobody_else_does() {
    let shop = Shop::new(&allow("tcp/8080"));
    let forensics = shop.nodes[0].attach("shop", "role=forensics").unwrap();
    let twin = shop.nodes[1].attach("shop", "app=api").unwrap();
    let _echoes = (
        Echo::start(&shop.api.netns, 8080),
        Echo::start(&shop.api.netns, 22),
        Echo::start(&twin.netns, 22),
    );
    assert!(!tcp_echoes(&forensics.netns, shop.api.v4(), 22, 64, SILENCE), "no rule lets it in");
    shop.mesh
        .meshctl(&[
            "quarantine",
            &shop.api.id,
            "--allow-from",
            "role=forensics",
            "--for",
            "5m",
            "-m",
            "ticket 9",
        ])
        .unwrap();
    assert!(tcp_echoes(&forensics.netns, shop.api.v4(), 22, 64, PATIENCE));
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    assert!(
        !tcp_echoes(&forensics.netns, twin.v4(), 22, 64, SILENCE),
        "its twin is not quarantined"
    );
    let shown = shop.mesh.meshctl(&["quarantines"]).unwrap();
    assert!(shown.contains("role=forensics") && shown.contains("ticket 9"), "{shown}");
    shop.mesh.meshctl(&["release", &shop.api.id]).unwrap();
    assert!(!tcp_echoes(&forensics.netns, shop.api.v4(), 22, 64, SILENCE));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
}
