//! A workload of this node, as the node adds it to an endpoint.

use ipnet::IpNet;
use meshward_types::{IdentityId, WorkloadId};
use std::net::IpAddr;

/// A workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// The workload's id.
    pub id: WorkloadId,
    /// The only addresses that it may send from ...
    pub addresses: Vec<IpAddr>,
    /// ... but for those of the prefixes behind it, if it is a gateway's route.
    pub prefixes: Vec<IpNet>,
    /// The identity that the node vouches for while the coordinator has not spoken.
    pub vouched: Option<IdentityId>,
}
