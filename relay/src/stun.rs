//! The STUN server (RFC 8489): tells endpoints their reflexive transport address.

use crate::limits;
use anyhow::{Context, Result};
use meshward_runtime::sources::RateBySource;
use meshward_types::stun::{read_request, response};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use std::{
    io::IoSliceMut,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{io::Interest, net::UdpSocket};
use tracing::{info, warn};

/// The maximum length of a request that is answered, in bytes.
const MAX_REQUEST: usize = 128;
/// The maximum length of what the kernel gathers (`UDP_GRO`), in bytes.
const MAX_GATHERED: usize = 1 << 16;

/// Binds the socket, and answers until the process ends.
///
/// # Errors
/// Fails if the address cannot be bound.
pub async fn serve(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).await.with_context(|| {
        format!("cannot serve STUN on {listen}; name another address with --stun-listen")
    })?;
    let state = UdpSocketState::new((&socket).into())?;
    info!(%listen, "STUN is served");
    tokio::spawn(async move { answer(&socket, &state).await });
    Ok(())
}

/// Answers requests forever, each from the address that it was sent to: a firewall in front of the
/// client lets no other answer in.
async fn answer(socket: &UdpSocket, state: &UdpSocketState) {
    let mut buffer = vec![0; MAX_GATHERED];
    let rates = RateBySource::new(limits::STUN);
    loop {
        let mut meta = [RecvMeta::default()];
        let receive = || state.recv(socket.into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta);
        if let Err(error) = socket.async_io(Interest::READABLE, receive).await {
            warn!("STUN: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let [RecvMeta { addr, len, stride, dst_ip, .. }] = meta;
        // The kernel may have gathered several of one sender.
        for request in buffer[..len].chunks(stride.max(1)) {
            // Longer requests have attributes that this server does not know.
            let Some(transaction) = read_request(request).filter(|_| request.len() <= MAX_REQUEST)
            else {
                continue;
            };
            let contents = response(&transaction, addr);
            // Never longer than the request, and at a bounded rate: a forged source gains nothing.
            if contents.len() > request.len() || !rates.take(addr.ip(), Instant::now()) {
                continue;
            }
            let answer = Transmit {
                destination: addr,
                ecn: None,
                contents: &contents,
                segment_size: None,
                src_ip: dst_ip,
            };
            // The client repeats a request whose answer does not leave now.
            let _ = state.try_send(socket.into(), &answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_types::stun::{read_response, request};

    #[tokio::test]
    async fn an_answer_leaves_from_the_address_that_was_asked() {
        let free = std::net::UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap();
        serve(free).await.unwrap();
        for (own, at) in [("127.0.0.1:0", "127.0.0.9"), ("[::1]:0", "::1")] {
            let client = UdpSocket::bind(own).await.unwrap();
            let (transaction, at) = ([7; 12], SocketAddr::new(at.parse().unwrap(), free.port()));
            client.send_to(&request(&transaction), at).await.unwrap();
            let mut answer = [0; 128];
            let (length, from) = client.recv_from(&mut answer).await.unwrap();
            assert_eq!(from, at);
            let reflexive = read_response(&answer[..length], &transaction).unwrap();
            assert_eq!(reflexive, client.local_addr().unwrap());
        }
    }
}
