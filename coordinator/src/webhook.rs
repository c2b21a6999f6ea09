//! Webhooks: JSON posted to servers that policies name, by HTTP or HTTPS.
//!
//! A policy names the URL, and its author need not be trusted with the
//! coordinator's own network: addresses of this machine, of its links and of private networks are
//! refused unless the coordinator's configuration names them.

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode, Uri, body::Bytes, body::Incoming, client::conn::http1, header,
};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

/// Time limit for one delivery, and the number of attempts.
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 3;
/// The maximum number of bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;
/// The maximum number of redirects.
const REDIRECTS: usize = 3;
/// The maximum number of deliveries at a time: all together, and to one target. Further ones are
/// dropped.
const MAX_DELIVERIES: usize = 64;
const MAX_DELIVERIES_TO_ONE: usize = 4;
/// The pause after a first failure of a target; each further one doubles it, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(10);
/// The maximum number of targets that are remembered.
const MAX_TARGETS: usize = 1024;

/// The sender of webhooks.
pub struct Webhooks {
    /// The loopback, link-local and private networks in which webhooks may be.
    allowed: Vec<IpNet>,
    all: Arc<Semaphore>,
    targets: Mutex<HashMap<String, Target>>,
}

struct Target {
    deliveries: Arc<Semaphore>,
    /// The number of failures since the last success.
    failures: u32,
    not_before: Option<Instant>,
}

impl Webhooks {
    /// Creates a sender that posts to private networks only where `allowed` names them.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed, all: Arc::new(Semaphore::new(MAX_DELIVERIES)), targets: Mutex::default() }
    }

    /// Posts JSON; tries again if the server cannot be reached or answers 5xx.
    ///
    /// # Errors
    /// The failure of the last attempt, or the reason why none was made.
    pub async fn post(&self, url: &str, body: &serde_json::Value) -> Result<()> {
        let target = Destination::of(&url.parse().with_context(|| format!("`{url}` is no URL"))?)?
            .authority();
        let (deliveries, _all) = {
            let mut targets = self.targets.lock();
            if targets.len() >= MAX_TARGETS && !targets.contains_key(&target) {
                targets.retain(|_, known| {
                    known.deliveries.available_permits() < MAX_DELIVERIES_TO_ONE
                });
                ensure!(targets.len() < MAX_TARGETS, "too many webhooks are under way");
            }
            let known = targets.entry(target.clone()).or_insert_with(|| Target {
                deliveries: Arc::new(Semaphore::new(MAX_DELIVERIES_TO_ONE)),
                failures: 0,
                not_before: None,
            });
            if let Some(left) =
                known.not_before.and_then(|at| at.checked_duration_since(Instant::now()))
            {
                bail!(
                    "{target} has failed {} times in a row; it is tried again in {} s",
                    known.failures,
                    left.as_secs() + 1
                );
            }
            let deliveries = known.deliveries.clone().try_acquire_owned();
            (
                deliveries.context("too many deliveries to it are under way")?,
                self.all.clone().try_acquire_owned()?,
            )
        };
        let delivered = self.deliver(url, body).await;
        drop(deliveries);
        let mut targets = self.targets.lock();
        if let Some(known) = targets.get_mut(&target) {
            known.failures = if delivered.is_ok() { 0 } else { known.failures + 1 };
            known.not_before = delivered.is_err().then(|| Instant::now() + pause(known.failures));
        }
        delivered
    }

    async fn deliver(&self, url: &str, body: &serde_json::Value) -> Result<()> {
        let mut failure = None;
        for attempt in 0..ATTEMPTS {
            tokio::time::sleep(Duration::from_secs(u64::from(attempt) * 2)).await;
            match tokio::time::timeout(TIMEOUT, self.attempt(url, body)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => failure = Some(error),
                Err(_) => {
                    failure = Some(anyhow::anyhow!("no answer within {} s", TIMEOUT.as_secs()));
                }
            }
        }
        Err(failure.unwrap_or_else(|| anyhow::anyhow!("it was not tried")))
    }

    /// Tries once, and follows redirects on the same host.
    async fn attempt(&self, url: &str, body: &serde_json::Value) -> Result<()> {
        let mut uri: Uri = url.parse()?;
        let first = Destination::of(&uri)?;
        for _ in 0..=REDIRECTS {
            let Exchanged { status, location } = self.exchange(&uri, body).await?;
            if !matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
                ensure!(status.is_success(), "the server answered {status}");
                return Ok(());
            }
            let location =
                location.with_context(|| format!("the server answered {status}, and not where"))?;
            uri = resolved(&uri, &location)?;
            let next = Destination::of(&uri)?;
            ensure!(
                next.host == first.host && (next.secure || !first.secure),
                "the server redirects to {uri}, which is another host: name that in the \
                policy"
            );
        }
        bail!("the server sends on more than {REDIRECTS} times")
    }

    async fn exchange(&self, uri: &Uri, body: &serde_json::Value) -> Result<Exchanged> {
        let destination = Destination::of(uri)?;
        let Destination { host, port, secure } = &destination;
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), *port))
            .await
            .with_context(|| format!("the name `{host}` cannot be resolved"))?
            .collect();
        // Judged here and used here: a name that leads elsewhere the next time gains nothing.
        let usable: Vec<SocketAddr> =
            addresses.iter().copied().filter(|address| self.may_reach(address.ip())).collect();
        ensure!(
            !usable.is_empty(),
            "{host} is in a network of the coordinator's own ({}); the coordinator's configuration \
            has to allow it (`webhook_networks`)",
            addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
        );
        let stream = TcpStream::connect(&usable[..])
            .await
            .with_context(|| format!("cannot reach {host}:{port}"))?;
        if !secure {
            return exchange(stream, uri, body).await;
        }
        let name = ServerName::try_from(host.clone())
            .with_context(|| format!("`{host}` is no host name"))?;
        exchange(TlsConnector::from(public_roots()?).connect(name, stream).await?, uri, body).await
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allowed.iter().any(|network| network.contains(&address)) || is_public(address)
    }
}

