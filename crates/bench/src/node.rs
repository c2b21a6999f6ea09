//! One real daemon with many peers, rules, workloads and flows: the peers that it reaches, and the
//! memory that it needs.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
    swarm::{Member, Swarm},
};
use anyhow::{Context, Result, ensure};
use meshward_control_proto::{
    Resource, ResourceKey, View,
    view::{IdentitySpec, NetworkSpec, PeerSpec, WorkloadSpec},
};
use meshward_datapath::{
    ConfigChange, Link, NetworkConfig, PeerConfig, PeerSite, Quarantine, SecretKey, WorkloadConfig,
};
use meshward_lab::{Internet, Mesh, Node, Site, Workload, back_to_back, output};
use meshward_node::{folder::Folder, view_store::ViewStore};
use meshward_types::{
    Acl, AclEntry, Conduct, IdentityId, InstanceStates, NetworkName, NodeName, PortRange, Protocol,
    Revision,
};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 51820;
const CLIENT: IdentityId = IdentityId(1);
/// Number of identities of the peers' workloads; each has a link with its part of the rules.
const FAR_IDENTITIES: u32 = 100;
/// The port that the load uses.
const LOAD: u16 = 5201;

/// The size of a node's part of the mesh.
struct Size {
    peers: u16,
    rules: u16,
    workloads: u16,
}

/// Measures a node at full size; `quick` at a tenth of everything, to see that it works.
///
/// # Errors
/// Fails if the daemon does not come up.
pub fn node(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let part = if quick { 10 } else { 1 };
    let mut rows =
        memory(tools, &Size { peers: 1000 / part, rules: 10_000 / part, workloads: 100 / part })?;
    rows.extend(reach(tools, &Size { peers: 10_000 / part, rules: 1000, workloads: 1 })?);
    Ok(rows)
}

/// Every workload has a flow with every peer's.
fn memory(tools: &Tools, size: &Size) -> Result<Vec<Row>> {
    let flows = u64::from(size.peers) * u64::from(size.workloads);
    let case = format!("{} workloads, {} peers, {} rules", size.workloads, size.peers, size.rules);
    eprintln!("{case}, {flows} flows");
    let mut stand = Stand::build(tools, size)?;
    let begun = stand.memory()?;
    let workloads = stand.attach(size.workloads)?;
    let _swarm = stand.answer(&workloads)?;
    let mut answered = 0;
    for workload in &workloads {
        answered += exchange(workload, &stand.members, Duration::from_millis(500))?;
    }
    let counted = stand.flows()?;
    ensure!(counted >= flows * 99 / 100, "only {counted} of {flows} flows stand");
    eprintln!("  {counted} flows stand; {answered} datagrams came back");
    let figure = |case: String, value: f64, target| {
        Figures { bench: "node", case, metric: "resident memory", unit: "MiB", ours: &[value] }
            .absolute(target)
    };
    let all = figure(format!("{case}, {counted} flows"), stand.memory()?, Target::AtMost(120.0));
    Ok(vec![figure(format!("{case}, after its start"), begun, Target::None), all])
}

/// Measures how many peers one workload reaches, and the daemon's memory with them.
fn reach(tools: &Tools, size: &Size) -> Result<Vec<Row>> {
    eprintln!("{} peers", size.peers);
    let mut stand = Stand::build(tools, size)?;
    let workloads = stand.attach(1)?;
    let _swarm = stand.answer(&workloads)?;
    let begun = Instant::now();
    let reached = exchange(&workloads[0], &stand.members, Duration::from_secs(20))?;
    let seconds = begun.elapsed().as_secs_f64();
    let case = format!("{} peers", size.peers);
    let figure = |metric, unit, value: f64, target| {
        Figures { bench: "node", case: case.clone(), metric, unit, ours: &[value] }.absolute(target)
    };
    Ok(vec![
        figure("peers reached", "", reached as f64, Target::AtLeast(f64::from(size.peers))),
        figure("until all were", "s", seconds, Target::None),
        figure("resident memory", "MiB", stand.memory()?, Target::None),
    ])
}

