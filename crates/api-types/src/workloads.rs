//! Workloads.

use ipnet::IpNet;
use meshward_types::{
    IdentityId, Labels, NetworkName, NodeName, WorkloadId, WorkloadName,
    measurement::{Measurement, SharingContainer},
    schema::{Address, Cidr},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// A workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    /// Its id.
    pub id: WorkloadId,
    /// What people call it.
    pub name: WorkloadName,
    /// Its network.
    pub network: NetworkName,
    /// Its node.
    pub node: NodeName,
    /// Its addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// Its labels, verified ones included.
    pub labels: Labels,
    /// The number of its identity; none if it is not let in.
    pub identity: Option<IdentityId>,
    /// Whether it is quarantined.
    pub quarantined: bool,
    /// Why it is not let in; it is, if there is nothing.
    pub refused: Vec<String>,
    /// What its node has measured; nothing for a process that no container runtime runs.
    pub measurement: Option<Measured>,
}

/// What a node has measured of a workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Measured {
    /// Who was asked, such as `docker`.
    pub runtime: String,
    /// The images of its containers, as `REPOSITORY@DIGEST`, or a digest alone.
    pub images: Vec<String>,
    /// The digest of how it was set up.
    pub config: String,
    /// What it may do that a container usually may not.
    pub privileges: Vec<String>,
    /// The containers that share its network namespace, and speak on the mesh as it does.
    #[serde(default)]
    pub sharing: Vec<Sharing>,
}

/// A container that shares the network namespace of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sharing {
    /// What it is called.
    pub name: String,
    /// Its image; nothing if it is not known yet.
    pub image: Option<String>,
    /// The digest of how it was set up.
    pub config: String,
    /// What it may do that a container usually may not.
    pub privileges: Vec<String>,
}

impl From<&SharingContainer> for Sharing {
    fn from(other: &SharingContainer) -> Self {
        Self {
            name: other.name.clone(),
            image: other.image.as_ref().map(ToString::to_string),
            config: other.config.to_string(),
            privileges: other.privileges.clone(),
        }
    }
}

impl From<&Measurement> for Measured {
    fn from(measured: &Measurement) -> Self {
        Self {
            runtime: measured.runtime.clone(),
            images: measured.images.iter().map(ToString::to_string).collect(),
            config: measured.config.to_string(),
            privileges: measured.privileges.clone(),
            sharing: measured.sharing.iter().map(Sharing::from).collect(),
        }
    }
}
