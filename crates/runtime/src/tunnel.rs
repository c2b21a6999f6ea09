//! Tunnels: QUIC where UDP does not pass, its datagrams inside a TLS connection, each after its
//! length (big-endian `u16`). QUIC works in a tunnel as it does over UDP, for sessions and relayed
//! packets alike; TLS only hides it from firewalls that let nothing else pass.
//!
//! The queues of a tunnel are bounded. Datagrams that do not fit are lost, as in any network, and
//! QUIC's congestion control slows down.

use crate::connection_permits::ConnectionPermit;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::mpsc,
};

/// ALPN of a tunnel's TLS connection.
pub const ALPN_TUNNEL: &[u8] = b"meshward-tunnel/1";

/// The largest number of datagrams in the queue of one tunnel for writing, and in the queue of all
/// tunnels for reading.
const WAITING: usize = 512;
const READ: usize = 4096;
/// The longest datagram, in bytes: QUIC sends no longer ones on the paths that it tries.
const LONGEST: usize = 2048;
/// The largest number of bytes that wait for all tunnels of a server. Beyond it, datagrams are
/// lost.
const ALL_WAITING: usize = 64 << 20;
/// The size of a write, in bytes.
const WRITE: usize = 64 << 10;
/// The time without data after which a tunnel has ended: QUIC's keep-alives come more often.
const QUIET: Duration = Duration::from_secs(30);
/// The largest number of tunnels.
const MOST: usize = 20_000;
/// The prefix of the addresses that QUIC sees for peers behind tunnels, next to `100::/64`; it is
/// never routed (RFC 6666).
const PREFIX: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 1];

type Datagram = (SocketAddr, Bytes);

/// The client's end of a tunnel, as a socket that has one peer.
pub struct Tunnel {
    local: SocketAddr,
    outgoing: Queue,
    received: Mutex<mpsc::Receiver<Datagram>>,
}

