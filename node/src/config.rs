//! The node's configuration.

use crate::offloads::Offload;
use meshward_model::local::DEFAULT_SOCKET;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
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
    /// Addresses at which other nodes can reach this one, if neither its interfaces nor the coordinator see them.
    pub advertise: Vec<IpAddr>,
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
        }
    }
}
