//! Workloads.

use ipnet::IpNet;
use meshward_types::{
    IdentityId, Labels, NetworkName, NodeName, ServiceName, Serving, WorkloadId, WorkloadName,
    measurement::{Measurement, SharingContainer},
    schema::{Address, Cidr},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// A workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    /// The id.
    pub id: WorkloadId,
    /// The name.
    pub name: WorkloadName,
    /// The network.
    pub network: NetworkName,
    /// The node.
    pub node: NodeName,
    /// The addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// The labels, including verified ones.
    pub labels: Labels,
    /// The number of its identity; null if it is refused.
    pub identity: Option<IdentityId>,
    /// `true` if DNS answers the name with this workload: no other identity has taken the name
    /// before.
    #[serde(default)]
    pub owns_name: bool,
    /// The state as an instance of services, `unhealthy` if it is that for any of them; null if it
    /// is refused.
    #[serde(default)]
    pub serving: Option<Serving>,
    /// The services whose health check of it fails.
    #[serde(default)]
    pub unhealthy: Vec<ServiceName>,
    /// `true` if the workload is quarantined.
    pub quarantined: bool,
    /// The reason why it is refused; null if it is admitted.
    pub refused: Vec<String>,
    /// The node's measurement; null for a process without a container runtime.
    pub measurement: Option<Measured>,
}

/// A node's measurement of a workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Measured {
    /// The container runtime that was asked, such as `docker`.
    pub runtime: String,
    /// The images of its containers, as `REPOSITORY@DIGEST`, or a digest alone.
    pub images: Vec<String>,
    /// The configuration digest.
    pub config: String,
    /// The privileges beyond those of an ordinary container.
    pub privileges: Vec<String>,
    /// The other containers in the workload's network namespace, which use its address.
    #[serde(default)]
    pub sharing: Vec<Sharing>,
}

/// A container that shares the network namespace of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sharing {
    /// The name.
    pub name: String,
    /// The image; null if it is not known yet.
    pub image: Option<String>,
    /// The configuration digest.
    pub config: String,
    /// The privileges beyond those of an ordinary container.
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
