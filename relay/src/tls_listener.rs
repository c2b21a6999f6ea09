//! The TLS listener, for tunnels and the API: handshakes run concurrently, so that a slow client
//! delays no other.

use crate::guard::Guard;
use meshward_runtime::{
    connection_permits::ConnectionPermit,
    http,
    tunnel::{ALPN_TUNNEL, Tunnels},
};
use rustls::ServerConfig;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Time limit for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time limit for a client to authenticate on a connection.
const UNTRUSTED: Duration = Duration::from_mins(1);
/// Time limit for a member to authenticate through a tunnel.
const UNTRUSTED_TUNNEL: Duration = Duration::from_secs(15);

/// A connection after its TLS handshake, that is no tunnel.
pub struct Accepted {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// The client's address.
    pub from: SocketAddr,
    /// The connection's permit, to be marked once the client has authenticated.
    pub permit: Arc<ConnectionPermit>,
}

/// Accepts TCP connections, carries tunnels, and hands over all other connections.
pub struct TlsListener {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    tunnels: Arc<Tunnels>,
    guard: Arc<Guard>,
}

impl TlsListener {
    /// Listens; nothing is accepted before [`Self::serve`].
    pub fn new(
        listener: TcpListener,
        config: Arc<ServerConfig>,
        tunnels: Arc<Tunnels>,
        guard: Arc<Guard>,
    ) -> Self {
        Self { listener, config, tunnels, guard }
    }

    /// Serves until the process ends. A connection that is no tunnel is served by `serve_other`,
    /// and closed after a minute if its client does not authenticate.
    pub async fn serve<F>(self, serve_other: impl Fn(Accepted) -> F + Clone + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let Self { listener, config, tunnels, guard } = self;
        let acceptor = TlsAcceptor::from(config);
        loop {
            let (stream, from) = http::accept(&listener).await;
            let Some(permit) = guard.permits.acquire(from.ip()) else { continue };
            let (acceptor, tunnels) = (acceptor.clone(), tunnels.clone());
            let serve_other = serve_other.clone();
            tokio::spawn(async move {
                let serving = async {
                    let Some(stream) = handshake(&acceptor, stream).await else { return };
                    let permit = permit.clone();
                    serve_one(Accepted { stream, from, permit }, &tunnels, serve_other).await;
                };
                tokio::select! {
                    () = serving => {}
                    () = permit.evicted() => {}
                }
            });
        }
    }
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let done = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let stream = done.ok()?.ok()?;
    let _ = stream.get_ref().0.set_nodelay(true);
    Some(stream)
}

async fn serve_one<F: Future<Output = ()>>(
    accepted: Accepted,
    tunnels: &Tunnels,
    serve_other: impl Fn(Accepted) -> F,
) {
    let permit = accepted.permit.clone();
    if accepted.stream.get_ref().1.alpn_protocol() == Some(ALPN_TUNNEL) {
        let Accepted { stream, from, permit: own } = accepted;
        tokio::select! {
            () = tunnels.serve(stream, from, Some(own)) => {}
            () = until_untrusted(&permit, UNTRUSTED_TUNNEL) => {}
        }
        return;
    }
    tokio::select! {
        () = serve_other(accepted) => {}
        () = until_untrusted(&permit, UNTRUSTED) => {}
    }
}

/// Returns once `limit` has passed, if the client has not authenticated by then.
async fn until_untrusted(permit: &ConnectionPermit, limit: Duration) {
    tokio::time::sleep(limit).await;
    if permit.is_trusted() {
        std::future::pending::<()>().await;
    }
}
