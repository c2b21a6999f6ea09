//! STUN (RFC 8489): telling endpoints under which address they are seen.

use anyhow::{Context, Result};
use meshward_model::stun::{read_request, response};
use std::net::SocketAddr;
use tokio::net::UdpSocket;
use tracing::{info, warn};

/// Binds the socket, and answers until the process ends.
///
/// # Errors
/// If the address cannot be had.
pub async fn serve(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen)
        .await
        .with_context(|| format!("cannot serve STUN on {listen}; name another address with --stun-listen"))?;
    info!(%listen, "STUN is served");
    tokio::spawn(async move {
        // Longer requests have attributes that nobody here understands.
        let mut buffer = [0; 128];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, from)) => {
                    // Never longer than twice the request, so that nothing is gained by a forged sender.
                    if let Some(transaction) = read_request(&buffer[..length]) {
                        let _ = socket.send_to(&response(&transaction, from), from).await;
                    }
                }
                Err(error) => {
                    warn!("STUN: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}
