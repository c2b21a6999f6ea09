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

/// Where the configuration is looked for if no file is named.
pub const USUAL_FILE: &str = "/etc/meshward/coordinator.toml";

/// What can be configured. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the CA, the database and the first credential are kept.
    pub data_dir: PathBuf,
    /// Where nodes (QUIC, over UDP) and the API (HTTPS, over TCP) are served.
    pub listen: SocketAddr,
    /// Where Prometheus finds `/metrics`, over plain HTTP.
    pub metrics_listen: SocketAddr,
    /// Where endpoints are told by STUN under which address they are seen.
    pub stun_listen: SocketAddr,
    /// More DNS names and addresses for the coordinator's certificate.
    pub names: Vec<String>,
    /// How long a node's certificate is good. Nodes renew at two thirds.
    pub certificate_lifetime: Lasting,
    /// Networks of the coordinator's own in which webhooks of policies may be: loopback, link-local
    /// and private ones.
    pub webhook_networks: Vec<IpNet>,
    /// What those may take who have not authenticated.
    pub strangers: Strangers,
    /// What one node may take.
    pub nodes: NodeBudget,
    /// What is kept of the past.
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
