//! The mesh that is measured: tenants of a hundred nodes, each with fifty applications that run
//! everywhere in it, and one service that everybody uses.

use ipnet::{IpNet, Ipv4Net};
use meshward_control_proto::WorkloadReport;
use meshward_control_state::records::{
    EndpointRecord, IdentityRecord, NetworkRecord, NodeRecord, PolicyRecord, Record, WorkloadRecord,
};
use meshward_types::{
    IdentityId, Labels, NetworkName, NodeName, PolicyFile, PublicKey, WorkloadId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::Ipv4Addr,
};

/// Nodes of a tenant.
pub(crate) const NODES: u32 = 100;
/// Applications of a tenant; each is one identity.
pub(crate) const APPS: u32 = 50;
/// Rules of a tenant.
pub(crate) const RULES: u32 = 20;
/// Workloads of an application.
pub(crate) const INSTANCES: u32 = 200;
/// Nodes that run the service which all tenants use. They know every workload of the mesh.
const SERVERS: u32 = 3;

/// The size of the mesh.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// The number of tenants.
    pub tenants: u32,
}

impl Shape {
    pub(crate) const FULL: Self = Self { tenants: 100 };

    pub(crate) fn nodes(self) -> u32 {
        self.tenants * NODES
    }

    pub(crate) fn records(self, key: &str) -> Vec<Record> {
        let mut records = vec![Record::Network(NetworkRecord {
            name: network(),
            prefixes: vec![IpNet::V4(
                Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("a length below 33"),
            )],
            block_v4: 24,
            block_v6: 64,
            mtu: 1420,
            service_blocks: vec![],
            resolver: vec![],
        })];
        records.extend((0..self.nodes()).map(|at| Record::Node(node_record(at, key))));
        for tenant in 0..self.tenants {
            for app in 0..APPS {
                let (id, labels) = (identity(tenant, app), labels(tenant, app));
                records.push(Record::Identity(IdentityRecord {
                    id,
                    network: network(),
                    labels,
                    accepts: vec![],
                }));
                records
                    .extend((0..INSTANCES).map(|at| Record::Workload(workload(tenant, app, at))));
            }
        }
        let id = IdentityId(self.tenants * APPS + 1);
        records.push(Record::Identity(IdentityRecord {
            id,
            network: network(),
            labels: dns(),
            accepts: vec![],
        }));
        for server in 0..SERVERS {
            records.push(Record::Workload(WorkloadRecord {
                prefixes: vec![],
                device: None,
                id: dns_workload(server),
                network: network(),
                node: node(server),
                name: "dns".parse().expect("a name"),
                addresses: vec![address(server, 250)],
                declared: dns(),
                accepts: vec![],
                label_override: None,
                measurement: None,
                identity: id,
                owns_name: true,
                unhealthy: BTreeSet::new(),
            }));
        }
        let files = vec![PolicyFile { name: "policy.yaml".into(), text: self.policy(0) }];
        records.push(Record::Policy(PolicyRecord {
            resets: 0,
            network: network(),
            files: files.into(),
        }));
        records
    }

    /// The policy; with another `version`, one rule is another.
    pub(crate) fn policy(self, version: u32) -> String {
        let mut text = format!("network: {}\nrules:\n", network());
        let _ = writeln!(
            text,
            "  - {{ name: dns, from: {{ env: prod }}, to: {{ app: dns }}, allow: [udp/53] }}"
        );
        for rule in 1..self.tenants * RULES {
            let (tenant, at) = (rule / RULES, rule % RULES);
            let port = 8000 + at + if rule == 1 { version } else { 0 };
            let _ = writeln!(
                text,
                "  - {{ name: r{rule}, from: {{ tenant: t{tenant}, app: {{ in: [a{at}, a{}] }} }}, \
                to: {{ tenant: t{tenant}, tier: w{} }}, allow: [tcp/{port}, icmp] }}",
                at + RULES,
                at % 5
            );
        }
        text
    }
}

pub(crate) fn network() -> NetworkName {
    "mesh".parse().expect("a name")
}

pub(crate) fn node(at: u32) -> NodeName {
    format!("node-{at}").parse().expect("a name")
}

fn node_record(at: u32, key: &str) -> NodeRecord {
    let mut public_key = [0x5a; 32];
    public_key[..4].copy_from_slice(&at.to_le_bytes());
    let block = Ipv4Net::new(block(at), 24).expect("a length below 33");
    let endpoint = EndpointRecord {
        public_key: PublicKey(public_key),
        candidates: vec![format!("192.0.2.{}:51820", at % 256).parse().expect("an address")],
        previous_key: None,
    };
    NodeRecord {
        name: node(at),
        site: None,
        labels: Labels::default(),
        networks: vec![],
        key: key.to_owned(),
        endpoints: [(network(), endpoint)].into(),
        blocks: [(network(), vec![IpNet::V4(block)])].into(),
        problems: BTreeMap::default(),
        waiting: false,
        forget_after: None,
    }
}

fn block(node: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) | (node << 8))
}

pub(crate) fn address(node: u32, host: u32) -> std::net::IpAddr {
    Ipv4Addr::from(u32::from(block(node)) + host).into()
}

fn identity(tenant: u32, app: u32) -> IdentityId {
    IdentityId(tenant * APPS + app + 1)
}

pub(crate) fn labels(tenant: u32, app: u32) -> Labels {
    format!("tenant=t{tenant},app=a{app},tier=w{},env=prod,team=team-{}", app % 5, tenant % 7)
        .parse()
        .expect("labels")
}

fn dns() -> Labels {
    "app=dns,tenant=platform".parse().expect("labels")
}

pub(crate) fn dns_workload(server: u32) -> WorkloadId {
    format!("w-dns-{server}").parse().expect("an id")
}

pub(crate) fn workload_id(tenant: u32, app: u32, at: u32) -> WorkloadId {
    format!("w-{tenant}-{app}-{at}").parse().expect("an id")
}

/// The node that runs an instance.
pub(crate) fn node_of(tenant: u32, at: u32) -> u32 {
    tenant * NODES + at % NODES
}

fn workload(tenant: u32, app: u32, at: u32) -> WorkloadRecord {
    let on = node_of(tenant, at);
    WorkloadRecord {
        prefixes: vec![],
        device: None,
        id: workload_id(tenant, app, at),
        network: network(),
        node: node(on),
        name: format!("a{app}").parse().expect("a name"),
        addresses: vec![address(on, 1 + app * 2 + at / NODES)],
        declared: labels(tenant, app),
        accepts: vec![],
        label_override: None,
        measurement: None,
        identity: identity(tenant, app),
        owns_name: tenant == 0,
        unhealthy: BTreeSet::new(),
    }
}

/// A workload that a node starts beside those that it has.
pub(crate) fn report(node: u32, tag: &str, host: u32, labels: Labels) -> WorkloadReport {
    WorkloadReport {
        prefixes: vec![],
        device: None,
        id: format!("{tag}-{node}-{host}").parse().expect("an id"),
        network: network(),
        name: "new".parse().expect("a name"),
        labels,
        addresses: vec![address(node, host)],
        accepts: vec![],
        measurement: None,
        signatures: vec![],
        objection: None,
        unhealthy: vec![],
    }
}