fn pause(failures: u32) -> Duration {
    (FIRST_PAUSE * 2u32.saturating_pow(failures.saturating_sub(1).min(10))).min(MAX_PAUSE)
}

/// Returns `true` if an address is one of the internet (RFC 6890 lists those that are not).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let measuring = a == 198 && (b == 18 || b == 19);
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_documentation()
                || a == 0
                || a >= 240
                || shared
                || measuring)
        }
        IpAddr::V6(address) => {
            let first = address.segments()[0];
            // 2000::/3 is the part that is assigned; 64:ff9b::/96 and 2002::/16 lead to IPv4
            // addresses.
            first & 0xe000 == 0x2000
                && first != 0x2002
                && !(first == 0x2001 && address.segments()[1] == 0xdb8)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Destination {
    host: String,
    port: u16,
    secure: bool,
}

impl Destination {
    fn of(uri: &Uri) -> Result<Self> {
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!("`{uri}` is no URL of http or https"),
        };
        let host = uri.host().with_context(|| format!("`{uri}` names no host"))?;
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        Ok(Self { host, port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }), secure })
    }

    fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Returns the target of a redirect: a URL, or a path on the same host.
fn resolved(from: &Uri, location: &str) -> Result<Uri> {
    let uri: Uri = location.parse().context("the server redirects to something that is no URL")?;
    if uri.host().is_some() {
        return Ok(uri);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = uri.into_parts().path_and_query;
    Ok(Uri::from_parts(parts)?)
}

fn public_roots() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that cannot be read is one that is not trusted.
        let _ = roots.add(certificate);
    }
    let tls =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    Ok(Arc::new(tls))
}

struct Exchanged {
    status: StatusCode,
    location: Option<String>,
}

/// Aborts the connection's task when the exchange ends.
struct AbortAtEnd<T>(JoinHandle<T>);

