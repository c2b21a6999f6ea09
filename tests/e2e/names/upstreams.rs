//! Names outside of the mesh: the host's resolvers, split zones, and encrypted transports.

use super::{
    POLICY, dig, resolver,
    servers::{self, BIG, Certificate},
};
use crate::support::mesh;
use meshward_lab::{Mesh, Node, Process, Workload};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const SPLIT: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);

/// A node whose host has a resolver (unbound), and beside it the server of a split zone (dnsmasq).
struct Upstream {
    web: Workload,
    server: IpAddr,
    node: Node,
    unbound: Process,
    _dnsmasq: Process,
    mesh: Mesh,
    folder: PathBuf,
}

impl Upstream {
    fn new(dns: &str) -> Self {
        let mut mesh = mesh();
        mesh.apply(&format!("{POLICY}dns: {dns}\n")).unwrap();
        let folder = mesh.folder().to_owned();
        let file = folder.join("resolv.conf");
        fs::write(&file, format!("search corp.example\nnameserver {HOST}\n")).unwrap();
        let site = mesh.internet.site("cloud").unwrap();
        let certificate = Certificate::make(&folder);
        let unbound = servers::unbound(&site.netns, HOST, &folder, Some(&certificate), "");
        let dnsmasq = servers::dnsmasq(&site.netns, SPLIT, &folder, &[]);
        let flags = ["--resolv-conf".to_owned(), file.to_string_lossy().into_owned()];
        let mut node = mesh.node_at(site).flags(&flags).start().unwrap();
        // Of the certificates that it trusts, the server's is the only one.
        node.environment = vec![("SSL_CERT_FILE".to_owned(), certificate.file)];
        node.kill();
        node.start().unwrap();
        let web = node.workload("shop", "app=web").named("web").attach().unwrap();
        let server = resolver(&node)[0];
        Self { web, server, node, unbound, _dnsmasq: dnsmasq, mesh, folder }
    }

    fn dig(&self, arguments: &str) -> super::Answer {
        dig(&self.web.netns, self.server, arguments)
    }

    fn queries(&self, outcome: &str) -> u64 {
        super::queries(&self.node, outcome)
    }
}

#[test]
fn other_names_go_to_the_hosts_resolver_and_names_of_the_mesh_never_do() {
    let mut shop = Upstream::new("{ zones: { corp.example: [127.0.1.2] } }");
    let answer = shop.dig("WWW.upstream.test A");
    assert_eq!(answer.data(), ["192.0.2.80"]);
    assert!(answer.text.contains("WWW.upstream.test.\t"), "{}", answer.text);
    assert!(!answer.has_flag("aa") && answer.has_flag("ra"));
    assert_eq!(shop.dig("www.upstream.test AAAA").data(), ["2001:db8::80"]);
    assert_eq!(shop.dig("text.upstream.test TXT").data(), ["\"hello\""]);
    let none = shop.dig("nobody.upstream.test A");
    assert_eq!(none.status(), "NXDOMAIN");
    assert!(none.text.contains("IN\tSOA"), "{}", none.text);
    assert_eq!(shop.dig("www.upstream.test MX").status(), "NOERROR");
    // Too much for a datagram: the asker takes TCP, and so does the node.
    let cut = shop.dig("+ignore big.upstream.test A");
    assert!(cut.has_flag("tc") && !cut.data().is_empty(), "{}", cut.text);
    assert_eq!(shop.dig("big.upstream.test A").data().len(), usize::from(BIG));
    // The server of the split zone is another one.
    assert_eq!(shop.dig("www.corp.example A").data(), ["192.0.2.10"]);

    let before = shop.queries("upstream");
    for name in ["secret.shop.mesh", "a.mesh", "9.200.42.10.in-addr.arpa"] {
        assert_eq!(shop.dig(&format!("{name} A")).status(), "NXDOMAIN");
    }
    assert_eq!(shop.queries("upstream"), before, "these leave no trace upstream");
    let log = fs::read_to_string(shop.folder.join(format!("unbound-{HOST}.log"))).unwrap();
    assert!(log.contains("text.upstream.test") && !log.contains("secret"), "{log}");

    // The cache answers while the upstream is gone; what it does not know, nobody answers.
    shop.unbound.kill();
    assert_eq!(shop.dig("www.upstream.test A").data(), ["192.0.2.80"]);
    assert_eq!(shop.dig("+time=9 other.upstream.test A").status(), "SERVFAIL");
    assert_eq!(shop.dig("web.shop.mesh A").data().len(), 1);
    // Another resolver of the host's is used as soon as its file says so.
    let other = Ipv4Addr::new(127, 0, 1, 3);
    let _unbound = servers::unbound(&shop.node.site.netns, other, &shop.folder, None, "");
    fs::write(shop.folder.join("resolv.conf"), format!("nameserver {other}\n")).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while shop.dig("+time=9 text.upstream.test TXT").data() != ["\"hello\""] {
        assert!(std::time::Instant::now() < end);
    }
    drop(shop.mesh);
}

