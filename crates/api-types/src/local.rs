//! The bodies of the node's local API, over a unix socket.

use crate::Measured;
use ipnet::IpNet;
use meshward_types::{
    accept::AcceptFrom,
    labels::Labels,
    names::{NetworkName, NodeName, Revision, WorkloadId, WorkloadName},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Where the node's socket is, unless it is configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/meshward/node.sock";

/// Whether a request is only to say what it would do: nothing is changed then. In the query of
/// every write, as `?dry_run=true`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DryRun(pub bool);

/// A namespace to be attached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The network.
    pub network: NetworkName,
    /// What people call the workload; its id if it is left out.
    #[serde(default)]
    pub name: Option<WorkloadName>,
    /// The labels that its owner declares.
    #[serde(default)]
    pub labels: Labels,
    /// What its owner declares about who may reach it.
    #[serde(default)]
    pub accepts: Vec<AcceptFrom>,
    /// The network namespace, as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// A process whose end detaches the workload.
    #[serde(default)]
    pub owner: Option<u32>,
    /// Whether the namespace may be that of the host itself.
    #[serde(default)]
    pub host: bool,
}

/// Prefixes behind a node, to be offered as a route.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// The network whose workloads are to reach them.
    pub network: NetworkName,
    /// The prefixes.
    pub prefixes: Vec<IpNet>,
    /// The labels of all machines there.
    #[serde(default)]
    pub labels: Labels,
    /// What people call it; the workload's id if it is left out.
    #[serde(default)]
    pub name: Option<WorkloadName>,
}

/// What is said of a container by whoever places it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// What people call it.
    #[serde(default)]
    pub name: Option<WorkloadName>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Who may reach it.
    #[serde(default)]
    pub accepts: Vec<AcceptFrom>,
}

/// Where a Kubernetes API is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// `https://HOST:PORT`.
    pub server: String,
    /// The file of a bearer token that may get, list and watch pods and namespaces.
    pub token_file: PathBuf,
    /// The file of the CA's certificate, in PEM.
    pub ca_file: PathBuf,
}

/// A pod, and who knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// The API.
    pub api: Kubernetes,
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What tells it from others by that name, earlier and later, if the runtime has said so.
    #[serde(default)]
    pub uid: Option<String>,
}

/// A container to be placed by the CNI plugin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceContainer {
    /// The network.
    pub network: NetworkName,
    /// The id of the container or pod.
    pub container: String,
    /// What the runtime calls the interface.
    pub interface: String,
    /// What it is to be called: behind another plugin, the runtime's name is taken.
    pub named: String,
    /// The network namespace.
    pub netns: PathBuf,
    /// Addresses of the node's blocks that are asked for, at most one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The socket of an API like Docker's that knows the container.
    #[serde(default)]
    pub engine: Option<PathBuf>,
    /// The pod that it is.
    #[serde(default)]
    pub pod: Option<Pod>,
    /// What is known of it without asking anybody.
    #[serde(default)]
    pub declared: Declared,
}

/// A container that was placed. Nothing passes until it is measured and let in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlacedContainer {
    /// The workload.
    pub id: WorkloadId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes of its network.
    pub prefixes: Vec<IpNet>,
    /// The MTU of its interface, in bytes.
    pub mtu: u16,
}

/// A container's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerKey {
    /// The id of the container or pod.
    pub container: String,
    /// What the runtime calls the interface.
    pub interface: String,
}

/// A container as it is attached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// The workload.
    pub workload: LocalWorkload,
    /// Whether its interface is in its namespace.
    pub is_there: bool,
}

/// Other labels for a workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relabel {
    /// All labels that its owner declares from now on.
    pub labels: Labels,
    /// Those that it has, as the caller has read them: if it has others by now, it keeps these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<Labels>,
}

