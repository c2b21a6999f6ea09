//! The state of the tables.

use super::local_entry::{Claimant, LocalEntry};
use crate::{
    claims::Claims,
    config::{PeerSite, WorkloadConfig},
    gateways::Prefixes,
    index::{PeerIndex, WorkloadIndex},
    resolver::ResolverConfig,
    rules::{Party, Rules},
    services::directory::Services,
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ipnet::IpNet;
use meshward_types::{IdentityId, NodeName, WorkloadId};
use std::{collections::HashSet, net::IpAddr, time::Instant};

/// The holder of an address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder {
    Local(WorkloadIndex),
    Peer(PeerIndex, Party),
}

impl Holder {
    /// Addresses that this node has given out go before those that others are said to have.
    pub(super) fn outranks(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Local(_), Self::Peer(..)))
    }
}

/// A workload of this node behind which a prefix lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalGateway {
    pub(super) claimant: Claimant,
    pub(super) workload: WorkloadIndex,
}

/// A workload of a peer behind which a prefix lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct RemoteGateway {
    pub(super) claimant: Claimant,
    pub(super) peer: PeerIndex,
    pub(super) party: Party,
}

/// A workload, as the coordinator describes it.
#[derive(Debug)]
pub(super) struct KnownWorkload {
    pub(super) claimant: Claimant,
    pub(super) config: WorkloadConfig,
}

/// A workload that a peer vouches for.
#[derive(Debug, Clone, Copy)]
pub(super) struct VouchedWorkload {
    pub(super) identity: IdentityId,
    pub(super) peer: PeerIndex,
    pub(super) until: Instant,
}

/// A peer, as the coordinator describes it.
#[derive(Debug)]
pub(super) struct TablePeer {
    pub(super) node: NodeName,
    /// The prefixes that it may send from.
    pub(super) prefixes: Vec<IpNet>,
    pub(super) site: PeerSite,
}

/// The tables: everything that the forwarding of packets rests on, but for flows and sessions.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(super) node: NodeName,
    pub(crate) rules: Rules,
    /// The network's MTU, the longest packet of a workload in bytes; 0: not known yet.
    pub(crate) mtu: u16,
    /// The network's prefixes.
    pub(crate) prefixes: Vec<IpNet>,
    /// Where the node answers DNS queries.
    pub(crate) resolver: ResolverConfig,
    pub(super) locals: Vec<Option<LocalEntry>>,
    pub(super) local_ids: HashMap<WorkloadId, WorkloadIndex>,
    pub(super) addresses: Claims<IpAddr, Claimant, Holder>,
    last_claimant: Claimant,
    pub(super) local_prefixes: Prefixes<LocalGateway>,
    /// All workloads that the coordinator has described, this node's own included.
    pub(super) workloads: HashMap<WorkloadId, KnownWorkload>,
    pub(super) remote_prefixes: Prefixes<RemoteGateway>,
    /// Redundant gateways that are down.
    pub(crate) down: HashSet<PeerIndex>,
    /// Workloads of an identity that a peer runs, as the coordinator says: it may vouch for others.
    pub(super) hosted: HashMap<(PeerIndex, IdentityId), usize>,
    pub(super) vouched: HashMap<IpAddr, VouchedWorkload>,
    pub(super) peer_indices: HashMap<NodeName, PeerIndex>,
    pub(super) peers: Vec<Option<TablePeer>>,
    pub(super) devices: HashMap<PeerIndex, WorkloadIndex>,
    /// Indices of devices that are gone.
    pub(super) free_peers: Vec<PeerIndex>,
    pub(super) hasher: RandomState,
    pub(crate) services: Services,
    /// `true` if nodes have come to another site since the services' instances were taken in.
    pub(super) sites_changed: bool,
}

impl Tables {
    pub(crate) fn new(node: NodeName) -> Self {
        Self {
            node,
            rules: Rules::default(),
            mtu: 0,
            prefixes: vec![],
            resolver: ResolverConfig::default(),
            locals: Vec::new(),
            local_ids: HashMap::new(),
            addresses: Claims::default(),
            last_claimant: 0,
            local_prefixes: Prefixes::default(),
            workloads: HashMap::new(),
            remote_prefixes: Prefixes::default(),
            down: HashSet::new(),
            hosted: HashMap::new(),
            vouched: HashMap::new(),
            peer_indices: HashMap::new(),
            peers: Vec::new(),
            devices: HashMap::new(),
            free_peers: Vec::new(),
            hasher: RandomState::default(),
            services: Services::default(),
            sites_changed: false,
        }
    }

    pub(super) fn next_claimant(&mut self) -> Claimant {
        self.last_claimant = self.last_claimant.wrapping_add(1);
        self.last_claimant
    }
}
