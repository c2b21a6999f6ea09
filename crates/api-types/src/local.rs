//! The bodies of the node's local API, over a unix socket.

use crate::Measured;
use ipnet::IpNet;
use meshward_types::{
    accept::AcceptFrom,
    labels::Labels,
    names::{NetworkName, NodeName, Revision, ServiceName, WorkloadId, WorkloadName},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// The default path of the node's socket.
pub const DEFAULT_SOCKET: &str = "/run/meshward/node.sock";

/// A dry run: the request is checked and answered, and nothing is changed. Every write accepts it
/// as `?dry_run=true`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DryRun(pub bool);

/// A namespace to be attached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The network.
    pub network: NetworkName,
    /// The name of the workload. Default: its id.
    #[serde(default)]
    pub name: Option<WorkloadName>,
    /// The labels that its owner declares.
    #[serde(default)]
    pub labels: Labels,
    /// The declarations of who may reach it (`accept-from`).
    #[serde(default)]
    pub accepts: Vec<AcceptFrom>,
    /// The network namespace, as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// A process: the workload is detached when it ends.
    #[serde(default)]
    pub owner: Option<u32>,
    /// `true` if the host's own namespace is permitted.
    #[serde(default)]
    pub host: bool,
}

/// Prefixes behind a node, to be advertised as a route.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// The network whose workloads may reach them.
    pub network: NetworkName,
    /// The prefixes.
    pub prefixes: Vec<IpNet>,
    /// The labels of the machines there.
    #[serde(default)]
    pub labels: Labels,
    /// The name. Default: the workload's id.
    #[serde(default)]
    pub name: Option<WorkloadName>,
}

/// The facts about a container from the runtime that creates it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// The name.
    #[serde(default)]
    pub name: Option<WorkloadName>,
    /// The labels.
    #[serde(default)]
    pub labels: Labels,
    /// The declarations of who may reach it (`accept-from`).
    #[serde(default)]
    pub accepts: Vec<AcceptFrom>,
}

/// The address of a Kubernetes API.
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

/// A pod, and the API that knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// The API.
    pub api: Kubernetes,
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID, which distinguishes it from earlier and later pods of that name, if the runtime has
    /// given it.
    #[serde(default)]
    pub uid: Option<String>,
}

/// A container to be attached by the CNI plugin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddContainer {
    /// The network.
    pub network: NetworkName,
    /// The id of the container or pod.
    pub container: String,
    /// The runtime's name of the interface.
    pub interface: String,
    /// The name to give to the interface: behind another plugin, the runtime's name is in use.
    pub named: String,
    /// The network namespace.
    pub netns: PathBuf,
    /// The requested addresses of the node's blocks, at most one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The socket of a Docker-compatible API that knows the container.
    #[serde(default)]
    pub engine: Option<PathBuf>,
    /// The container's pod.
    #[serde(default)]
    pub pod: Option<Pod>,
    /// The facts that the request itself contains.
    #[serde(default)]
    pub declared: Declared,
}

/// A container that was attached. Nothing passes until it is measured and admitted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddedContainer {
    /// The workload.
    pub id: WorkloadId,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes of its network.
    pub prefixes: Vec<IpNet>,
    /// The MTU of its interface, in bytes.
    pub mtu: u16,
    /// The addresses at which the node answers DNS in its network.
    #[serde(default)]
    pub resolver: Vec<IpAddr>,
}

/// A container's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerKey {
    /// The id of the container or pod.
    pub container: String,
    /// The runtime's name of the interface.
    pub interface: String,
}

/// The state of an attached container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// The workload.
    pub workload: LocalWorkload,
    /// `true` if the interface is in the workload's namespace.
    pub is_there: bool,
}

/// New labels for a workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relabel {
    /// All labels that its owner declares from now on.
    pub labels: Labels,
    /// The labels that the caller has read: if the workload has others by now, it keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<Labels>,
}

/// The state of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum State {
    /// It is not measured yet: nothing passes.
    Unmeasured,
    /// The coordinator has not answered yet: nothing passes.
    Waiting,
    /// Admitted: policy decides what passes.
    Open,
    /// Started while the coordinator is away, with labels that this node knows: policy decides what
    /// passes.
    Vouched,
    /// Quarantined: nothing passes.
    Quarantined,
    /// Refused, with the reason: nothing passes.
    Refused(String),
}

