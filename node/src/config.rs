//! The node's configuration.

use crate::offloads::Offload;
use meshward_api_types::local::DEFAULT_SOCKET;
use meshward_runtime::config::Lasting;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

/// Where the configuration is looked for if no file is named.
pub const USUAL_FILE: &str = "/etc/meshward/node.toml";

/// What can be configured. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where keys, certificate and the last view are kept.
    pub data_dir: PathBuf,
    /// The local API's unix socket.
    pub socket: PathBuf,
    /// Where Prometheus finds `/metrics`, over plain HTTP.
    pub metrics_listen: SocketAddr,
    /// The first UDP port that is tried for an endpoint; one that was found is kept.
    pub first_port: u16,
    /// How many threads carry packets.
    pub workers: NonZeroUsize,
    /// What of the kernel's offloads is left alone.
    pub disable_offloads: Vec<Offload>,
    /// Addresses at which other nodes can reach this one, if neither its interfaces nor the
    /// coordinator see them.
    pub advertise: Vec<IpAddr>,
    /// Whether the router is asked for ports of its own, by PCP or NAT-PMP, where this node is
    /// behind a NAT.
    pub port_mapping: bool,
    /// After what time an endpoint gets another key.
    pub rotate_keys: Lasting,
    /// STUN servers that tell how this node is seen, as `HOST:PORT`; the coordinator if there is
    /// none.
    pub stun: Vec<String>,
    /// Where Docker finds the network plugin; there is none if this is left out.
    pub docker_plugin: Option<PathBuf>,
    /// Docker's API.
    pub docker_socket: PathBuf,
    /// Beginnings of the keys of containers' labels that are left out, beside the usual ones; after
    /// a `!`, of those that are not.
    pub ignored_labels: Vec<String>,
    /// Registries that are asked for signatures without TLS, also in a private network.
    pub insecure_registries: Vec<String>,
    /// Registries with TLS that may be on this machine, this link, or in a private network: others
    /// are not looked for there.
    pub private_registries: Vec<String>,
    /// Hosts to which registries may send for blobs; otherwise a redirect leads to the registry's
    /// own host alone.
    pub registry_redirects: Vec<String>,
    /// A file like Docker's `config.json`, with the passwords of registries.
    pub registry_credentials: Option<PathBuf>,
    /// Folders that are OCI layouts, in which signatures of images are looked for, too.
    pub image_layouts: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/meshward/node".into(),
            socket: DEFAULT_SOCKET.into(),
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 7481)),
            first_port: 51820,
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            disable_offloads: Vec::new(),
            advertise: Vec::new(),
            port_mapping: true,
            rotate_keys: Lasting(Duration::from_hours(168)),
            stun: Vec::new(),
            docker_plugin: None,
            docker_socket: "/var/run/docker.sock".into(),
            ignored_labels: Vec::new(),
            insecure_registries: Vec::new(),
            private_registries: Vec::new(),
            registry_redirects: Vec::new(),
            registry_credentials: None,
            image_layouts: Vec::new(),
        }
    }
}
