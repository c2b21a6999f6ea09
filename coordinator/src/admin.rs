//! The operator's first credential, in a file that `meshctl` reads, here and on other machines.

use crate::{
    api, ca,
    config::Config,
    mesh::{ChangeContext, Mesh},
};
use anyhow::Result;
use meshward_api_types::{Context, CreateCredential, Role, with_port};
use meshward_control_state::plans;
use meshward_types::token::secret_hash;
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};
use tracing::{info, warn};

/// The file's name in the data folder.
const FILE: &str = "admin.json";
/// The maximum number of addresses in the file.
const MAX_SERVERS: usize = 16;

/// At the first start, creates the operator's credential and writes what `meshctl` needs to use it;
/// later, updates the coordinator's addresses in that file.
///
/// # Errors
/// Fails if the file or the credential cannot be written.
pub async fn keep(mesh: &Mesh, config: &Config, listen: SocketAddr) -> Result<()> {
    let file = config.data_dir.join(FILE);
    let mut servers = server_addresses(&config.names, listen, &own_addresses());
    let server = servers.remove(0);
    if mesh.look(|world| !world.credentials.is_empty()) {
        refresh(mesh, &file, server, servers);
        return Ok(());
    }
    let secret = api::secret();
    let context =
        Context { server, more_servers: servers, ca: mesh.ca.pem.clone(), token: secret.clone() };
    // Written first: a credential that nobody can read would lock the operator out.
    ca::write_private(&file, &serde_json::to_string_pretty(&context)?, 0o600)?;
    let context = ChangeContext::named("user:first-start");
    mesh.change(&context, |_| {
        Ok(plans::credentials::add(
            &CreateCredential {
                name: "admin".into(),
                role: Role::Admin,
                networks: vec![],
                lifetime_seconds: None,
            },
            &secret,
            None,
        ))
    })
    .await
    .map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    info!(file = %file.display(), "made the operator's credential; meshctl finds it on this \
        machine; on others, run: meshctl context import");
    Ok(())
}

/// Writes the coordinator's present addresses into the file, if it is there and its credential is
/// valid. It is a convenience: the coordinator starts without it.
fn refresh(mesh: &Mesh, file: &Path, server: String, more_servers: Vec<String>) {
    let read = fs::read(file).ok().and_then(|text| serde_json::from_slice::<Context>(&text).ok());
    let Some(before) = read else { return };
    let hash = secret_hash(&before.token);
    if !mesh
        .look(|world| world.credentials.values().any(|credential| credential.secret_hash == hash))
    {
        return;
    }
    let now = Context { server, more_servers, ..before.clone() };
    if now == before {
        return;
    }
    let written = serde_json::to_string_pretty(&now).map_err(anyhow::Error::from);
    match written.and_then(|text| ca::write_private(file, &text, 0o600)) {
        Ok(()) => {
            info!(file = %file.display(), server = now.server, "the file has the \
                coordinator's new addresses");
        }
        Err(error) => warn!(file = %file.display(), "the file keeps \
            addresses that may be out of date: {error:#}"),
    }
}

/// Returns the addresses at which the API may be reached, the best guess first: the names that the
/// operator has configured, the addresses of this host's interfaces, and loopback.
fn server_addresses(names: &[String], listen: SocketAddr, own: &[IpAddr]) -> Vec<String> {
    let named = names.iter().map(|name| with_port(name, listen.port()));
    let local = IpAddr::from([127, 0, 0, 1]);
    let addresses: Vec<IpAddr> = match listen.ip().is_unspecified() {
        true => own
            .iter()
            .copied()
            .filter(|own| own.is_ipv4() || listen.is_ipv6())
            .chain([local])
            .collect(),
        false => vec![listen.ip()],
    };
    let addresses =
        addresses.into_iter().map(|address| SocketAddr::new(address, listen.port()).to_string());
    let mut servers = Vec::new();
    for server in named.chain(addresses) {
        if !servers.contains(&server) && servers.len() < MAX_SERVERS {
            servers.push(server);
        }
    }
    servers
}

/// Returns the addresses of this host at which others may reach it, IPv4 first.
fn own_addresses() -> Vec<IpAddr> {
    let all =
        nix::ifaddrs::getifaddrs().map(|all| all.filter_map(|one| one.address).collect::<Vec<_>>());
    let read = |address: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let reached = |address: &IpAddr| {
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        !address.is_loopback() && !link_local
    };
    let all: BTreeSet<IpAddr> =
        all.unwrap_or_default().into_iter().filter_map(read).filter(reached).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_first_and_this_host_last() {
        let own = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let names = ["mesh.example".to_owned(), "203.0.113.5:443".to_owned()];
        assert_eq!(
            server_addresses(&names, "[::]:7443".parse().unwrap(), &own),
            [
                "mesh.example:7443",
                "203.0.113.5:443",
                "192.0.2.7:7443",
                "[2001:db8::7]:7443",
                "127.0.0.1:7443"
            ]
        );
        assert_eq!(
            server_addresses(&[], "0.0.0.0:9".parse().unwrap(), &own),
            ["192.0.2.7:9", "127.0.0.1:9"]
        );
        assert_eq!(server_addresses(&[], "127.0.0.1:9".parse().unwrap(), &own), ["127.0.0.1:9"]);
    }
}
