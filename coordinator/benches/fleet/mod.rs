//! A mesh with one great service: 10,000 instances, ten on each node, and a client on each node.

use ipnet::{IpNet, Ipv4Net};
use meshward_control_state::{
    records::{
        EndpointRecord, IdentityRecord, NetworkRecord, NodeRecord, PolicyRecord, Record,
        WorkloadRecord,
    },
    world::World,
};
use meshward_types::{IdentityId, Labels, NetworkName, NodeName, PolicyFile, PublicKey, Revision};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

const INSTANCES_ON_NODE: u32 = 10;
const CLIENT: IdentityId = IdentityId(1);
const INSTANCE: IdentityId = IdentityId(2);

/// A rule that lets clients reach every instance.
pub(crate) const BY_LABELS: &str = "{ app: api }, allow: [tcp/8080]";
/// A rule that lets clients reach the service.
pub(crate) const BY_SERVICE: &str = "{ service: api }";

fn network() -> NetworkName {
    "shop".parse().expect("a name")
}

pub(crate) fn node(at: u32) -> NodeName {
    format!("node-{at}").parse().expect("a name")
}

fn labels(identity: IdentityId) -> Labels {
    if identity == CLIENT { "app=web" } else { "app=api" }.parse().expect("labels")
}

/// Makes the world of so many instances, which clients reach by a rule to `to`.
pub(crate) fn world(instances: u32, to: &str) -> anyhow::Result<World> {
    let mut records = vec![Record::Network(NetworkRecord {
        name: network(),
        prefixes: vec![IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8)?)],
        block_v4: 24,
        block_v6: 64,
        mtu: 1420,
        service_blocks: vec![],
        resolver: vec![],
    })];
    for identity in [CLIENT, INSTANCE] {
        let labels = labels(identity);
        records.push(Record::Identity(IdentityRecord {
            id: identity,
            network: network(),
            labels,
            accepts: vec![],
        }));
    }
    for at in 0..instances / INSTANCES_ON_NODE {
        records.push(Record::Node(node_record(at)?));
        records.push(Record::Workload(workload(at, 0, CLIENT)));
        let hosts = 1..=INSTANCES_ON_NODE;
        records.extend(hosts.map(|host| Record::Workload(workload(at, host, INSTANCE))));
    }
    let text = format!(
        "network: shop\nservices:\n  - {{ name: api, for: {{ app: api }}, ports: [{{ port: 80, to: 8080 }}] }}\n\
         rules:\n  - {{ name: use, from: {{ app: web }}, to: {to} }}\n"
    );
    let files = vec![PolicyFile { name: "policy.yaml".into(), text }];
    records.push(Record::Policy(PolicyRecord {
        resets: 0,
        network: network(),
        files: files.into(),
    }));
    World::load(Revision(1), records).map_err(anyhow::Error::msg)
}

fn block(node: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) | (node << 8))
}

fn node_record(at: u32) -> anyhow::Result<NodeRecord> {
    let mut public_key = [0x5a; 32];
    public_key[..4].copy_from_slice(&at.to_le_bytes());
    let endpoint = EndpointRecord {
        public_key: PublicKey(public_key),
        candidates: vec![format!("192.0.2.{}:51820", at % 256).parse()?],
        previous_key: None,
    };
    Ok(NodeRecord {
        name: node(at),
        site: None,
        labels: Labels::default(),
        networks: vec![],
        key: "key".into(),
        endpoints: BTreeMap::from([(network(), endpoint)]),
        blocks: BTreeMap::from([(network(), vec![IpNet::V4(Ipv4Net::new(block(at), 24)?)])]),
        problems: BTreeMap::new(),
        waiting: false,
        forget_after: None,
    })
}

fn workload(at: u32, host: u32, identity: IdentityId) -> WorkloadRecord {
    WorkloadRecord {
        prefixes: vec![],
        device: None,
        id: format!("w-{at}-{host}").parse().expect("an id"),
        network: network(),
        node: node(at),
        name: format!("w-{host}").parse().expect("a name"),
        addresses: vec![Ipv4Addr::from(u32::from(block(at)) + 1 + host).into()],
        declared: labels(identity),
        accepts: vec![],
        label_override: None,
        measurement: None,
        identity,
        owns_name: false,
        unhealthy: BTreeSet::new(),
    }
}