/// How far a workload has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum State {
    /// It is not known yet what runs in it: nothing passes.
    Unmeasured,
    /// The coordinator has not said anything yet: nothing passes.
    Waiting,
    /// Admitted: policy decides what passes.
    Open,
    /// Started while the coordinator is away, with labels that this node knows: policy decides what
    /// passes.
    Vouched,
    /// Quarantined: nothing passes.
    Quarantined,
    /// Refused, and why: nothing passes.
    Refused(String),
}

/// A workload of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalWorkload {
    /// Its id.
    pub id: WorkloadId,
    /// What people call it.
    pub name: WorkloadName,
    /// Its network.
    pub network: NetworkName,
    /// The labels that its owner declares.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a route.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
    /// Its interface in its namespace.
    pub interface: String,
    /// Its namespace.
    pub netns: PathBuf,
    /// What was measured of it; nothing for a process that no container runtime runs.
    #[serde(default)]
    pub measured: Option<Measured>,
    /// How far it has come.
    #[serde(flatten)]
    pub state: State,
}

/// A peer, as an endpoint sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalPeer {
    /// The node.
    pub node: NodeName,
    /// Where packets to it go now.
    pub address: Option<SocketAddr>,
    /// The direct way to it that was lost, while packets to it are relayed.
    #[serde(default)]
    pub lost: Option<LostWay>,
    /// How long a packet to it may be without being cut on its way, in bytes, if that has been
    /// found out.
    #[serde(default)]
    pub longest: Option<u16>,
    /// Seconds since the last handshake.
    pub handshake_age: Option<u64>,
    /// Bytes sent to it, before encryption.
    pub sent: u64,
    /// Bytes received from it, after decryption.
    pub received: u64,
}

/// A direct way to a peer that was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostWay {
    /// Where it led.
    pub address: SocketAddr,
    /// Seconds since then.
    pub seconds: u64,
    /// In how many seconds it may be taken again, if it is good then.
    pub again_in: u64,
    /// Why, in words.
    pub why: String,
}

/// An endpoint of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalEndpoint {
    /// The network.
    pub network: NetworkName,
    /// The node's blocks of it.
    pub blocks: Vec<IpNet>,
    /// The endpoint's WireGuard key.
    pub public_key: String,
    /// Its UDP port.
    pub port: u16,
    /// What the kernel does for many packets at once: `tso`, `uso`, `udp-segment`, `udp-gro`.
    pub offloads: Vec<String>,
    /// Its peers.
    pub peers: Vec<LocalPeer>,
    /// Flows in the table.
    pub flows: usize,
    /// Packets dropped, by cause.
    pub drops: BTreeMap<String, u64>,
    /// For how many seconds a conversation is kept in which nothing is said, by its kind.
    #[serde(default)]
    pub timeouts: BTreeMap<String, u64>,
}

/// What is left behind, beside the socket, by a node daemon that has ended because its node was
/// removed from the mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedNode {
    /// The node's name.
    pub node: NodeName,
    /// The mesh's id.
    pub mesh: String,
    /// When the node heard of it, in seconds since the epoch.
    pub at: u64,
}

impl RemovedNode {
    /// Where it is left, for a daemon with this socket.
    pub fn place(socket: &Path) -> PathBuf {
        socket.with_extension("removed")
    }
}

/// The node in short.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalStatus {
    /// Its name.
    pub node: NodeName,
    /// Its version.
    pub version: String,
    /// How many threads may carry its packets.
    pub workers: usize,
    /// How many do now.
    pub workers_active: usize,
    /// The coordinator that it belongs to.
    pub coordinator: String,
    /// Whether it has a session with the coordinator.
    pub connected: bool,
    /// What keeps it from writing down what it has to; nothing if all is well. It enforces all the
    /// same.
    #[serde(default)]
    pub degraded: Option<String>,
    /// The revision that it enforces.
    pub revision: Revision,
    /// Seconds until its certificate expires; negative once it has.
    pub certificate_seconds: i64,
    /// Its endpoints.
    pub endpoints: Vec<LocalEndpoint>,
    /// How many workloads it runs.
    pub workloads: usize,
}
