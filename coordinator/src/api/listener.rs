//! TLS for the API and for tunnels: handshakes run beside each other, so that a slow client delays nobody.

use axum::serve::Listener;
use meshward_daemon::tunnel::{ALPN_TUNNEL, Tunnels};
use rustls::ServerConfig;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES_AT_ONCE: usize = 256;

/// Accepts TCP connections, serves those that are tunnels, and gives out the others once they have finished their TLS handshake.
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Begins to accept on `listener`.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn new(
        mut listener: TcpListener,
        config: Arc<ServerConfig>,
        tunnels: Arc<Tunnels>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, ready) = mpsc::channel(HANDSHAKES_AT_ONCE);
        let acceptor = TlsAcceptor::from(config);
        let room = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
        tokio::spawn(async move {
            while let Ok(place) = room.clone().acquire_owned().await {
                // axum's accept logs and waits on errors such as running out of descriptors.
                let (stream, from) = Listener::accept(&mut listener).await;
                let (acceptor, done, tunnels) = (acceptor.clone(), done.clone(), tunnels.clone());
                tokio::spawn(async move {
                    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await
                    else {
                        return;
                    };
                    if stream.get_ref().1.alpn_protocol() == Some(ALPN_TUNNEL) {
                        drop(place);
                        let _ = stream.get_ref().0.set_nodelay(true);
                        return tunnels.serve(stream, from).await;
                    }
                    let _ = done.send((stream, from)).await;
                });
            }
        });
        Ok(Self { ready, address })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