/// A workload of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalWorkload {
    /// The id.
    pub id: WorkloadId,
    /// The name.
    pub name: WorkloadName,
    /// The network.
    pub network: NetworkName,
    /// The labels that its owner declares.
    pub labels: Labels,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a route.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
    /// The interface in the workload's namespace.
    pub interface: String,
    /// The network namespace.
    pub netns: PathBuf,
    /// The measurement; null for a process without a container runtime.
    #[serde(default)]
    pub measured: Option<Measured>,
    /// The health checks that services want of it.
    #[serde(default)]
    pub checks: Vec<LocalCheck>,
    /// The state.
    #[serde(flatten)]
    pub state: State,
}

/// A command of a health check that `meshctl run` is to run beside its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerCommand {
    /// The number by which the end of the command is told.
    pub number: u64,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The time after which it is killed, in milliseconds.
    pub timeout_millis: u64,
}

/// The end of a [`RunnerCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandEnd {
    /// It has ended with this status; one that a signal has ended with 128 and its number.
    Status(i32),
    /// It was not run, or was killed, for this reason.
    Failed(String),
}

/// A health check of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalCheck {
    /// The probe: its kind, and what it asks.
    pub probe: String,
    /// The services that want it.
    pub services: Vec<ServiceName>,
    /// The finding.
    pub state: CheckState,
    /// The failures in a row.
    pub failures: u32,
    /// The reason why the last probe did not pass.
    pub problem: Option<String>,
}

/// The finding of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// There is none yet.
    Unknown,
    /// It passes.
    Healthy,
    /// It fails.
    Unhealthy,
}

/// A peer, as an endpoint sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalPeer {
    /// The node.
    pub node: NodeName,
    /// The address that packets to the peer go to now.
    pub address: Option<SocketAddr>,
    /// The direct path to it that was lost, while packets to it are relayed.
    #[serde(default)]
    pub lost: Option<LostWay>,
    /// The path MTU in bytes, once it is known.
    #[serde(default)]
    pub path_mtu: Option<u16>,
    /// Seconds since the last handshake.
    pub handshake_age: Option<u64>,
    /// Bytes sent to it, before encryption.
    pub sent: u64,
    /// Bytes received from it, after decryption.
    pub received: u64,
}

/// A direct path to a peer that was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostWay {
    /// The address of the path.
    pub address: SocketAddr,
    /// The seconds since the loss.
    pub seconds: u64,
    /// The seconds after which it may be used again, if it works then.
    pub again_in: u64,
    /// The reason, in words.
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
    /// The UDP port.
    pub port: u16,
    /// The kernel offloads in use: `tso`, `uso`, `udp-segment`, `udp-gro`.
    pub offloads: Vec<String>,
    /// The peers.
    pub peers: Vec<LocalPeer>,
    /// The number of flows in the flow table.
    pub flows: usize,
    /// Packets dropped, by cause.
    pub drops: BTreeMap<String, u64>,
    /// The timeouts of idle flows in seconds, by kind.
    #[serde(default)]
    pub timeouts: BTreeMap<String, u64>,
    /// The addresses at which the node answers DNS.
    #[serde(default)]
    pub resolver: Vec<IpAddr>,
    /// DNS queries of this node's workloads.
    #[serde(default)]
    pub queries: Vec<QueryCount>,
}

/// The number of DNS queries of a kind that had an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryCount {
    /// The record type: `a`, `aaaa`, `srv`, `ptr` or `other`.
    pub kind: String,
    /// The outcome: `answered`, `no_data`, `unknown`, `hidden`, `refused`, `malformed`, `upstream`,
    /// `failed` or `limited`.
    pub outcome: String,
    /// The number of queries.
    pub queries: u64,
}

/// The note that a node daemon leaves beside its socket when its node was removed from the mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedNode {
    /// The node's name.
    pub node: NodeName,
    /// The mesh's id.
    pub mesh: String,
    /// The time at which the node learned of it, in seconds since the epoch.
    pub at: u64,
}

impl RemovedNode {
    /// Returns the path of the note, for a daemon with this socket.
    pub fn path(socket: &Path) -> PathBuf {
        socket.with_extension("removed")
    }
}

/// The status of the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalStatus {
    /// The name.
    pub node: NodeName,
    /// The version.
    pub version: String,
    /// The maximum number of worker threads.
    pub workers: usize,
    /// The number of worker threads in use.
    pub workers_active: usize,
    /// The coordinator that it belongs to.
    pub coordinator: String,
    /// `true` if the node has a session with the coordinator.
    pub connected: bool,
    /// The reason why the node cannot write its state; null if it can. The node enforces policy all
    /// the same.
    #[serde(default)]
    pub degraded: Option<String>,
    /// The revision that it enforces.
    pub revision: Revision,
    /// The seconds until its certificate expires; negative once it has.
    pub certificate_seconds: i64,
    /// The endpoints.
    pub endpoints: Vec<LocalEndpoint>,
    /// The number of workloads.
    pub workloads: usize,
}