#[test]
fn upstreams_are_asked_by_tls_and_https_with_their_certificate() {
    for (scheme, name, works) in [
        ("tls", "dns.upstream.test", true),
        ("https", "dns.upstream.test", true),
        ("tls", "other.upstream.test", false),
        ("https", "other.upstream.test", false),
    ] {
        let shop = Upstream::new(&format!("{{ upstreams: [\"{scheme}://{HOST}#{name}\"] }}"));
        let answer = shop.dig("+time=9 www.upstream.test A");
        let wanted = if works { "NOERROR" } else { "SERVFAIL" };
        assert_eq!(answer.status(), wanted, "{scheme} {name}: {}", answer.text);
        assert_eq!(shop.queries("failed"), u64::from(!works));
    }
}

#[test]
fn one_workloads_queries_do_not_take_anothers_share() {
    let shop = Upstream::new("{ zones: { dead.example: [127.0.1.9] } }");
    let silent = || std::net::UdpSocket::bind("127.0.1.9:53");
    let _silent = shop.node.site.netns.run(silent).unwrap().unwrap();
    let other = shop.node.workload("shop", "app=web").attach().unwrap();
    let server = shop.server;
    let socket = shop.web.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for number in 0..500_u16 {
        // A query for N.dead.example, type A.
        let id = number.to_be_bytes();
        let mut query = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        let label = format!("n{number}");
        for label in [label.as_str(), "dead", "example"] {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        socket.send_to(&query, (server, 53)).unwrap();
    }
    let answer = dig(&other.netns, server, "www.upstream.test A");
    assert_eq!(answer.data(), ["192.0.2.80"], "{}", answer.text);
    assert!(shop.queries("limited") > 0);
}

#[test]
fn a_cluster_resolver_forwards_the_zone_to_the_node() {
    // As CoreDNS does with `forward mesh`: a resolver that is itself a workload.
    let shop = Upstream::new("{ intercept: false }");
    let server = shop.server;
    let at = Ipv4Addr::LOCALHOST;
    let forwards = ["mesh", "10.in-addr.arpa"].map(|zone| format!("--server=/{zone}/{server}"));
    let _dnsmasq = servers::dnsmasq(&shop.web.netns, at, &shop.folder, &forwards);
    let answer = dig(&shop.web.netns, at.into(), "web.shop.mesh A");
    assert_eq!(answer.data(), [shop.web.v4().to_string()], "{}", answer.text);
    let more = format!(
        "  domain-insecure: mesh\nforward-zone:\n  name: mesh.\n  \
        forward-addr: {server}\n"
    );
    let at = Ipv4Addr::new(127, 0, 0, 2);
    let _unbound = servers::unbound(&shop.web.netns, at, &shop.folder, None, &more);
    let answer = dig(&shop.web.netns, at.into(), "web.shop.mesh A");
    assert_eq!(answer.data(), [shop.web.v4().to_string()], "{}", answer.text);
    assert_eq!(dig(&shop.web.netns, at.into(), "db.shop.mesh A").status(), "NXDOMAIN");
}
