//! Rules by domain name: the gateway's node and the workload's learn the same addresses.

use super::{Outside, UPSTREAM, forward};
use crate::{
    names::{dig, resolver, servers},
    support::{Echo, PATIENCE, SILENCE, Stream, tcp_echoes},
};
use meshward_lab::{Node, Process, Site};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

const BY_NAME: &str = "network: shop
routes: [{ name: out, within: [0.0.0.0/0, \"::/0\"] }]
rules:
  - { name: bank, from: { app: web }, to: { dns: \"*.bank.example\" }, allow: [tcp/443] }
guardrails:
  - { name: not-the-router, from: {}, to: { cidr: 198.18.0.1 }, deny: [any] }
tests:
  - { from: { app: web }, to: { dns: api.bank.example }, port: tcp/443, expect: allow }
  - { from: { app: web }, to: { dns: bank.example }, port: tcp/443, expect: deny }
";

/// The time after which what was learnt is on disk.
const WRITTEN: Duration = Duration::from_secs(2);

/// The resolver of a node's host: `api.bank.example` and all names below it have the addresses of
/// a site.
fn upstream(outside: &Outside, node: &Node, site: &Site) -> Process {
    let folder = outside.mesh.folder().join(&node.site.name);
    std::fs::create_dir_all(&folder).unwrap();
    let record = |address: IpAddr| format!("--address=/api.bank.example/{address}");
    let records = [site.v4.into(), site.v6.into()].map(record);
    servers::dnsmasq(&node.site.netns, UPSTREAM, &folder, &records)
}

impl Outside {
    /// Asks for addresses of a name as `web`, and returns them.
    fn ask(&self, name: &str) -> Vec<IpAddr> {
        let server = resolver(&self.cloud)[0];
        let records = ["A", "AAAA"]
            .map(|kind| dig(&self.web.netns, server, &format!("+time=6 {name} {kind}")).data());
        records.concat().iter().map(|text| text.parse().unwrap()).collect()
    }

    fn denies(&self, to: IpAddr) -> bool {
        !tcp_echoes(&self.web.netns, to, 443, 1, SILENCE)
    }
}

#[test]
fn rules_name_domain_names_and_flows_outlive_their_answers() {
    let mut outside = Outside::new(&["gw"]);
    forward(&outside.gateways[0]);
    outside.mesh.apply(BY_NAME).unwrap();
    outside.start(0).unwrap();
    let elsewhere = outside.mesh.internet.site("elsewhere").unwrap();
    let _echo = Echo::start(&elsewhere.netns, 443);
    let own = outside.addresses();
    let others = [IpAddr::from(elsewhere.v4), elsewhere.v6.into()];
    // The resolver of the workload's own node would lead astray.
    let _wrong = upstream(&outside, &outside.cloud, &elsewhere);
    let mut right = upstream(&outside, &outside.gateways[0], &outside.server);

    outside.mesh.wait(|| outside.ask("api.bank.example") == own).unwrap();
    for to in own {
        outside.mesh.wait(|| outside.reaches(to, SILENCE)).unwrap();
        assert!(!tcp_echoes(&outside.web.netns, to, 22, 1, SILENCE), "no rule allows the port");
        assert!(!tcp_echoes(&outside.other.netns, to, 443, 1, SILENCE));
    }
    let stranger = outside.cloud.attach("shop", "app=web").unwrap();
    assert!(!tcp_echoes(&stranger.netns, own[0], 443, 1, SILENCE), "it has not asked");
    for to in others {
        assert!(outside.denies(to), "no answer had {to}");
    }

    // Answers change; connections stay, and new ones go where the names are now as well.
    let streams = own.map(|to| Stream::start(&outside.web.netns, to, 443));
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    right.kill();
    right = upstream(&outside, &outside.gateways[0], &elsewhere);
    outside.mesh.wait(|| outside.ask("v2.api.bank.example") == others).unwrap();
    assert!(others.iter().all(|to| outside.reaches(*to, PATIENCE)));
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));

    restarts_and_a_changed_policy(&mut outside, &streams, right);
}

fn restarts_and_a_changed_policy(outside: &mut Outside, streams: &[Stream], mut right: Process) {
    let [v4, v6] = outside.addresses();
    std::thread::sleep(WRITTEN);
    right.kill();
    outside.gateways[0].kill();
    outside.cloud.kill();
    outside.gateways[0].start().unwrap();
    outside.cloud.start().unwrap();
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    assert!(outside.reaches(v4, PATIENCE) && outside.reaches(v6, PATIENCE), "nobody asks again");

    let explain = |to: &str| {
        let asked = ["explain", "--from", "app=web", "--outside", to, "--port", "tcp/443"];
        outside.mesh.meshctl(&asked).unwrap()
    };
    let said = explain("api.bank.example");
    assert!(said.contains("allowed") && said.contains("rule `bank`"), "{said}");
    let said = explain("bank.example");
    assert!(said.contains("denied") && said.contains("default deny"), "{said}");
    let links = outside.mesh.meshctl(&["links"]).unwrap();
    assert!(links.contains("to *.bank.example"), "{links}");

    let other = BY_NAME.replace("*.bank", "*.shop").replace("api.bank", "api.shop");
    outside.mesh.apply(&other).unwrap();
    assert!(streams.iter().all(|stream| !stream.flows(SILENCE)));
    assert!(outside.denies(v4) && outside.denies(v6));
    outside.mesh.apply(BY_NAME).unwrap();
    assert!(streams.iter().all(|stream| stream.flows(2 * PATIENCE)), "they go on");
    // A guardrail goes before what names say.
    let guarded = BY_NAME.replace("198.18.0.1", &v4.to_string());
    outside.mesh.apply(&guarded).unwrap();
    assert!(outside.denies(v4) && outside.reaches(v6, PATIENCE));
}

#[test]
fn a_gateway_that_takes_over_knows_the_names() {
    let mut outside = Outside::new(&["gw1", "gw2"]);
    outside.mesh.apply(BY_NAME).unwrap();
    let _upstreams: Vec<Process> = (0..2)
        .map(|number| {
            forward(&outside.gateways[number]);
            outside.start(number).unwrap();
            upstream(&outside, &outside.gateways[number], &outside.server)
        })
        .collect();
    let [v4, _] = outside.addresses();
    outside.mesh.wait(|| outside.ask("api.bank.example") == outside.addresses()).unwrap();
    outside.mesh.wait(|| outside.reaches(v4, SILENCE)).unwrap();
    std::thread::sleep(WRITTEN);
    for number in [0, 1] {
        outside.gateways[number].kill();
        let begun = Instant::now();
        while !outside.reaches(v4, Duration::from_millis(250)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "gateway {number} is not replaced");
        }
        assert_eq!(outside.ask("www.api.bank.example"), outside.addresses(), "by the other one");
        outside.gateways[number].start().unwrap();
        // The gateway that has just come back is down for the others until it has answered.
        std::thread::sleep(Duration::from_secs(4));
    }
}