impl<T> Drop for AbortAtEnd<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    body: &serde_json::Value,
) -> Result<Exchanged> {
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_ANSWER).handshake(TokioIo::new(stream)).await?;
    let _driver = AbortAtEnd(tokio::spawn(connection));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let answer: Response<Incoming> = sender.send_request(request).await?;
    let status = answer.status();
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.map(str::to_owned);
    let mut body = answer.into_body();
    let mut length = 0;
    // Read up to a limit: a server whose connection is closed at once may undo the request.
    while length < MAX_ANSWER
        && let Some(Ok(frame)) = body.frame().await
    {
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(Exchanged { status, location })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// Answers every request with these bytes, on loopback.
    async fn server(answer: impl Fn(u16) -> String + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer(port);
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    if answer.contains("endless") {
                        let filler = vec![b'x'; 65536];
                        while stream.write_all(&filler).await.is_ok() {}
                    }
                });
            }
        });
        port
    }

    fn webhooks() -> Webhooks {
        Webhooks::new(vec!["127.0.0.0/8".parse().unwrap()])
    }

    #[test]
    fn addresses_of_ones_own_networks_are_not_public() {
        for own in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!webhooks_without().may_reach(own.parse().unwrap()), "{own}");
        }
        for public in ["9.9.9.9", "2620:fe::fe"] {
            assert!(webhooks_without().may_reach(public.parse().unwrap()), "{public}");
        }
    }

    fn webhooks_without() -> Webhooks {
        Webhooks::new(vec![])
    }

    #[tokio::test]
    async fn a_target_on_this_machine_is_told_only_if_it_is_allowed() {
        let port = server(|_| "HTTP/1.1 204 No Content\r\n\r\n".into()).await;
        let url = format!("http://127.0.0.1:{port}/hook");
        webhooks().post(&url, &json!({})).await.unwrap();
        let refused = webhooks_without().attempt(&url, &json!({})).await.unwrap_err().to_string();
        assert!(refused.contains("webhook_networks"), "{refused}");
    }

    #[tokio::test]
    async fn a_server_sends_on_within_its_own_host_and_nowhere_else() {
        let there = server(|_| "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()).await;
        let same = server(move |_| {
            format!(
                "HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:{there}/\r\ncontent-length: 0\r\n\r\n"
            )
        })
        .await;
        let other = server(move |_| {
            format!(
                "HTTP/1.1 307 x\r\nlocation: http://127.0.0.2:{there}/\r\ncontent-length: 0\r\n\r\n"
            )
        })
        .await;
        let round =
            server(|_| "HTTP/1.1 308 x\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n".into())
                .await;
        let attempt = async |port: u16| {
            let tried = webhooks().attempt(&format!("http://127.0.0.1:{port}/"), &json!({})).await;
            tried.map_err(|error| error.to_string())
        };
        attempt(same).await.unwrap();
        assert!(attempt(other).await.unwrap_err().contains("another host"));
        assert!(attempt(round).await.unwrap_err().contains("more than"));
    }

    #[tokio::test]
    async fn an_endless_answer_is_not_read_to_its_end() {
        let port = server(|_| {
            "HTTP/1.1 200 OK\r\nx: endless\r\ncontent-length: 99999999999\r\n\r\n".into()
        })
        .await;
        webhooks().attempt(&format!("http://127.0.0.1:{port}/"), &json!({})).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_fails_is_left_alone_for_longer_and_longer() {
        let webhooks = webhooks();
        let port = server(|_| "HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n".into()).await;
        let url = format!("http://127.0.0.1:{port}/");
        assert!(webhooks.post(&url, &json!({})).await.unwrap_err().to_string().contains("500"));
        assert!(
            webhooks.post(&url, &json!({})).await.unwrap_err().to_string().contains("in a row")
        );
        assert_eq!([1, 2, 3, 40].map(pause), [5, 10, 20, 600].map(Duration::from_secs));
    }
}
