//! HTTP connections with time limits: heads, bodies and readers that are too slow end them.

use crate::{connection_permits::ConnectionPermits, sources::Seldom};
use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    io::{
        self,
        ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset},
    },
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Sleep,
};
use tower::Service;
use tracing::warn;

/// The time that a client may take for a request's head, and be idle between two requests.
pub const HEAD: Duration = Duration::from_secs(15);
/// The largest head of a request, in bytes.
const HEAD_SIZE: usize = 64 << 10;
/// The time that a body may take whatever its length, and the lowest rate of one that takes longer,
/// in bytes per second.
const BODY: Duration = Duration::from_secs(10);
const BODY_RATE: u64 = 16 << 10;
/// The lowest rate at which a client must read: `READ` bytes in `READ_TIME` while there is
/// something to read.
const READ: usize = 128 << 10;
const READ_TIME: Duration = Duration::from_secs(30);
/// The pause after an error of `accept`, such as no descriptors being left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the requests of one connection. `prepare` may add extensions to each request.
pub async fn serve_connection<I>(
    io: I,
    router: Router,
    prepare: impl Fn(&mut Request<Body>) + Send + Sync + Clone + 'static,
) where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Body::new(Timely::new(body)));
        prepare(&mut request);
        // A router is always ready.
        router.clone().call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_SIZE);
    // The client knows why it ended.
    let _ = http.serve_connection(TokioIo::new(Impatient::new(Box::pin(io))), service).await;
}

/// Serves HTTP without TLS, as far as `permits` has room, until the process ends.
pub async fn serve(listener: TcpListener, router: Router, permits: Arc<ConnectionPermits>) {
    loop {
        let (stream, from) = accept(&listener).await;
        let Some(permit) = permits.acquire(from.ip()) else { continue };
        let router = router.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = serve_connection(stream, router, |_| {}) => {}
                () = permit.evicted() => {}
            }
        });
    }
}

/// Returns the next connection. Errors neither end the listener nor make it spin.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    static ERRORS: Seldom = Seldom::every(Duration::from_secs(10));
    loop {
        let error = match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        // Errors of one connection, which is gone already.
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
            continue;
        }
        if let Some(more) = ERRORS.due(Instant::now()) {
            warn!(more, "connections cannot be accepted just now: {error}");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// A body with a time limit.
struct Timely {
    body: Incoming,
    came: u64,
    begun: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Timely {
    fn new(body: Incoming) -> Self {
        Self { body, came: 0, begun: Instant::now(), timer: Box::pin(tokio::time::sleep(BODY)) }
    }
}

impl hyper::body::Body for Timely {
    type Data = bytes::Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame {
                this.came += frame.data_ref().map_or(0, |data| data.len() as u64);
                let due = this.begun + BODY + Duration::from_secs(this.came / BODY_RATE);
                this.timer.as_mut().reset(due.into());
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(this.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// A stream that fails if the other side does not read what is written.
pub struct Impatient<I> {
    io: Pin<Box<I>>,
    /// The timer, which runs while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
    /// The bytes written since the timer was started.
    written: usize,
}

impl<I> Impatient<I> {
    /// Wraps a stream.
    pub fn new(io: Pin<Box<I>>) -> Self {
        Self { io, timer: None, written: 0 }
    }

    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(READ_TIME)));
        ready!(timer.as_mut().poll(cx));
        if self.written >= READ {
            self.written = 0;
            timer.as_mut().reset(tokio::time::Instant::now() + READ_TIME);
            // Registers the waker.
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side reads too slowly")))
    }
}

impl<I: AsyncRead> AsyncRead for Impatient<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().io.as_mut().poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite> AsyncWrite for Impatient<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.io.as_mut().poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) => {
                this.written += count;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.wait(cx),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.io.as_mut().poll_flush(cx) {
            Poll::Ready(done) => {
                (this.timer, this.written) = (None, 0);
                Poll::Ready(done)
            }
            Poll::Pending => this.wait(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.io.as_mut().poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => this.wait(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::{KnownSources, OpenLimit};
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn server() -> SocketAddr {
        let router = Router::new()
            .route("/", get(|| async { "there" }))
            .route("/long", get(|| async { vec![7u8; 64 << 20] }))
            .route("/", post(|body: bytes::Bytes| async move { body.len().to_string() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = OpenLimit { per_address: 8, per_prefix: 8, total: 8 };
        tokio::spawn(serve(
            listener,
            router,
            ConnectionPermits::new(limit, 8, Arc::new(KnownSources::new(8))),
        ));
        address
    }

    async fn ends(mut stream: TcpStream, within: Duration) -> bool {
        let mut rest = Vec::new();
        tokio::time::timeout(within, stream.read_to_end(&mut rest)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_a_slow_body_and_silence_between_requests_end_the_connection() {
        let address = server().await;
        for (sent, limit) in [
            (&b""[..], HEAD),
            (b"GET / HTTP/1.1\r\nho", HEAD),
            (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", HEAD),
            (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nabc", BODY),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent).await.unwrap();
            let said = String::from_utf8_lossy(sent);
            assert!(ends(stream, limit + HEAD + Duration::from_secs(5)).await, "{said}");
        }
    }

    #[tokio::test]
    async fn one_too_many_drives_out_the_oldest() {
        let address = server().await;
        let mut all = Vec::new();
        for _ in 0..9 {
            all.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ends(all.remove(0), Duration::from_secs(5)).await);
        let mut last = all.pop().unwrap();
        last.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("there"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_an_answer_is_cut_off() {
        let (near, far) = tokio::io::duplex(4096);
        let router = Router::new().route("/", get(|| async { vec![7u8; 8 << 20] }));
        let serving = tokio::spawn(serve_connection(far, router, |_| {}));
        let (mut read, mut write) = tokio::io::split(near);
        write.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // Reading a little at a time is not enough.
        let reading = tokio::spawn(async move {
            let mut some = [0; 100];
            while read.read(&mut some).await.is_ok_and(|count| count > 0) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        tokio::time::timeout(READ_TIME * 2, serving).await.unwrap().unwrap();
        reading.abort();
    }
}
