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
    /// Where the certificate and the list of nodes are kept.
    pub(crate) data_dir: PathBuf,
    /// Where nodes connect, QUIC over UDP and TLS over TCP.
    pub(crate) listen: SocketAddr,
    /// Where STUN is served.
    pub(crate) stun_listen: SocketAddr,
    /// Where nodes reach the relay, as `HOST:PORT`; where the coordinator sees it, with the port of
    /// `listen`, if none is given.
    pub(crate) advertise: Vec<String>,
    /// Where metrics are served, over plain HTTP.
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
