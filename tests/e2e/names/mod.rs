//! Names: what `dig`, glibc and musl get from the node, and what they do not.

mod containers;
pub(crate) mod servers;
mod upstreams;

use crate::support::{allow, mesh};
use anyhow::{Context, Result};
use meshward_lab::{Mesh, Node, Workload};
use meshward_netns::Netns;
use std::{
    net::IpAddr,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Two nodes: `web` on the first; `api`, three of them, and `db` on the second. `web` reaches
/// `api`, and `api` reaches `db`. The first node has one with the label `app=api` as well, so it
/// knows `db`, too.
struct Named {
    web: Workload,
    apis: Vec<Workload>,
    _other_api: Workload,
    db: Workload,
    /// The addresses at which the first node answers, IPv4 first.
    servers: Vec<IpAddr>,
    nodes: [Node; 2],
    mesh: Mesh,
}

const POLICY: &str = "network: shop
rules:
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/8080] }
  - { name: api-to-db, from: { app: api }, to: { app: db }, allow: [tcp/5432] }
";

impl Named {
    fn new(policy: &str) -> Self {
        let mut mesh = mesh();
        mesh.apply(policy).unwrap();
        let nodes = [mesh.node("cloud").start().unwrap(), mesh.node("rack").start().unwrap()];
        let named = |node: &Node, name: &str| {
            node.workload("shop", &format!("app={name}")).named(name).attach().unwrap()
        };
        let web = named(&nodes[0], "web");
        let apis = (0..3).map(|_| named(&nodes[1], "api")).collect();
        let other_api = nodes[0].attach("shop", "app=api").unwrap();
        let db = named(&nodes[1], "db");
        let servers = resolver(&nodes[0]);
        Self { web, apis, _other_api: other_api, db, servers, nodes, mesh }
    }

    fn dig(&self, arguments: &str) -> Answer {
        dig(&self.web.netns, self.servers[0], arguments)
    }

