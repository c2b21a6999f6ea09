//! The state of Docker's plugin: Docker does not repeat it after a restart of the daemon.

use meshward_runtime::state_files::StateFile;
use meshward_types::NetworkName;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// Docker's networks and endpoints on the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DockerFile {
    /// The mesh's networks by Docker's ids.
    pub(crate) networks: BTreeMap<String, NetworkName>,
    /// The endpoints of containers by Docker's ids.
    pub(crate) endpoints: BTreeMap<String, DockerEndpoint>,
}

/// The endpoint of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DockerEndpoint {
    /// The network of the mesh.
    pub(crate) network: NetworkName,
    /// The addresses in the network.
    pub(crate) addresses: Vec<IpAddr>,
}

impl StateFile for DockerFile {}