/// Sends a datagram to every member's workload, again where nothing came back: how many answered in
/// `patience` after the last.
fn exchange(workload: &Workload, members: &[Member], patience: Duration) -> Result<usize> {
    let socket = workload.netns.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    let mut waiting: std::collections::HashSet<Ipv4Addr> =
        members.iter().map(|member| member.address).collect();
    let all = waiting.len();
    let mut last = Instant::now();
    let mut buffer = [0; 64];
    while !waiting.is_empty() && last.elapsed() < patience {
        let round: Vec<Ipv4Addr> = waiting.iter().copied().collect();
        for burst in round.chunks(200) {
            for address in burst {
                let _ = socket.send_to(b"are you there?", (*address, LOAD));
            }
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            while let Ok((_, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) {
                if waiting.remove(from.ip()) {
                    last = Instant::now();
                }
            }
        }
    }
    Ok(all - waiting.len())
}

/// A daemon that runs by the view on its disk, without a coordinator, and the site of its peers.
struct Stand {
    node: Node,
    members: Vec<Member>,
    peers_at: Site,
    node_key: meshward_types::PublicKey,
    node_at: Ipv4Addr,
    _mesh: Mesh,
}

impl Stand {
    fn build(tools: &Tools, size: &Size) -> Result<Self> {
        let [here, there] = back_to_back(["node", "peers"])?;
        // All peers' addresses are behind one cable.
        let ip = |site: &Site, arguments: &str| {
            output(&site.netns, Command::new("ip").args(arguments.split(' ')))
        };
        ip(&here, &format!("route add 198.19.0.0/16 via {}", there.v4))?;
        ip(&there, "route add local 198.19.0.0/16 dev eth0")?;
        let mut mesh =
            Mesh::builder(tools.ours.clone()).at(Internet::new()?, here.clone()).start()?;
        mesh.meshctl(&["network", "create", "bench", "--cidr", "10.0.0.0/8"])?;
        let mut node = mesh.node_at(here.clone()).token(&mesh.token(&[])?).start()?;
        let data = mesh.folder().join("node/data");
        let key = data.join("endpoints/bench.key");
        mesh.wait(|| key.exists() && data.join("endpoints/bench.port").exists())?;
        node.kill();
        mesh.coordinator.kill();
        let secret: [u8; 32] =
            fs::read(&key)?.try_into().ok().context("the endpoint's key has another length")?;
        let members = (0..size.peers).map(Member::new).collect::<Result<Vec<_>>>()?;
        let (_, mut store) = ViewStore::open(&Folder::open(&data)?);
        store.write_whole(&view(&members, size.rules)?)?;
        node.start()?;
        let node_key = SecretKey::from_bytes(secret).public();
        Ok(Self { node, members, peers_at: there, node_key, node_at: here.v4, _mesh: mesh })
    }

    fn attach(&self, count: u16) -> Result<Vec<Workload>> {
        (0..count).map(|_| self.node.attach("bench", "app=client")).collect()
    }

    /// Starts the peers, each with its configuration.
    fn answer(&self, workloads: &[Workload]) -> Result<Swarm> {
        let node: NodeName = "node".parse()?;
        let network = NetworkConfig {
            prefixes: vec!["10.0.0.0/8".parse()?],
            service_blocks: vec![],
            mtu: 1420,
            conduct: Conduct::default(),
        };
        let peer = PeerConfig {
            public_key: self.node_key,
            candidates: vec![(self.node_at, PORT).into()],
            prefixes: vec!["10.0.0.0/16".parse()?],
            site: PeerSite::Other,
        };
        let mut common =
            vec![ConfigChange::SetNetwork(network), ConfigChange::PutPeer(node.clone(), peer)];
        for workload in workloads {
            let config = workload_config(&node, workload.addresses.clone(), CLIENT);
            common.push(ConfigChange::PutWorkload(workload.id.parse()?, config));
        }
        let far = IdentityId(2);
        let any = PortRange { first: LOAD, last: LOAD };
        let acl = Acl::new(vec![AclEntry { protocol: Protocol::Udp, ports: any }]);
        common.push(ConfigChange::PutLink(Link { from: CLIENT, to: far }, acl));
        for identity in [CLIENT, far] {
            common.push(ConfigChange::PutIdentity(identity, Quarantine::None));
        }
        Swarm::start(&self.peers_at.netns, PORT, &self.members, |member| {
            let config = workload_config(&member.name, vec![member.address.into()], far);
            let own = ConfigChange::PutWorkload(member.workload.clone(), config);
            common.iter().cloned().chain([own]).collect()
        })
    }

    /// Resident memory of the daemon, in MiB (`proc_pid_status(5)`).
    fn memory(&mut self) -> Result<f64> {
        // What a burst has left behind is given back by then.
        thread::sleep(Duration::from_secs(1));
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.process().pid()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes / 1024.0)
    }

    fn flows(&self) -> Result<u64> {
        Ok(self.node.endpoint()?.flows as u64)
    }
}

