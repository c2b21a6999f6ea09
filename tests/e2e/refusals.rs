//! Refusals that are heard: applications notice at once that something is denied, or was cut.

use crate::{
    devices::Machine,
    gateways::{FAR, behind},
    support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, connect, echo_once},
};
use meshward_api_types::Quarantine;
use meshward_lab::Workload;
use meshward_netns::Netns;
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
};

/// Returns the error of a refused connection.
fn refusal(from: &Netns, to: IpAddr, port: u16) -> ErrorKind {
    let error = connect(from, to, port, SILENCE).expect_err("nothing allows it");
    error.downcast::<std::io::Error>().unwrap().kind()
}

/// Returns the error after a refused datagram.
fn udp_refusal(from: &Netns, to: IpAddr, port: u16) -> ErrorKind {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = from.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    from.run(|| socket.connect((to, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send(b"is there anybody?").unwrap();
    socket.recv(&mut [0; 64]).unwrap_err().kind()
}

fn prohibited(to: IpAddr) -> ErrorKind {
    if to.is_ipv4() { ErrorKind::HostUnreachable } else { ErrorKind::PermissionDenied }
}

/// Both ends of a connection.
fn connection(from: &Netns, to: &Netns, at: IpAddr, port: u16) -> [TcpStream; 2] {
    let listener = to.run(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    let client = connect(from, at, port, PATIENCE).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    [client, server]
}

/// Connections from `web` to another workload in both address families, some of which have carried
/// something.
fn connections(shop: &Shop, to: &Workload) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for (at, port) in [(to.v4(), 8080), (to.v6(), 8081), (to.v4(), 8082)] {
        let [mut client, mut server] = connection(&shop.web.netns, &to.netns, at, port);
        if port != 8082 {
            client.write_all(b"a question").unwrap();
            server.read_exact(&mut [0; 10]).unwrap();
            server.write_all(b"an answer").unwrap();
            client.read_exact(&mut [0; 9]).unwrap();
        }
        all.extend([client, server]);
    }
    all
}

fn assert_reset(streams: &mut [TcpStream]) {
    for (at, stream) in streams.iter_mut().enumerate() {
        let kind = stream.read(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ConnectionReset), "end {at}");
    }
}

fn assert_silent(streams: &mut [TcpStream]) {
    for (at, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(SILENCE / 4)).unwrap();
        let kind = stream.read(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::WouldBlock), "end {at}");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

const PORTS: &str = "tcp/8080-8082, udp/5353";

/// `web` may use `api` and `db`, which is on its own node; `more` is said besides.
fn shop(more: &str) -> (Shop, Workload) {
    let shop = Shop::new(&policy(more));
    let db = shop.nodes[0].attach("shop", "app=db").unwrap();
    (shop, db)
}

fn policy(more: &str) -> String {
    let rules = format!(
        "- {{ name: r, from: {{ app: web }}, to: {{ app: {{ in: [api, db] }} }}, allow: [{PORTS}] \
         }}"
    );
    format!("network: shop\n{more}\nrules:\n{rules}\n")
}

#[test]
fn what_is_denied_is_heard_of_at_once_if_the_network_says_so() {
    let (shop, db) = shop("on_deny: reject");
    for to in [&shop.api, &db] {
        for at in [to.v4(), to.v6()] {
            assert_eq!(refusal(&shop.web.netns, at, 22), ErrorKind::ConnectionRefused, "{at}");
            assert_eq!(udp_refusal(&shop.web.netns, at, 53), prohibited(at), "{at}");
        }
    }
    // The other way around nothing is allowed at all, and where nobody is that is not told apart.
    for to in [
        "10.42.77.77".parse().unwrap(),
        "fd42::77:77".parse().unwrap(),
        shop.web.v4(),
        shop.web.v6(),
    ] {
        assert_eq!(refusal(&db.netns, to, 8080), ErrorKind::ConnectionRefused, "{to}");
        assert_eq!(udp_refusal(&db.netns, to, 53), prohibited(to), "{to}");
    }
    assert!(shop.nodes[0].drops("rejected") >= 12);
    let said =
        shop.mesh.meshctl(&["explain", "--from", "app=web", "--to", "app=api", "--port", "tcp/22"]);
    assert!(said.unwrap().contains("rejected"));
    // A connection that is cut is reset at both ends, before anybody speaks.
    let _echo = Echo::start(&db.netns, 8080);
    let mut stream = connect(&shop.web.netns, db.v4(), 8080, PATIENCE).unwrap();
    assert!(echo_once(&mut stream, 100).unwrap());
    shop.mesh.apply("network: shop\non_deny: reject\n").unwrap();
    assert_reset(&mut [stream]);
}

#[test]
fn a_rule_or_a_guardrail_says_what_is_heard_of() {
    let rules = "rules:
- { name: r, from: { app: web }, to: { app: api }, allow: [tcp/8080], on_deny: reject }
";
    let guardrails = "guardrails:
- { name: g, from: { app: web }, to: { app: db }, deny: [tcp/22], on_deny: reject }
";
    let shop = Shop::new(&format!("network: shop\n{rules}{guardrails}"));
    let db = shop.nodes[0].attach("shop", "app=db").unwrap();
    for (to, port, heard) in [
        (shop.api.v4(), 22, ErrorKind::ConnectionRefused),
        (shop.api.v6(), 8081, ErrorKind::ConnectionRefused),
        (db.v4(), 22, ErrorKind::ConnectionRefused),
        (db.v6(), 22, ErrorKind::ConnectionRefused),
        (db.v4(), 23, ErrorKind::TimedOut),
    ] {
        assert_eq!(refusal(&shop.web.netns, to, port), heard, "{to} {port}");
    }
    assert_eq!(refusal(&db.netns, shop.web.v4(), 22), ErrorKind::TimedOut);
}

#[test]
fn a_quarantine_with_reset_is_noticed_at_both_ends() {
    let (shop, db) = shop("on_deny: reject");
    let mut all = [connections(&shop, &shop.api), connections(&shop, &db)].concat_streams();
    shop.mesh.meshctl(&["quarantine", "app=web", "--reset"]).unwrap();
    assert_reset(&mut all);
    // Nothing else is said to who is quarantined.
    assert_eq!(refusal(&shop.web.netns, shop.api.v4(), 8080), ErrorKind::TimedOut);
    assert_eq!(udp_refusal(&shop.web.netns, db.v4(), 5353), ErrorKind::WouldBlock);
    let quarantines: Vec<Quarantine> = shop.mesh.list("quarantines").unwrap();
    assert!(quarantines[0].reset);
}

#[test]
fn a_quarantine_without_reset_is_not_heard_of() {
    let (shop, _db) = shop("");
    let mut all = connections(&shop, &shop.api);
    shop.mesh.meshctl(&["quarantine", "app=web"]).unwrap();
    assert_silent(&mut all);
    // One that is imposed with reset afterwards does not tell what the first has cut.
    shop.mesh.meshctl(&["quarantine", "app=db", "--reset"]).unwrap();
    assert_silent(&mut all);
    shop.mesh.meshctl(&["release", "app=web"]).unwrap();
    all[0].write_all(b"goes on").unwrap();
    all[1].read_exact(&mut [0; 7]).unwrap();
}

#[test]
fn a_policy_that_is_applied_with_reset_is_noticed_at_both_ends() {
    let (mut shop, db) = shop("");
    let mut all = [connections(&shop, &shop.api), connections(&shop, &db)].concat_streams();
    let file = shop.mesh.folder().join("closed.yaml");
    std::fs::write(&file, allow("tcp/22")).unwrap();
    shop.mesh.meshctl(&["policy", "apply", &file.to_string_lossy(), "--reset"]).unwrap();
    assert_reset(&mut all);
    // Where both ends are is not known after a restart: they are asked.
    shop.mesh.apply(&policy("on_revoke: reset")).unwrap();
    let mut all = [connections(&shop, &shop.api), connections(&shop, &db)].concat_streams();
    for node in &mut shop.nodes {
        node.process().stop();
        node.start().unwrap();
    }
    for node in &shop.nodes {
        shop.mesh.wait(|| node.is_connected()).unwrap();
    }
    shop.mesh.apply("network: shop\non_revoke: reset\n").unwrap();
    assert_reset(&mut all);
}

/// Connections in both directions and both families with somebody who is no workload of a node,
/// which have carried something.
fn both_ways(shop: &Shop, who: &Netns, at: [IpAddr; 2]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for (number, at) in at.into_iter().enumerate() {
        let web = if at.is_ipv4() { shop.web.v4() } else { shop.web.v6() };
        let port = 9000 + number as u16;
        for [mut a, mut b] in [
            connection(&shop.web.netns, who, at, port),
            connection(who, &shop.web.netns, web, port),
        ] {
            a.write_all(b"a question").unwrap();
            b.read_exact(&mut [0; 10]).unwrap();
            all.extend([a, b]);
        }
    }
    all
}

/// Policy by which `web` and whoever has `label` may talk.
fn mutual(label: &str, more: &str) -> String {
    let rule = |name: &str, from: &str, to: &str| {
        format!("- {{ name: {name}, from: {{ {from} }}, to: {{ {to} }}, allow: [tcp/9000-9001] }}")
    };
    let rules = [rule("there", "app: web", label), rule("back", label, "app: web")].join("\n");
    format!(
        "network: shop
{more}
routes: [{{ name: dc, within: [10.8.0.0/16, fd08::/32] }}]
rules:
{rules}
"
    )
}

/// That `who` hears of refusals in both directions and of what is cut, by whatever it is cut.
fn assert_hears(shop: &Shop, who: &Netns, at: [IpAddr; 2], label: &str) {
    let selector = label.replace(": ", "=");
    shop.mesh.apply(&mutual(label, "on_deny: reject")).unwrap();
    for at in at {
        let web = if at.is_ipv4() { shop.web.v4() } else { shop.web.v6() };
        for (from, to) in [(&shop.web.netns, at), (who, web)] {
            assert_eq!(refusal(from, to, 22), ErrorKind::ConnectionRefused, "{to}");
            assert_eq!(udp_refusal(from, to, 53), prohibited(to), "{to}");
        }
    }
    // What refuses tells both ends of what is cut, too.
    let mut all = both_ways(shop, who, at);
    shop.mesh
        .apply(
            "network: shop
on_deny: reject
routes: [{ name: dc, within: [10.8.0.0/16, fd08::/32] }]
",
        )
        .unwrap();
    assert_reset(&mut all);
    // And without, it is told by who cuts.
    shop.mesh.apply(&mutual(label, "")).unwrap();
    let mut all = both_ways(shop, who, at);
    shop.mesh.meshctl(&["quarantine", &selector, "--reset"]).unwrap();
    assert_reset(&mut all);
    shop.mesh.meshctl(&["release", &selector]).unwrap();
    let mut all = both_ways(shop, who, at);
    let file = shop.mesh.folder().join("closed.yaml");
    std::fs::write(
        &file,
        "network: shop\nroutes: [{ name: dc, within: [10.8.0.0/16, fd08::/32] }]\n",
    )
    .unwrap();
    shop.mesh.meshctl(&["policy", "apply", &file.to_string_lossy(), "--reset"]).unwrap();
    assert_reset(&mut all);
    // Nothing is said where nobody says so, and what was cut goes on.
    shop.mesh.apply(&mutual(label, "")).unwrap();
    let mut all = both_ways(shop, who, at);
    shop.mesh.meshctl(&["quarantine", &selector]).unwrap();
    assert_silent(&mut all);
    shop.mesh.meshctl(&["release", &selector]).unwrap();
    for at in (0..all.len()).step_by(2) {
        all[at + 1].write_all(b"goes on").unwrap();
        all[at].read_exact(&mut [0; 7]).unwrap();
    }
}

#[test]
fn a_device_hears_of_refusals_and_of_what_is_cut() {
    let mut shop = Shop::new("network: shop");
    for (name, gateway) in [("far", "rack"), ("near", "cloud")] {
        let create = ["device", "create", "--name", name, "--network", "shop", "--label", "app=db"];
        let text = shop.mesh.meshctl(&[&create[..], &["--gateway", gateway]].concat()).unwrap();
        let machine = Machine::new(&mut shop.mesh, &text);
        let at = [machine.addresses[0], machine.addresses[1]];
        assert_hears(&shop, &machine.site.netns, at, "app: db");
        shop.mesh.meshctl(&["device", "remove", name, "--network", "shop"]).unwrap();
    }
}

#[test]
fn machines_behind_a_gateway_hear_of_refusals_and_of_what_is_cut() {
    let shop = Shop::new(&mutual("dc: dc1", ""));
    let gateway = &shop.nodes[1];
    let behind = behind(&shop.mesh, gateway, [1500, 1500]);
    gateway.advertise("shop", &["10.8.0.0/24", "fd08::/64"], "dc=dc1").unwrap();
    behind.speak_from_advertised();
    assert_hears(&shop, &behind.far, FAR, "dc: dc1");
}

#[test]
fn what_stays_allowed_is_not_reset_by_what_changes_beside_it() {
    let policy = |rule: &str, ports: &str| {
        let rule = format!(
            "- {{ name: {rule}, from: {{ app: web }}, to: {{ app: api }}, allow: [{ports}] }}"
        );
        format!("network: shop\non_deny: reject\non_revoke: reset\nrules:\n{rule}\n")
    };
    let shop = Shop::new(&policy("first", "tcp/7000"));
    let near = shop.nodes[0].attach("shop", "app=api").unwrap();
    let _echoes = [&near, &shop.api].map(|api| Echo::start(&api.netns, 7000));
    let targets = [shop.api.v4(), shop.api.v6(), near.v4(), near.v6()];
    let streams = targets.map(|to| Stream::start(&shop.web.netns, to, 7000));
    let flow = |what: &str| {
        for (stream, to) in streams.iter().zip(targets) {
            assert!(stream.flows(PATIENCE), "{what}: {to}");
        }
    };
    flow("at first");
    for round in 0..4 {
        for (node, workload) in [(0, &shop.web), (1, &shop.api), (0, &near)] {
            shop.nodes[node].meshctl(&["label", &workload.id, &format!("round={round}")]).unwrap();
            flow("other labels");
        }
        shop.mesh
            .apply(&policy(&format!("rule-{round}"), ["tcp/7000-7100", "tcp/7000"][round % 2]))
            .unwrap();
        flow("another rule");
        let others = [0, 1]
            .map(|at| shop.nodes[at].attach("shop", &format!("app=web,other={round}")).unwrap());
        shop.mesh.meshctl(&["quarantine", &format!("other={round}")]).unwrap();
        flow("others that come, and are quarantined");
        for (node, other) in shop.nodes.iter().zip(&others) {
            node.meshctl(&["detach", &other.id]).unwrap();
        }
        shop.mesh.meshctl(&["keys", "rotate", "--keep-old", "1s"]).unwrap();
        flow("other keys");
    }
}

trait Streams {
    fn concat_streams(self) -> Vec<TcpStream>;
}

impl Streams for [Vec<TcpStream>; 2] {
    fn concat_streams(self) -> Vec<TcpStream> {
        self.into_iter().flatten().collect()
    }
}
