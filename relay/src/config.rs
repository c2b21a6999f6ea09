//! The configuration of a relay. docs/configuration.md describes every key.

use meshward_relay::limits::Strangers;
use meshward_types::DEFAULT_PORT;
use serde::{Deserialize, Serialize};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

/// The configuration file that is read if none is named, if it is there.
pub(crate) const USUAL_FILE: &str = "/etc/meshward/relay.toml";
/// The port of the metrics, unless it is configured otherwise.
const METRICS_PORT: u16 = 7482;

/// The configuration. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The folder of the certificate and the list of nodes.
    pub(crate) data_dir: PathBuf,
    /// The address for nodes, QUIC over UDP and TLS over TCP.
    pub(crate) listen: SocketAddr,
    /// The address of the STUN server.
    pub(crate) stun_listen: SocketAddr,
    /// The addresses at which nodes reach the relay, as `HOST:PORT`; if none is given, the address
    /// from which it connects to the coordinator, with the port of `listen`.
    pub(crate) advertise: Vec<String>,
    /// The address for Prometheus: `/metrics`, over plain HTTP.
    pub(crate) metrics_listen: SocketAddr,
    /// Limits on clients that have not authenticated.
    pub(crate) strangers: Strangers,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/meshward/relay".into(),
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
            stun_listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, meshward_types::stun::PORT)),
            advertise: vec![],
            metrics_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT)),
            strangers: Strangers::default(),
        }
    }
}