fn workload_config(
    node: &NodeName,
    addresses: Vec<IpAddr>,
    identity: IdentityId,
) -> WorkloadConfig {
    WorkloadConfig {
        node: node.clone(),
        addresses,
        prefixes: vec![],
        identity,
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    }
}

fn identity_item(identity: IdentityId) -> Result<Resource> {
    let labels =
        if identity == CLIENT { "app=client".into() } else { format!("app=far-{identity}") };
    Ok(Resource::Identity(IdentitySpec {
        labels: labels.parse()?,
        accepts: vec![],
        quarantined: false,
        reset: false,
    }))
}

/// Returns the view that the daemon has on its disk.
fn view(members: &[Member], rules: u16) -> Result<View> {
    let network: NetworkName = "bench".parse()?;
    let spec = NetworkSpec {
        prefixes: vec!["10.0.0.0/8".parse()?],
        blocks: vec!["10.0.0.0/16".parse()?],
        ..NetworkSpec::with_mtu(1420)
    };
    let mut view = View { revision: Revision(1), ..View::default() };
    let mut put = |key: ResourceKey, resource: Resource| drop(view.resources.insert(key, resource));
    put(ResourceKey::Network(network.clone()), Resource::Network(spec));
    put(ResourceKey::Identity(network.clone(), CLIENT), identity_item(CLIENT)?);
    for far in 0..FAR_IDENTITIES {
        let identity = IdentityId(2 + far);
        put(ResourceKey::Identity(network.clone(), identity), identity_item(identity)?);
        // The load's own, then ports of which no two touch.
        let ports = (0..u32::from(rules) / FAR_IDENTITIES).map(|rule| LOAD + 2 * rule as u16);
        let entry = |port| AclEntry {
            protocol: Protocol::Udp,
            ports: PortRange { first: port, last: port },
        };
        put(
            ResourceKey::Link(network.clone(), CLIENT, identity),
            Resource::Link(Acl::new(ports.map(entry).collect())),
        );
    }
    for (number, member) in members.iter().enumerate() {
        let peer = PeerSpec {
            public_key: member.public_key(),
            candidates: vec![(member.underlay, PORT).into()],
            prefixes: vec![format!("{}/32", member.address).parse()?],
            site: None,
        };
        put(ResourceKey::Peer(network.clone(), member.name.clone()), Resource::Peer(peer));
        let spec = WorkloadSpec {
            prefixes: vec![],
            node: member.name.clone(),
            addresses: vec![member.address.into()],
            identity: IdentityId(2 + number as u32 % FAR_IDENTITIES),
            quarantined: false,
            reset: false,
            name: None,
            states: InstanceStates::default(),
        };
        put(
            ResourceKey::Workload(network.clone(), member.workload.clone()),
            Resource::Workload(spec),
        );
    }
    Ok(view)
}
