//! The extent to which nodes know the workloads of identities.

use super::{
    network::NetworkState,
    node_set::{NodeIndex, NodeSet},
};
use meshward_types::IdentityId;

/// The extent to which a node knows the workloads of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// No link joins it with an identity of the node: none but the node's own.
    None,
    /// Rules about services alone do: those of subsets.
    Subset,
    /// Every one.
    All,
}

impl NetworkState {
    /// Returns `true` if links join an identity with one of a node's so that the node knows all of
    /// its workloads.
    pub fn meets_widely(&self, node: NodeIndex, identity: IdentityId) -> bool {
        self.identities_on(node).any(|own| self.links.are_widely_linked(own, identity))
    }

    /// Returns the extent to which a node knows the workloads of an identity.
    pub fn extent(&self, node: NodeIndex, identity: IdentityId) -> Extent {
        let linked = |own: IdentityId| {
            self.links.acl(own, identity).is_some() || self.links.acl(identity, own).is_some()
        };
        if self.meets_widely(node, identity) {
            Extent::All
        } else if self.identities_on(node).any(linked) {
            Extent::Subset
        } else {
            Extent::None
        }
    }

    /// Returns the nodes that know all workloads of an identity.
    pub fn wide_subscribers(&self, identity: IdentityId) -> NodeSet {
        let neighbours = self.links.neighbours(identity);
        let wide =
            neighbours.into_iter().filter(|own| self.links.are_widely_linked(*own, identity));
        wide.filter_map(|other| self.hosts(other)).collect()
    }

    /// Returns the nodes that have a node as a peer, and itself if it knows all workloads of an
    /// identity of its own.
    pub fn meeting(&self, node: NodeIndex) -> NodeSet {
        let widely = self.identities_on(node).map(|identity| self.wide_subscribers(identity));
        let of_own = self.workloads_on(node).filter_map(|own| self.narrowing.knowing(&own.id));
        widely.chain(of_own.cloned()).collect()
    }
}