    /// Asks until the answer is as wanted, for some seconds: a policy reaches nodes before `apply`
    /// ends, and workloads soon after they are attached.
    fn wait_for(&self, arguments: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let answer = self.dig(arguments);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "{arguments}: {}", answer.text);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

pub(crate) fn resolver(node: &Node) -> Vec<IpAddr> {
    let mut addresses = node.endpoint().unwrap().resolver;
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

/// The queries so far that had an outcome.
fn queries(node: &Node, outcome: &str) -> u64 {
    let counts = node.endpoint().unwrap().queries;
    counts.iter().filter(|own| own.outcome == outcome).map(|own| own.queries).sum()
}

/// The output of `dig`.
#[derive(Debug)]
pub(crate) struct Answer {
    text: String,
}

impl Answer {
    fn status(&self) -> &str {
        let status = self.text.split_once("status: ").and_then(|(_, rest)| rest.split_once(','));
        status.map_or("none", |(status, _)| status)
    }

    fn has_flag(&self, flag: &str) -> bool {
        let flags = self.text.lines().find_map(|line| line.strip_prefix(";; flags: "));
        let flags = flags.and_then(|line| line.split_once(';')).map_or("", |(flags, _)| flags);
        flags.split_whitespace().any(|own| own == flag)
    }

    /// The data of the records of the answer section, sorted.
    pub(crate) fn data(&self) -> Vec<String> {
        let section = self.text.split_once(";; ANSWER SECTION:\n").map_or("", |(_, rest)| rest);
        let records = section.lines().take_while(|line| !line.is_empty());
        // Name, TTL, class, type, data.
        let data = |line: &str| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ");
        let mut data: Vec<String> = records.map(data).collect();
        data.sort();
        data
    }
}

/// Runs `dig @server ARGUMENTS` in a namespace.
pub(crate) fn dig(from: &Netns, server: IpAddr, arguments: &str) -> Answer {
    let server = format!("@{server}");
    let mut words = vec![server.as_str(), "+tries=1", "+time=3"];
    words.extend(arguments.split_whitespace());
    let out = within(from, "dig", &words).unwrap();
    Answer { text: String::from_utf8(out.stdout).unwrap() }
}

/// Runs a program in a namespace.
fn within(netns: &Netns, program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments);
    netns.run(|| command.output())?.with_context(|| format!("{program} cannot be run; install it"))
}

fn sorted(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<String> {
    let mut all: Vec<String> = addresses.into_iter().map(|address| address.to_string()).collect();
    all.sort();
    all
}

#[test]
fn a_workload_gets_the_names_of_what_it_reaches_and_no_others() {
    let shop = Named::new(POLICY);
    let three = |answer: &Answer| answer.data().len() == 3;
    let answer = shop.wait_for("api.shop.mesh A", three);
    assert_eq!(answer.data(), sorted(shop.apis.iter().map(Workload::v4)));
    assert!(answer.has_flag("aa") && answer.has_flag("ra") && !answer.has_flag("tc"));
    assert!(answer.text.contains("\t5\tIN\tA\t"), "{}", answer.text);
    let v6 = shop.dig("api.shop.mesh AAAA");
    assert_eq!(v6.data(), sorted(shop.apis.iter().map(Workload::v6)));
    assert_eq!(shop.dig("web.shop.mesh A").data(), sorted([shop.web.v4()]), "its own");
    let reverse = shop.dig(&format!("-x {}", shop.apis[0].v4()));
    assert_eq!(reverse.data(), ["api.shop.mesh."]);
    let reverse = shop.dig(&format!("-x {}", shop.apis[0].v6()));
    assert_eq!(reverse.data(), ["api.shop.mesh."]);
    assert_eq!(shop.dig("_8080._tcp.api.shop.mesh SRV").data(), ["0 0 8080 api.shop.mesh."]);
    assert_eq!(shop.dig("mesh SOA").status(), "NOERROR");

    let before = ["hidden", "unknown", "upstream"].map(|outcome| queries(&shop.nodes[0], outcome));
    for hidden in ["db.shop.mesh", "_5432._tcp.db.shop.mesh", "nobody.shop.mesh", "x.lab.mesh"] {
        let answer = shop.dig(&format!("{hidden} ANY"));
        assert_eq!(answer.status(), "NXDOMAIN", "{hidden}: {}", answer.text);
        assert!(answer.text.contains("IN\tSOA"), "{}", answer.text);
    }
    let hidden = shop.dig(&format!("-x {}", shop.db.v4()));
    assert_eq!(hidden.status(), "NXDOMAIN");
    let after = ["hidden", "unknown", "upstream"].map(|outcome| queries(&shop.nodes[0], outcome));
    let counted = [0, 1, 2].map(|at| after[at] - before[at]);
    assert_eq!(counted, [3, 2, 0], "hidden, unknown, upstream");

    let open = POLICY.replace("to: { app: db }", "to: { app: { in: [db, api] } }");
    let open = open.replace("from: { app: api }", "from: { app: { in: [api, web] } }");
    shop.mesh.apply(&open).unwrap();
    let answer = shop.wait_for("db.shop.mesh A", |answer| answer.status() == "NOERROR");
    assert_eq!(answer.data(), sorted([shop.db.v4()]));
    shop.mesh.meshctl(&["quarantine", "app=web"]).unwrap();
    assert_eq!(shop.dig("api.shop.mesh A").status(), "none", "a quarantine cuts this, too");
}

#[test]
fn queries_come_in_every_form_and_by_tcp() {
    let shop = Named::new(POLICY);
    shop.wait_for("api.shop.mesh A", |answer| answer.data().len() == 3);
    let [v4, v6] = shop.servers[..] else { panic!("{:?}", shop.servers) };
    for server in [v4, v6] {
        for transport in ["+notcp", "+tcp"] {
            let ask = |rest: &str| dig(&shop.web.netns, server, &format!("{transport} {rest}"));
            for name in ["api.shop.mesh", "aPI.ShOp.MesH"] {
                let answer = ask(&format!("{name} A"));
                assert_eq!(answer.data().len(), 3, "{server} {transport}: {}", answer.text);
                assert!(answer.text.contains(&format!("{name}.\t")), "{}", answer.text);
            }
            let plain = ask("+noedns api.shop.mesh A");
            assert!(plain.status() == "NOERROR" && !plain.text.contains("EDNS:"));
            let small = ask("+bufsize=512 api.shop.mesh A");
            assert!(small.text.contains("EDNS: version: 0"), "{}", small.text);
            assert_eq!(ask("+edns=7 +noednsnegotiation api.shop.mesh A").status(), "BADVERS");
            assert_eq!(ask("api.shop.mesh TXT").status(), "NOERROR");
            assert_eq!(ask("CH TXT version.bind").status(), "REFUSED");
            assert_eq!(ask("shop.mesh AXFR").data(), Vec::<String>::new());
        }
    }
    // Many queries on one connection.
    let names = vec!["api.shop.mesh"; 20].join(" ");
    let many = dig(&shop.web.netns, v4, &format!("+tcp +keepopen +short {names}"));
    assert_eq!(many.text.lines().count(), 60, "{}", many.text);
    // Nobody else has the resolver's address, and it has no other port.
    assert_eq!(dig(&shop.web.netns, v4, "-p 54 api.shop.mesh A").status(), "none");
}

#[test]
fn names_go_on_without_the_coordinator_and_after_a_restart() {
    let mut shop = Named::new(POLICY);
    let wanted = shop.wait_for("api.shop.mesh A", |answer| answer.data().len() == 3).data();
    shop.mesh.coordinator.kill();
    assert_eq!(shop.dig("api.shop.mesh A").data(), wanted);
    shop.nodes[0].kill();
    assert_eq!(shop.dig("api.shop.mesh A").status(), "none");
    shop.nodes[0].start().unwrap();
    assert_eq!(shop.wait_for("api.shop.mesh A", |a| a.status() != "none").data(), wanted);
    shop.wait_for("+tcp api.shop.mesh A", |a| a.data() == wanted);
    assert_eq!(shop.dig("db.shop.mesh A").status(), "NXDOMAIN");
    shop.mesh.restart_coordinator().unwrap();
    assert_eq!(shop.dig("api.shop.mesh A").data(), wanted);
}

#[test]
fn a_command_asks_the_node_and_the_hosts_files_stay_as_they_are() {
    let shop = Named::new(POLICY);
    let before = std::fs::read("/etc/resolv.conf").unwrap();
    let api = shop.apis[0].v4().to_string();
    let run = |more: &[&str], command: &[&str]| {
        let first = ["run", "--network", "shop", "--label", "app=web"];
        shop.nodes[0].meshctl(&[&first[..], more, &["--"], command].concat())
    };
    let printed = run(&[], &["cat", "/etc/resolv.conf"]).unwrap();
    assert!(printed.contains(&format!("nameserver {}", shop.servers[0])), "{printed}");
    assert!(!printed.contains("search"), "{printed}");
    let glibc = run(&[], &["getent", "ahosts", "api.shop.mesh"]).unwrap();
    assert!(glibc.contains(&api), "{glibc}");
    assert!(run(&[], &["getent", "ahosts", "api"]).is_err(), "there is no search domain");
    let search = run(&["--search", "shop.mesh"], &["getent", "ahosts", "api"]).unwrap();
    assert!(search.contains(&api), "{search}");
    assert!(run(&[], &["getent", "ahosts", "db.shop.mesh"]).is_err());

    let folder = tempfile::tempdir().unwrap();
    let musl = servers::musl_lookup(folder.path());
    let found = run(&[], &[musl.as_str(), "api.shop.mesh"]).unwrap();
    assert!(found.contains(&api), "{found}");
    assert_eq!(std::fs::read("/etc/resolv.conf").unwrap(), before);
}

#[test]
fn a_network_names_its_zone() {
    let shop = Named::new(&format!("{}dns: {{ zone: internal.example }}\n", allow("tcp/8080")));
    let answer = shop.wait_for("api.shop.internal.example A", |a| a.status() == "NOERROR");
    assert_eq!(answer.data().len(), 3);
    assert_ne!(shop.dig("api.shop.mesh A").status(), "NOERROR");
}

#[test]
fn a_service_has_its_virtual_addresses_its_ports_and_its_name() {
    let shop = Named::new(
        "network: shop
services:
  - { name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }, { port: 81, to: 9090 }] }
rules:
  - { name: web-to-api, from: { app: web }, to: { service: api }, allow: [tcp/80] }
",
    );
    let answer = shop.wait_for("api.shop.mesh A", |answer| answer.data().len() == 1);
    let v4 = answer.data().remove(0);
    assert!(!sorted(shop.apis.iter().map(Workload::v4)).contains(&v4), "it is of no workload");
    assert_eq!(shop.dig("api.shop.mesh AAAA").data().len(), 1);
    for name in ["api.shop.mesh", "_80._tcp.api.shop.mesh"] {
        let answer = shop.dig(&format!("{name} SRV"));
        assert_eq!(answer.data(), ["0 0 80 api.shop.mesh."], "{}", answer.text);
    }
    assert_eq!(shop.dig("_81._tcp.api.shop.mesh SRV").status(), "NXDOMAIN");
    assert_eq!(shop.dig(&format!("-x {v4}")).data(), ["api.shop.mesh."]);
    let of_db = dig(&shop.db.netns, shop.servers[0], "api.shop.mesh A");
    assert_eq!(of_db.status(), "NXDOMAIN", "{}", of_db.text);
}
