//! The node's configuration.

use crate::{names::host::RESOLV_CONF, offloads::Offload};
use meshward_api_types::local::DEFAULT_SOCKET;
use meshward_runtime::config::Lasting;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

/// The configuration file that is read if none is named.
pub const USUAL_FILE: &str = "/etc/meshward/node.toml";

/// The settings. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder for keys, certificate and the last view.
    pub data_dir: PathBuf,
    /// The local API's unix socket.
    pub socket: PathBuf,
    /// The address of `/metrics` for Prometheus, over plain HTTP.
    pub metrics_listen: SocketAddr,
    /// The first UDP port that is tried for an endpoint; one that was found is kept.
    pub first_port: u16,
    /// The number of threads that carry packets.
    pub workers: NonZeroUsize,
    /// The kernel's offloads that are not used.
    pub disable_offloads: Vec<Offload>,
    /// Addresses at which other nodes can reach this one, if neither its interfaces nor the
    /// coordinator see them.
    pub advertise: Vec<IpAddr>,
    /// `true` to ask the router for mapped ports, by PCP or NAT-PMP, where this node is behind a
    /// NAT.
    pub port_mapping: bool,
    /// The age at which an endpoint's key is rotated.
    pub rotate_keys: Lasting,
    /// STUN servers that tell how this node is seen, as `HOST:PORT`; the coordinator if there is
    /// none.
    pub stun: Vec<String>,
    /// The file with the host's resolvers (resolv.conf(5)), which are asked for names outside of
    /// the mesh, unless a network's policy names others.
    pub resolv_conf: PathBuf,
    /// The socket of the network plugin for Docker; without it, there is no plugin.
    pub docker_plugin: Option<PathBuf>,
    /// Docker's API.
    pub docker_socket: PathBuf,
    /// The socket of the runtime that runs commands in pods (CRI); otherwise the first that is
    /// there of the usual ones.
    pub cri_socket: Option<PathBuf>,
    /// `true` if what has started workloads may be told to run commands of health checks (`exec`):
    /// whoever writes a network's policy runs them in the containers of the network.
    pub health_exec: bool,
    /// Prefixes of keys of containers' labels to ignore, besides the usual ones; with a `!` in
    /// front, of labels to use.
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
            resolv_conf: RESOLV_CONF.into(),
            docker_plugin: None,
            docker_socket: "/var/run/docker.sock".into(),
            cri_socket: None,
            health_exec: false,
            ignored_labels: Vec::new(),
            insecure_registries: Vec::new(),
            private_registries: Vec::new(),
            registry_redirects: Vec::new(),
            registry_credentials: None,
            image_layouts: Vec::new(),
        }
    }
}
