//! Reaching the coordinator over QUIC.

use anyhow::{Context, Result};
use meshward_model::control::COORDINATOR_NAME;
use quinn::{ClientConfig, Connection, Endpoint};
use std::{net::SocketAddr, time::Duration};

/// For how long one address is tried.
const DIAL: Duration = Duration::from_secs(5);

/// Dials `HOST:PORT`, each of its addresses in turn. The endpoint comes with the connection: it ends when that is dropped.
///
/// # Errors
/// Why the last address did not answer.
pub async fn dial(coordinator: &str, config: ClientConfig) -> Result<(Endpoint, Connection)> {
    let addresses = tokio::net::lookup_host(coordinator)
        .await
        .with_context(|| format!("the coordinator's name in `{coordinator}` cannot be resolved"))?;
    let mut failure = anyhow::anyhow!("`{coordinator}` has no address");
    for address in addresses {
        let local: SocketAddr = if address.is_ipv6() { "[::]:0".parse()? } else { "0.0.0.0:0".parse()? };
        let endpoint = Endpoint::client(local)?;
        let connecting = endpoint.connect_with(config.clone(), address, COORDINATOR_NAME)?;
        match tokio::time::timeout(DIAL, connecting).await {
            Ok(Ok(connection)) => return Ok((endpoint, connection)),
            Ok(Err(error)) => failure = anyhow::Error::from(error),
            Err(_) => failure = anyhow::anyhow!("no answer within {} s", DIAL.as_secs()),
        }
        failure = failure.context(format!("cannot reach the coordinator at {address}"));
    }
    Err(failure)
}
