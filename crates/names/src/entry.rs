//! Holders of names, and the askers.

use crate::zone::ZoneName;
use ipnet::IpNet;
use meshward_types::{
    Acl, IdentityId, NetworkName, ServiceName, ServicePort, WorkloadId, WorkloadName,
};
use std::net::IpAddr;

/// The sender of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The identity of the workload.
    pub identity: IdentityId,
    /// The address that the query comes from.
    pub address: IpAddr,
}

/// A network, as its names are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkNames {
    /// The network's name, the label before the zone.
    pub network: NetworkName,
    /// The zone.
    pub zone: ZoneName,
    /// The network's prefixes: names of their addresses are never asked for upstream.
    pub prefixes: Vec<IpNet>,
    /// The addresses at which the node answers.
    pub resolver: Vec<IpAddr>,
}

/// A workload that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedWorkload {
    /// The name; `None` if the workload does not own one.
    pub name: Option<WorkloadName>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The identity.
    pub identity: IdentityId,
    /// `true` if the workload is quarantined by itself.
    pub is_quarantined: bool,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedService {
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// The identities of its instances.
    pub identities: Vec<IdentityId>,
}

/// A change of a network's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameChange {
    /// Adds or changes a workload.
    PutWorkload(WorkloadId, NamedWorkload),
    /// Removes a workload.
    RemoveWorkload(WorkloadId),
    /// Adds or changes a service, by its name.
    PutService(ServiceName, NamedService),
    /// Removes a service.
    RemoveService(ServiceName),
    /// Adds an identity, or changes its quarantine.
    PutIdentity {
        /// The identity.
        id: IdentityId,
        /// `true` if all its workloads are quarantined.
        is_quarantined: bool,
    },
    /// Removes an identity.
    RemoveIdentity(IdentityId),
    /// Sets the ACL of a link.
    PutLink {
        /// The identity that may send.
        from: IdentityId,
        /// The identity that it may send to.
        to: IdentityId,
        /// The ACL.
        acl: Acl,
    },
    /// Removes a link.
    RemoveLink {
        /// The identity that could send.
        from: IdentityId,
        /// The identity that it could send to.
        to: IdentityId,
    },
}
