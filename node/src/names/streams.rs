//! Queries by TCP (RFC 7766): kernel sockets in a namespace of the node, behind a TUN to which the
//! endpoint gives the packets of such connections, and no others.

use super::{
    context::Context,
    outside,
    resolver::{ResolverSettings, StreamAnswer},
};
use crate::{
    attachment::allow_ipv6,
    clock,
    offloads::Offloads,
    sys::{self, Tun},
    workers::{ServedEndpoint, Workers},
};
use anyhow::Context as _;
use ipnet::IpNet;
use meshward_datapath::{LocalWorkload, WorkloadIndex};
use meshward_netns::Netns;
use meshward_types::NetworkName;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// The interface in the namespace.
const INTERFACE: &str = "dns0";
/// The routing table by which packets to any address are this namespace's.
const TABLE: u32 = 53;
/// The id of the interface among the endpoint's workloads. It is never admitted.
const ID: &str = "resolver";
/// The port of DNS.
const PORT: u16 = 53;
/// Connections of one address, and of all, at the most.
const MAX_OF_ADDRESS: usize = 16;
const MAX_OF_NETWORK: usize = 512;
/// A connection is closed that has not asked for this time (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The longest query, in bytes.
const MAX_QUERY: usize = 4096;
/// The pause after the kernel has refused a connection, as without descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The listener of a network.
pub(crate) struct Streams {
    served: Weak<ServedEndpoint>,
    workers: Arc<Workers>,
    settings: Arc<ResolverSettings>,
    index: WorkloadIndex,
    task: AbortHandle,
    /// The namespace lives as long as the listener.
    _netns: Netns,
}

/// A namespace with its TUN and a socket that listens there.
struct Listening {
    netns: Netns,
    tun: Tun,
    listener: std::net::TcpListener,
}

impl Streams {
    /// Listens for a network's workloads.
    pub(crate) async fn open(
        context: &Arc<Context>,
        network: &NetworkName,
        served: &Arc<ServedEndpoint>,
        settings: Arc<ResolverSettings>,
    ) -> anyhow::Result<Self> {
        let (wanted, offloads) = (settings.clone(), context.offloads);
        let made = tokio::task::spawn_blocking(move || listen(&wanted, offloads)).await??;
        let Listening { netns, tun, listener } = made;
        let listener = TcpListener::from_std(listener)?;
        let local = LocalWorkload {
            id: ID.parse().context("an id")?,
            addresses: settings.addresses.clone(),
            prefixes: vec![],
            vouched: None,
        };
        let index = context.workers.attach(served, local, tun);
        served.endpoint.set_resolver(served.resolver.config(Some(index)));
        let connections = Arc::new(Connections::default());
        let serving = Serving {
            context: context.clone(),
            network: network.clone(),
            served: Arc::downgrade(served),
        };
        let task = tokio::spawn(accept(listener, serving, connections)).abort_handle();
        let (workers, served) = (context.workers.clone(), Arc::downgrade(served));
        Ok(Self { served, workers, settings, index, task, _netns: netns })
    }

    /// Returns whether it listens as these settings say, at this endpoint.
    pub(crate) fn is_current(
        &self,
        served: &Arc<ServedEndpoint>,
        settings: &ResolverSettings,
    ) -> bool {
        std::ptr::eq(self.served.as_ptr(), Arc::as_ptr(served))
            && self.settings.addresses == settings.addresses
            && self.settings.mtu == settings.mtu
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.task.abort();
        let Some(served) = self.served.upgrade() else { return };
        served.endpoint.set_resolver(served.resolver.config(None));
        if let Some(tun) = self.workers.detach(&served, self.index) {
            crate::attachment::close(tun);
        }
    }
}

