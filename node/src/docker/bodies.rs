//! The bodies of libnetwork's remote protocol: `docs/remote.md` and `docs/ipam.md` of moby's
//! libnetwork. What is not needed of a request is not read.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, net::IpAddr, path::PathBuf};

/// The key of the options of `docker network create -o`.
pub(super) const GENERIC: &str = "com.docker.network.generic";
/// The key of a pool's gateway.
pub(super) const GATEWAY: &str = "com.docker.network.gateway";
/// The key of the kind of address that is requested.
pub(super) const ADDRESS_TYPE: &str = "RequestAddressType";

/// Options, of which only texts mean something here.
pub(super) type Options = HashMap<String, serde_json::Value>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestPool {
    #[serde(default)]
    pub pool: String,
    #[serde(default)]
    pub sub_pool: String,
    #[serde(default)]
    pub options: Option<HashMap<String, String>>,
    #[serde(default, rename = "V6")]
    pub ipv6: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Pool {
    #[serde(rename = "PoolID")]
    pub id: String,
    #[serde(rename = "Pool")]
    pub subnet: IpNet,
    pub data: HashMap<&'static str, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AddressOfPool {
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    #[serde(default)]
    pub address: String,
    #[serde(default)]
    pub options: Option<HashMap<String, String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Address {
    pub address: IpNet,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(default)]
    pub options: Option<Options>,
    #[serde(default, rename = "IPv4Data")]
    pub ipv4: Option<Vec<PoolData>>,
    #[serde(default, rename = "IPv6Data")]
    pub ipv6: Option<Vec<PoolData>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolData {
    #[serde(default)]
    pub pool: String,
}

#[derive(Deserialize)]
pub(super) struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(default)]
    pub interface: Option<Interface>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Interface {
    pub address: String,
    #[serde(rename = "AddressIPv6")]
    pub address_ipv6: String,
    pub mac_address: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreatedEndpoint {
    pub interface: Interface,
}

#[derive(Deserialize)]
pub(super) struct OfEndpoint {
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Join {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    pub sandbox_key: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Joined {
    pub interface_name: InterfaceName,
    pub static_routes: Vec<StaticRoute>,
    /// Docker would give the container a way around the mesh otherwise.
    pub disable_gateway_service: bool,
}

/// A route that Docker gives a container.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub destination: IpNet,
    pub route_type: u8,
    pub next_hop: &'static str,
}

impl StaticRoute {
    /// A route through the container's interface on the mesh (libnetwork's type `CONNECTED`).
    pub(super) fn by_interface(destination: IpNet) -> Self {
        Self { destination, route_type: 1, next_hop: "" }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub src_name: String,
    pub dst_prefix: &'static str,
}

/// An address, or one with its prefix length, or nothing.
pub(super) fn address(text: &str) -> Result<Option<IpAddr>, String> {
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    match bare {
        "" => Ok(None),
        _ => bare.parse().map(Some).map_err(|_| format!("`{text}` is no address")),
    }
}
