//! The configuration of an endpoint: what changes of the node's view come down to for the data
//! path.

use ipnet::IpNet;
use meshward_types::{
    Acl, Affinity, Conduct, IdentityId, InstanceStates, Nearness, NodeName, PublicKey, ServiceName,
    ServicePort, Weight, WorkloadId,
};
use std::net::{IpAddr, SocketAddr};

/// A change of an endpoint's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigChange {
    /// The network has these settings.
    SetNetwork(NetworkConfig),
    /// The node is a peer, with these settings.
    PutPeer(NodeName, PeerConfig),
    /// The node is no peer any more.
    RemovePeer(NodeName),
    /// The identity exists, quarantined or not.
    PutIdentity(IdentityId, Quarantine),
    /// The identity does not exist any more.
    RemoveIdentity(IdentityId),
    /// The workload exists, on whichever node.
    PutWorkload(WorkloadId, WorkloadConfig),
    /// The workload does not exist any more, or is not admitted.
    RemoveWorkload(WorkloadId),
    /// The link is open as far as its ACL says.
    PutLink(Link, Acl),
    /// The link is closed.
    RemoveLink(Link),
    /// The service exists, with these settings.
    PutService(ServiceName, ServiceConfig),
    /// The service does not exist any more.
    RemoveService(ServiceName),
}

/// The settings of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The network's prefixes.
    pub prefixes: Vec<IpNet>,
    /// The parts of them from which services have their addresses.
    pub service_blocks: Vec<IpNet>,
    /// The MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
    /// The treatment of conversations.
    pub conduct: Conduct,
}

/// The settings of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The WireGuard key of the peer's endpoint.
    pub public_key: PublicKey,
    /// The addresses at which the peer may be reached, the most likely first.
    pub candidates: Vec<SocketAddr>,
    /// The prefixes that the peer may send from.
    pub prefixes: Vec<IpNet>,
    /// The site of the peer.
    pub site: PeerSite,
}

/// The site of a peer, as seen from this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PeerSite {
    /// The site of this node.
    Same,
    /// Another one, or one that is not known.
    #[default]
    Other,
}

/// A workload of any node, as the coordinator describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadConfig {
    /// The node that runs it.
    pub node: NodeName,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway.
    pub prefixes: Vec<IpNet>,
    /// The workload's identity.
    pub identity: IdentityId,
    /// The quarantine of this workload by its id.
    pub quarantine: Quarantine,
    /// The workload's states as an instance of services.
    pub states: InstanceStates,
}

/// A service: virtual addresses in front of the workloads of some identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// The service's virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// The service's ports, and those of its instances.
    pub ports: Vec<ServicePort>,
    /// The identities whose workloads are its instances.
    pub identities: Vec<IdentityId>,
    /// The nearness by which instances are preferred, the most preferred first.
    pub prefer: Vec<Nearness>,
    /// The choice for later connections of a client.
    pub affinity: Affinity,
    /// The weights of the identities' workloads, where they are others than the default.
    pub weights: Vec<(IdentityId, Weight)>,
}

/// An ordered pair of identities: connections are opened from the first to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// The identity that opens connections.
    pub from: IdentityId,
    /// The identity that accepts them.
    pub to: IdentityId,
}

/// The state of quarantine of an identity or a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Quarantine {
    /// Not quarantined.
    #[default]
    None,
    /// All links are closed; the ends of connections get no answer.
    Silent,
    /// All links are closed, and both ends of the TCP connections that are cut get a reset.
    Reset,
}

impl Quarantine {
    /// Returns whether all links are closed.
    #[inline]
    pub(crate) fn is_active(self) -> bool {
        self != Self::None
    }

    /// Returns whether connections that it cuts are reset.
    #[inline]
    pub(crate) fn resets(self) -> bool {
        self == Self::Reset
    }
}