/// Makes a namespace in which packets to any address are its own, and listens there. Blocks for
/// some milliseconds.
fn listen(settings: &ResolverSettings, offloads: Offloads) -> anyhow::Result<Listening> {
    let netns = Netns::create()?;
    let tun = netns.run(|| sys::open_tun(INTERFACE, offloads.tun()))?;
    let tun = tun.context("cannot make the interface of the resolver")?;
    let has = |ipv6: bool| settings.addresses.iter().any(|address| address.is_ipv6() == ipv6);
    netns.links(async |links| {
        links.set_mtu(INTERFACE, u32::from(settings.mtu)).await?;
        if has(true) {
            allow_ipv6(INTERFACE);
            links.no_link_local(INTERFACE).await?;
        }
        for address in &settings.addresses {
            links.add_address(INTERFACE, *address, IpNet::from(*address).prefix_len()).await?;
        }
        links.set_up(INTERFACE).await?;
        let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for any in all.into_iter().filter(|any| has(any.is_ipv6())) {
            let all = IpNet::new_assert(any, 0);
            links.add_route(INTERFACE, all, None, None).await?;
            links.accept_all(INTERFACE, all, TABLE).await?;
        }
        Ok(())
    })?;
    let any: IpAddr = match has(true) {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let listener = netns.run(|| std::net::TcpListener::bind(SocketAddr::new(any, PORT)))?;
    let listener = listener.context("cannot listen for queries by TCP")?;
    listener.set_nonblocking(true)?;
    Ok(Listening { netns, tun, listener })
}

/// The endpoint that a listener serves.
#[derive(Clone)]
struct Serving {
    context: Arc<Context>,
    network: NetworkName,
    served: Weak<ServedEndpoint>,
}

/// Connections by the address that they come from.
#[derive(Default)]
struct Connections(Mutex<HashMap<IpAddr, usize>>);

impl Connections {
    /// Adds a connection, until what is returned is dropped; `None` if there are too many.
    fn add(self: &Arc<Self>, from: IpAddr) -> Option<Connection> {
        let mut all = self.0.lock();
        let sum: usize = all.values().sum();
        let own = all.entry(from).or_default();
        if *own >= MAX_OF_ADDRESS || sum >= MAX_OF_NETWORK {
            return None;
        }
        *own += 1;
        Some(Connection { connections: self.clone(), from })
    }
}

struct Connection {
    connections: Arc<Connections>,
    from: IpAddr,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut all = self.connections.0.lock();
        if let Some(own) = all.get_mut(&self.from) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.from);
            }
        }
    }
}

async fn accept(listener: TcpListener, serving: Serving, connections: Arc<Connections>) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!("a query's connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let from = from.ip().to_canonical();
        // One that is too many is closed.
        if let Some(connection) = connections.add(from) {
            let serving = serving.clone();
            tokio::spawn(async move {
                let _ = serve(stream, from, serving).await;
                drop(connection);
            });
        }
    }
}

/// Answers the queries of a connection, one after the other.
async fn serve(mut stream: TcpStream, from: IpAddr, serving: Serving) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answer = Vec::new();
    loop {
        let query = tokio::time::timeout(IDLE, read_message(&mut stream)).await??;
        let Some(query) = query else { return Ok(()) };
        answer.clear();
        if !serving.answer(from, &query, &mut answer).await || answer.is_empty() {
            return Ok(());
        }
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        // In one segment, as RFC 7766 §8 wants.
        let message = [&length.to_be_bytes(), &answer[..]].concat();
        tokio::time::timeout(IDLE, stream.write_all(&message)).await??;
    }
}

/// Reads a message; `None` if it is too long.
async fn read_message(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY {
        return Ok(None);
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

impl Serving {
    /// Answers a query. Returns `false` if the connection is to be closed.
    async fn answer(&self, from: IpAddr, message: &[u8], answer: &mut Vec<u8>) -> bool {
        let Some(served) = self.served.upgrade() else { return false };
        let Some(asker) = served.endpoint.asker_at(clock::now(), from) else { return false };
        match served.resolver.resolve_stream(asker, from, message, answer) {
            StreamAnswer::Written => true,
            StreamAnswer::None => false,
            StreamAnswer::Upstream(query, permit) => {
                let Self { context, network, .. } = self;
                outside::ask(context, network, &served, (from, &query), answer).await;
                drop(permit);
                true
            }
        }
    }
}
