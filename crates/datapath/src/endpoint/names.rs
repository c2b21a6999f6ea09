//! Names outside of the mesh: the gateways that their addresses are reached through, and what
//! workloads have learnt of them.

use super::api::Endpoint;
use crate::{
    index::PeerIndex,
    learnt_names::{LearntName, LearntNames, NameAsker, is_learnable},
    rules::Party,
    tables::local_entry::NextHop,
};
use ipnet::IpNet;
use meshward_types::dns::DomainName;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

/// Maximum number of gateways that are asked for a name.
const MAX_GATEWAYS: usize = 3;

/// The egress gateways to ask for a name that a rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRoute {
    /// The workload that asks.
    pub asker: NameAsker,
    /// The gateways, in the order in which packets prefer them: one to three.
    pub gateways: Vec<NameGateway>,
}

/// The node of an egress gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameGateway {
    /// This node.
    Local,
    /// A peer.
    Peer(PeerIndex),
}

/// The address family of a query's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
}

impl AddressFamily {
    fn other(self) -> Self {
        match self {
            Self::Ipv4 => Self::Ipv6,
            Self::Ipv6 => Self::Ipv4,
        }
    }

    fn default_route(self) -> IpNet {
        match self {
            Self::Ipv4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            Self::Ipv6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        }
    }
}

impl Endpoint {
    /// Returns the egress gateways to ask for a name, if a rule lets a workload of this node reach
    /// it by name: those of the family or, if there are none, of the other one. `asker`: an address
    /// of the workload.
    pub fn name_route(
        &self,
        asker: IpAddr,
        name: &DomainName,
        family: AddressFamily,
    ) -> Option<NameRoute> {
        let tables = self.state.tables.read();
        let from = tables.local_at(asker)?.1.party()?;
        let is_named = |gateway: Party| tables.rules.name_domain(from, gateway, name);
        let gateways = |family: AddressFamily| -> Vec<NameGateway> {
            let all = tables.egress_gateways(family.default_route());
            let named = all.filter(|(_, gateway)| is_named(*gateway));
            let gateways = named.map(|(next_hop, _)| match next_hop {
                NextHop::Peer(peer) => NameGateway::Peer(peer),
                _ => NameGateway::Local,
            });
            gateways.take(MAX_GATEWAYS).collect()
        };
        let mut families = [family, family.other()].into_iter().map(gateways);
        let gateways = families.find(|gateways| !gateways.is_empty())?;
        Some(NameRoute { asker: NameAsker { owner: from.owner, address: asker }, gateways })
    }

    /// Returns a workload of a peer as an asker, if a rule lets it reach a name through a gateway
    /// of this node.
    pub fn asker_of_peer(
        &self,
        now: Instant,
        peer: PeerIndex,
        asker: IpAddr,
        name: &DomainName,
    ) -> Option<NameAsker> {
        let tables = self.state.tables.read();
        let route = tables.route(now, &asker).ok()?;
        let is_of_peer = matches!(route.next_hop, NextHop::Peer(own) if own == peer);
        let families = [AddressFamily::Ipv4, AddressFamily::Ipv6].into_iter();
        let mut all = families.flat_map(|family| tables.egress_gateways(family.default_route()));
        let is_asker = is_of_peer
            && all.any(|(next_hop, gateway)| {
                !matches!(next_hop, NextHop::Peer(_))
                    && tables.rules.name_domain(route.party, gateway, name)
            });
        is_asker.then_some(NameAsker { owner: route.party.owner, address: asker })
    }

    /// Notes the addresses that an answer has, each with its time to live in seconds: from now on
    /// rules by this name hold for them, unless the workload is gone meanwhile. Addresses of the
    /// network, of links and of loopbacks are left out.
    pub fn learn_name(
        &self,
        now: Instant,
        asker: NameAsker,
        name: &DomainName,
        addresses: impl IntoIterator<Item = (IpAddr, u32)>,
    ) {
        let tables = self.state.tables.read();
        if tables.owner_at(now, asker.address) != Some(asker.owner) {
            return;
        }
        for (address, ttl) in addresses {
            if is_learnable(address) && !tables.is_of_network(address) {
                tables.rules.learnt_names().learn(asker, name, address, ttl);
            }
        }
    }

    /// Returns the names that workloads have learnt, to be kept across a restart.
    pub fn learnt_names(&self) -> Vec<LearntName> {
        self.names().export()
    }

    /// Returns whether the learnt names have changed since the last call.
    pub fn take_names_changed(&self) -> bool {
        self.names().take_changed()
    }

    /// Restores names that were learnt before a restart. The configuration and the workloads have
    /// to be there already: what a workload has learnt that is gone is left out.
    pub fn restore_names(&self, now: Instant, names: &[LearntName]) {
        let tables = self.state.tables.read();
        for learnt in names {
            if let Some(owner) = tables.owner_at(now, learnt.asker) {
                tables.rules.learnt_names().restore(owner, learnt);
            }
        }
    }

    /// Moves the time of learnt names on.
    pub(super) fn tick_names(&self, now: Instant) {
        let filter = &self.state.filter;
        self.names().tick(filter.seconds(now), |visit| {
            filter.for_each_live(now, |flow| visit(flow.destination));
        });
    }

    fn names(&self) -> Arc<LearntNames> {
        self.state.tables.read().rules.learnt_names().clone()
    }
}
