//! Credentials, and the contexts in which clients keep them.

use meshward_types::{
    DEFAULT_PORT, NetworkName,
    schema::{CredentialName, Time},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// A role: what a credential may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read and quarantine.
    Operator,
    /// Everything that an operator may do, and apply the policies of its networks, except
    /// guardrails.
    Owner,
    /// Everything.
    Admin,
}

/// A credential to create.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// The name, for the audit log.
    #[schema(value_type = CredentialName)]
    pub name: String,
    /// The role.
    pub role: Role,
    /// The networks that it is limited to. Default: all. An owner needs at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// The lifetime in seconds, at most ten years. Default: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub lifetime_seconds: Option<u64>,
}

/// A change of a credential. Its token stays the same.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeCredential {
    /// The role. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The networks that it is limited to. Default: unchanged. An owner needs at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// If set, removes the limit to networks. Only without `networks`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_networks: bool,
    /// The new lifetime from now, in seconds, at most ten years. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub lifetime_seconds: Option<u64>,
    /// If set, removes the lifetime: valid until it is revoked. Only without `lifetime_seconds`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_expiry: bool,
}

/// A credential, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    /// The name.
    #[schema(value_type = CredentialName)]
    pub name: String,
    /// The role.
    pub role: Role,
    /// The networks that it is limited to; empty: all.
    pub networks: Vec<NetworkName>,
    /// The time at which it expires; null: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub expires: Option<String>,
}

/// A new credential.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedCredential {
    /// The bearer token. It is shown only once.
    pub token: String,
    /// The credential, as it is listed.
    pub kept: Credential,
}

/// A context: the addresses and the credential with which `meshctl` reaches a coordinator. The
/// coordinator writes the first one. It is secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `HOST:PORT` of the API, which is tried first.
    pub server: String,
    /// Further addresses of the API, as `HOST:PORT`. The server there must present a certificate of
    /// the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_servers: Vec<String>,
    /// The mesh's CA, in PEM.
    pub ca: String,
    /// The bearer token.
    pub token: String,
}

impl Context {
    /// Returns all addresses of the API, in the order in which they are tried.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.server).chain(&self.more_servers).map(String::as_str)
    }

    /// Returns the context with other addresses first, as `HOST` or `HOST:PORT`. The default port
    /// is that of the context's first address.
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

    /// Returns whether every address is a loopback address.
    pub fn is_local(&self) -> bool {
        self.servers().all(|place| {
            let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
            let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
            host == "localhost" || address.is_some_and(|address| address.is_loopback())
        })
    }
}

/// Returns `HOST:PORT`, from that or from `HOST` alone.
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
