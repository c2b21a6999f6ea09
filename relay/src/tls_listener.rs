//! TLS for the API and for tunnels: handshakes run beside each other, so that a slow client delays
//! nobody.

use super::Origin;
use crate::guard::Guard;
use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::Request;
use meshward_runtime::{
    http,
    places::Place,
    tunnel::{ALPN_TUNNEL, Tunnels},
};
use rustls::ServerConfig;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const HANDSHAKE: Duration = Duration::from_secs(5);
/// For how long a connection is served on which nobody authenticates.
const UNTRUSTED: Duration = Duration::from_secs(60);
/// For how long a tunnel is carried through which no member comes.
const UNTRUSTED_TUNNEL: Duration = Duration::from_secs(15);

/// Accepts TCP connections, and serves those that are tunnels, and those that speak HTTP.
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

    /// Serves until the process ends; HTTP only with a router.
    pub async fn serve(self, router: Option<Router>) {
        let Self { listener, config, tunnels, guard } = self;
        let acceptor = TlsAcceptor::from(config);
        loop {
            let (stream, from) = http::accept(&listener).await;
            let Some(place) = guard.places.take(from.ip()) else { continue };
            let (acceptor, tunnels, router) = (acceptor.clone(), tunnels.clone(), router.clone());
            tokio::spawn(async move {
                let serving = serve_one(stream, from, &place, acceptor, &tunnels, router);
                tokio::select! {
                    () = serving => {}
                    () = place.evicted() => {}
                }
            });
        }
    }
}

async fn serve_one(
    stream: TcpStream,
    from: SocketAddr,
    place: &Arc<Place>,
    acceptor: TlsAcceptor,
    tunnels: &Tunnels,
    router: Option<Router>,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let _ = stream.get_ref().0.set_nodelay(true);
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_TUNNEL) {
        tokio::select! {
            () = tunnels.serve(stream, from, Some(place.clone())) => {}
            () = until_untrusted(place, UNTRUSTED_TUNNEL) => {}
        }
        return;
    }
    let Some(router) = router else { return };
    let origin = Origin { address: from, place: Some(place.clone()) };
    let prepare = move |request: &mut Request<Body>| {
        request.extensions_mut().insert(ConnectInfo(origin.clone()));
    };
    tokio::select! {
        () = http::serve_connection(stream, router, prepare) => {}
        () = until_untrusted(place, UNTRUSTED) => {}
    }
}

/// Ends when nobody has authenticated on the connection for `patience`.
async fn until_untrusted(place: &Place, patience: Duration) {
    tokio::time::sleep(patience).await;
    if place.is_trusted() {
        std::future::pending().await
    }
}
