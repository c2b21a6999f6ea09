//! The coordinator's configuration.

use crate::limits::Retention;
use ipnet::IpNet;
use meshward_control_state::budget::NodeBudget;
use meshward_relay::limits::Strangers;
use meshward_runtime::config::Lasting;
use meshward_types::DEFAULT_PORT;
use serde::{Deserialize, Serialize};
use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The configuration file that is read if none is named, if it is there.
pub const USUAL_FILE: &str = "/etc/meshward/coordinator.toml";

/// The configuration. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder of the CA, the database and the first credential.
    pub data_dir: PathBuf,
    /// The address for nodes (QUIC, over UDP) and the API (HTTPS, over TCP).
    pub listen: SocketAddr,
    /// The address for Prometheus: `/metrics`, over plain HTTP.
    pub metrics_listen: SocketAddr,
    /// The address of the STUN server, from which endpoints learn their reflexive address.
    pub stun_listen: SocketAddr,
    /// More DNS names and addresses for the coordinator's certificate.
    pub names: Vec<String>,
    /// The lifetime of a node's certificate. Nodes renew theirs at two thirds of it.
    pub certificate_lifetime: Lasting,
    /// The loopback, link-local and private networks in which webhooks of policies may be.
    pub webhook_networks: Vec<IpNet>,
    /// Limits on clients that have not authenticated.
    pub strangers: Strangers,
    /// The budget of one node.
    pub nodes: NodeBudget,
    /// Limits on what is kept of the past.
    pub retention: Retention,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: data_dir(),
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 7480)),
            stun_listen: SocketAddr::from((
                std::net::Ipv6Addr::UNSPECIFIED,
                meshward_types::stun::PORT,
            )),
            names: Vec::new(),
            certificate_lifetime: Lasting(Duration::from_hours(24)),
            webhook_networks: Vec::new(),
            strangers: Strangers::default(),
            nodes: NodeBudget::default(),
            retention: Retention::default(),
        }
    }
}

fn data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/meshward/coordinator".into();
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    home.join(".local/state/meshward/coordinator")
}
