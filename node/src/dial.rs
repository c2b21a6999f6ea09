//! Reaching the coordinator over QUIC.

use anyhow::{Context, Result};
use meshward_model::control::COORDINATOR_NAME;
use quinn::{ClientConfig, Connection, Endpoint};
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;

/// For how long one address is tried.
const DIAL: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that has lasted this long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);

/// The pauses between one connection and the next: longer and longer, while none lasts.
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// Waits after a connection that was begun at `begun`.
    pub async fn wait(&mut self, begun: Instant) {
        if begun.elapsed() > GOOD {
            self.0 = FIRST_PAUSE;
        }
        tokio::time::sleep(jittered(self.0)).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Between half of a pause and all of it, so that nodes do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    pause / 2 + (pause / 2) * u32::from(byte[0]) / 255
}

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
