//! Credentials, and the contexts in which clients keep them.

use meshward_types::{
    DEFAULT_PORT, NetworkName,
    schema::{CredentialName, Time},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// What a credential may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read and quarantine.
    Operator,
    /// What an operator may, and the policy of its networks but for the guardrails.
    Owner,
    /// Everything.
    Admin,
}

/// A credential to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// Its name, for the audit log.
    #[schema(value_type = CredentialName)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// In which networks; in all, if it is left out. An owner has at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// For how many seconds it is good, at most ten years; until it is revoked, if this is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub lifetime_seconds: Option<u64>,
}

/// What a credential may do from now on. Its token stays the same.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeCredential {
    /// What it may do; as before, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// In which networks; as before, if it is left out. An owner has at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// Whether it is good in all networks from now on. Only without `networks`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_networks: bool,
    /// For how many seconds from now on it is good, at most ten years; as before, if this is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub lifetime_seconds: Option<u64>,
    /// Whether it is good until it is revoked. Only without `lifetime_seconds`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_expiry: bool,
}

/// A credential, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    /// Its name.
    #[schema(value_type = CredentialName)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// In which networks; empty: in all.
    pub networks: Vec<NetworkName>,
    /// When it expires; never, if this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub expires: Option<String>,
}

/// A new credential.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedCredential {
    /// The bearer token, shown this once.
    pub token: String,
    /// What is kept.
    pub kept: Credential,
}

/// What `meshctl` needs to reach a coordinator. The coordinator writes the first one; it is a
/// secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `HOST:PORT` of the API, which is tried first.
    pub server: String,
    /// Where else the API may be reached, as `HOST:PORT`; whoever answers there has to show a
    /// certificate of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_servers: Vec<String>,
    /// The mesh's CA, in PEM.
    pub ca: String,
    /// The bearer token.
    pub token: String,
}

impl Context {
    /// All places where the API may be reached, in the order in which they are tried.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.server).chain(&self.more_servers).map(String::as_str)
    }

    /// The same, with other places first, as `HOST` or `HOST:PORT`. One without a port has that of
    /// the first place.
    #[must_use]
    pub fn reached_by(self, places: &[String]) -> Self {
        let port = self.server.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let mut all: Vec<String> =
            places.iter().map(|place| with_port(place, port.unwrap_or(DEFAULT_PORT))).collect();
        for known in self.servers() {
            if !all.iter().any(|place| place == known) {
                all.push(known.to_owned());
            }
        }
        let more_servers = all.split_off(1);
        Self { server: all.swap_remove(0), more_servers, ..self }
    }

    /// Whether every place is on the machine that asks.
    pub fn is_local(&self) -> bool {
        self.servers().all(|place| {
            let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
            let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
            host == "localhost" || address.is_some_and(|address| address.is_loopback())
        })
    }
}

/// `HOST:PORT`, from that or from `HOST` alone.
pub fn with_port(host: &str, port: u16) -> String {
    let bare_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port =
        !bare_v6 && host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (bare_v6, has_port) {
        (true, _) => format!("[{host}]:{port}"),
        (false, true) => host.to_owned(),
        (false, false) => format!("{host}:{port}"),
    }
}