impl Tunnel {
    /// Creates a tunnel over a TLS connection from `local` to `peer`.
    pub fn over(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Self {
        let (outgoing, to_send) = queue(Arc::default());
        let (to_socket, received) = mpsc::channel(WAITING);
        tokio::spawn(carry(stream, peer, to_socket, to_send));
        Self { local, outgoing, received: Mutex::new(received) }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("local", &self.local).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Tunnel {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysReady)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.outgoing.send(transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match poll_queue(&mut self.received.lock(), cx, buffers, meta) {
            Poll::Ready(0) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            other => other.map(Ok),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A server's socket that is reached by UDP and by tunnels.
pub struct Tunnels {
    socket: Arc<dyn AsyncUdpSocket>,
    open: RwLock<HashMap<SocketAddr, Open>>,
    next: AtomicU64,
    /// The bytes that wait for all tunnels.
    waiting: Arc<AtomicUsize>,
    to_socket: mpsc::Sender<Datagram>,
    received: Mutex<mpsc::Receiver<Datagram>>,
    /// `true` if tunnels are read first the next time, so that neither side starves the other.
    is_tunnels_turn: AtomicBool,
}

struct Open {
    outgoing: Queue,
    peer: SocketAddr,
    permit: Option<Arc<ConnectionPermit>>,
}

/// A queue of datagrams for a tunnel.
struct Queue {
    to_send: mpsc::Sender<Bytes>,
    /// The bytes that wait for all tunnels that share this.
    waiting: Arc<AtomicUsize>,
}

impl Queue {
    /// Appends datagrams; those that find no room are lost.
    fn send(&self, transmit: &Transmit<'_>) {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            let waiting = self.waiting.fetch_add(datagram.len(), Relaxed);
            let has_room = waiting + datagram.len() <= ALL_WAITING;
            if !has_room || self.to_send.try_send(Bytes::copy_from_slice(datagram)).is_err() {
                self.waiting.fetch_sub(datagram.len(), Relaxed);
            }
        }
    }
}

/// The receiving end of a queue. Dropping it discards what waits.
struct Waiting {
    datagrams: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Waiting {
    async fn next(&mut self) -> Option<Bytes> {
        let datagram = self.datagrams.recv().await;
        self.took(datagram)
    }

    fn next_at_once(&mut self) -> Option<Bytes> {
        let datagram = self.datagrams.try_recv().ok();
        self.took(datagram)
    }

    fn took(&self, datagram: Option<Bytes>) -> Option<Bytes> {
        let length = datagram.as_ref().map_or(0, Bytes::len);
        self.waiting.fetch_sub(length, Relaxed);
        datagram
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.datagrams.close();
        while self.next_at_once().is_some() {}
    }
}

fn queue(waiting: Arc<AtomicUsize>) -> (Queue, Waiting) {
    let (to_send, datagrams) = mpsc::channel(WAITING);
    (Queue { to_send, waiting: waiting.clone() }, Waiting { datagrams, waiting })
}

impl Tunnels {
    /// Creates a socket without tunnels.
    pub fn beside(socket: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        let (to_socket, received) = mpsc::channel(READ);
        Arc::new(Self {
            socket,
            open: RwLock::default(),
            next: AtomicU64::new(0),
            waiting: Arc::default(),
            to_socket,
            received: Mutex::new(received),
            is_tunnels_turn: AtomicBool::new(false),
        })
    }

    /// Serves a tunnel over a TLS connection from `peer` until it ends. `permit` is the
    /// connection's.
    pub async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: SocketAddr,
        permit: Option<Arc<ConnectionPermit>>,
    ) {
        let (outgoing, to_send) = queue(self.waiting.clone());
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&PREFIX);
        bytes[8..].copy_from_slice(&self.next.fetch_add(1, Relaxed).to_be_bytes());
        let known_as = SocketAddr::new(Ipv6Addr::from(bytes).into(), 1);
        {
            let mut open = self.open.write();
            if open.len() >= MOST {
                return;
            }
            open.insert(known_as, Open { outgoing, peer, permit });
        }
        // The caller may drop this future at any time.
        let _end = RemoveAtEnd(self, known_as);
        carry(stream, known_as, self.to_socket.clone(), to_send).await;
    }

    /// Notes who has authenticated from an address that QUIC sees: if a tunnel has it, the tunnel
    /// is theirs.
    pub fn trust(&self, address: SocketAddr, who: &str) {
        if let Some(permit) = self.open.read().get(&address).and_then(|open| open.permit.as_ref()) {
            permit.trust(who);
        }
    }

    /// Returns `true` if the peer that QUIC sees at `address` uses a tunnel.
    pub fn has(&self, address: SocketAddr) -> bool {
        is_tunnelled(&address)
    }

    /// Returns the real address of the peer that QUIC sees at `address`: for a tunnel, that of its
    /// TLS connection.
    pub fn origin(&self, address: SocketAddr) -> SocketAddr {
        self.open.read().get(&address).map_or(address, |open| open.peer)
    }
}

struct RemoveAtEnd<'a>(&'a Tunnels, SocketAddr);

impl Drop for RemoveAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open.write().remove(&self.1);
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Tunnels {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !is_tunnelled(&transmit.destination) {
            return self.socket.try_send(transmit);
        }
        if let Some(open) = self.open.read().get(&transmit.destination) {
            open.outgoing.send(transmit);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let tunnels_first = self.is_tunnels_turn.fetch_xor(true, Relaxed);
        for tunnels in [tunnels_first, !tunnels_first] {
            let polled = match tunnels {
                true => poll_queue(&mut self.received.lock(), cx, buffers, meta).map(Ok),
                false => self.socket.poll_recv(cx, buffers, meta),
            };
            if polled.is_ready() {
                return polled;
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

fn is_tunnelled(address: &SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.octets().starts_with(&PREFIX))
}

/// A poller that is always ready: full queues drop datagrams, so there is nothing to wait for.
#[derive(Debug)]
struct AlwaysReady;

impl UdpPoller for AlwaysReady {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Takes as many datagrams from a queue as there are buffers; none if the queue has ended.
fn poll_queue(
    queue: &mut mpsc::Receiver<Datagram>,
    cx: &mut Context<'_>,
    buffers: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
) -> Poll<usize> {
    let mut count = 0;
    while count < buffers.len().min(meta.len()) {
        match queue.poll_recv(cx) {
            Poll::Ready(Some((addr, datagram))) => {
                let Some(buffer) = buffers[count].get_mut(..datagram.len()) else { continue };
                buffer.copy_from_slice(&datagram);
                let len = datagram.len();
                meta[count] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                count += 1;
            }
            Poll::Pending if count == 0 => return Poll::Pending,
            _ => break,
        }
    }
    Poll::Ready(count)
}

/// Carries datagrams between a stream and two queues until either ends. Datagrams from the stream
/// come from `from`.
async fn carry(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    from: SocketAddr,
    received: mpsc::Sender<Datagram>,
    outgoing: Waiting,
) {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        _ = read(BufReader::with_capacity(WRITE, reader), from, received) => {}
        _ = write(writer, outgoing) => {}
    }
}

async fn read(
    mut stream: impl AsyncRead + Unpin,
    from: SocketAddr,
    received: mpsc::Sender<Datagram>,
) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(QUIET, stream.read_u16()).await??;
        let mut datagram = BytesMut::zeroed(usize::from(length));
        if !(1..=LONGEST).contains(&datagram.len()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        tokio::time::timeout(QUIET, stream.read_exact(&mut datagram)).await??;
        if received.send((from, datagram.freeze())).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(mut stream: impl AsyncWrite + Unpin, mut outgoing: Waiting) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(first) = outgoing.next().await {
        let mut next = Some(first);
        while let Some(datagram) = next {
            buffer.put_u16(datagram.len() as u16);
            buffer.put(datagram);
            next = if buffer.len() < WRITE { outgoing.next_at_once() } else { None };
        }
        // A peer that does not read is gone.
        tokio::time::timeout(QUIET, stream.write_all(&buffer)).await??;
        tokio::time::timeout(QUIET, stream.flush()).await??;
        buffer.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transmit(
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> Transmit<'_> {
        Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
    }

    async fn receive(socket: &dyn AsyncUdpSocket) -> io::Result<(SocketAddr, Vec<u8>)> {
        std::future::poll_fn(|cx| {
            let mut buffer = [0; 4096];
            let mut meta = [RecvMeta::default()];
            let polled = socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta);
            polled.map_ok(|_| (meta[0].addr, buffer[..meta[0].len].to_vec()))
        })
        .await
    }

    #[tokio::test]
    async fn datagrams_pass_a_tunnel_both_ways_and_keep_their_bounds() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, udp).unwrap();
        let tunnels = Tunnels::beside(socket);
        let (near, far) = tokio::io::duplex(100_000);
        let client = Tunnel::over(near, address("192.0.2.1:5"), address("192.0.2.9:7443"));
        let serving = tokio::spawn({
            let tunnels = tunnels.clone();
            async move { tunnels.serve(far, "192.0.2.1:5".parse().unwrap(), None).await }
        });

        let three = [vec![1; 1200], vec![2; 1200], vec![3; 7]].concat();
        client.try_send(&transmit(address("192.0.2.9:7443"), &three, Some(1200))).unwrap();
        let mut from = None;
        for expected in three.chunks(1200) {
            let (known_as, datagram) = receive(&*tunnels).await.unwrap();
            assert_eq!(datagram, expected);
            from = Some(known_as);
        }
        let from = from.unwrap();
        assert_eq!(tunnels.origin(from), address("192.0.2.1:5"));
        tunnels.try_send(&transmit(from, b"back", None)).unwrap();
        assert_eq!(receive(&client).await.unwrap(), (address("192.0.2.9:7443"), b"back".to_vec()));

        // Nobody reads: datagrams beyond the bound are lost, and nothing waits for them.
        for _ in 0..100 * WAITING {
            tunnels.try_send(&transmit(from, &[0; 1200], None)).unwrap();
        }
        assert!(tunnels.waiting.load(Relaxed) <= WAITING * 1200);
        drop(client);
        serving.await.unwrap();
        assert_eq!(tunnels.origin(from), from, "it is forgotten");
        assert_eq!(tunnels.waiting.load(Relaxed), 0, "and what waited for it");
    }

    #[tokio::test]
    async fn what_is_no_datagram_ends_the_tunnel() {
        for bytes in [&[0u8, 0][..], &[0xff, 0xff, 1], &[0, 9, 1]] {
            let (to_socket, _received) = mpsc::channel(1);
            let ended = read(bytes, "192.0.2.1:5".parse().unwrap(), to_socket).await;
            assert!(ended.is_err(), "{bytes:?}");
        }
    }
}
