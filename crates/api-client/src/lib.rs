//! HTTP to the coordinator, over TLS with the mesh's CA as its only root, and to the node daemon,
//! over its unix socket.
#![forbid(unsafe_code)]

pub mod context;
mod operations;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, HeaderName, IF_MATCH, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use meshward_api_types::{Context, Problem};
use meshward_control_proto::COORDINATOR_NAME;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pause before a request that may have come too early is sent again.
const PAUSE: Duration = Duration::from_millis(100);
/// The limit of the wait for the coordinator once its last address is being tried.
const DIAL: Duration = Duration::from_secs(10);
/// The delay before the next address is tried besides (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
const MAX_ANSWER: usize = 256 << 20;

/// The longest time that a download may take.
const DOWNLOAD: Duration = Duration::from_hours(1);

/// The error of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be served as it stands; the text says how to mend it.
    #[error("{text}")]
    Refused {
        /// The HTTP status, if there was an answer.
        status: Option<u16>,
        /// The message for people.
        text: String,
        /// The field of the body that it is about, if it is one alone.
        field: Option<String>,
    },
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// The request failed for another reason.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn refused(text: String) -> Self {
        Self::Refused { status: None, text, field: None }
    }
}

/// The target of requests.
#[derive(Clone)]
pub struct Client {
    target: Target,
    dry_run: bool,
    /// The wait for a daemon that is still starting.
    wait: Duration,
    /// The limit of retries after 429 (too many requests).
    persistence: Duration,
    /// The state that a write may overwrite (`If-Match`).
    if_match: Option<String>,
}

/// An answer to a request.
struct Answer {
    status: StatusCode,
    /// The delay before the request may be sent again (`Retry-After`).
    retry_after: Option<Duration>,
    /// The state of what was read (`ETag`).
    etag: Option<String>,
    body: Bytes,
}

#[derive(Clone)]
enum Target {
    Coordinator(Box<Context>),
    Node(PathBuf),
}

impl Client {
    /// The coordinator of a context.
    pub fn coordinator(context: Context) -> Self {
        Self::at(Target::Coordinator(Box::new(context)))
    }

    /// The node daemon behind a socket.
    pub fn node(socket: &Path) -> Self {
        Self::at(Target::Node(socket.to_owned()))
    }

    fn at(target: Target) -> Self {
        Self {
            target,
            dry_run: false,
            wait: Duration::ZERO,
            persistence: Duration::ZERO,
            if_match: None,
        }
    }

    /// Limits the client's writes to a dry run if `dry`: they only return what would happen.
    #[must_use]
    pub fn dry(self, dry: bool) -> Self {
        Self { dry_run: dry, ..self }
    }

    /// Has the client retry for up to `wait` while nothing answers, or the answer is 503: the
    /// daemon may still be starting.
    #[must_use]
    pub fn patient(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Has the client retry requests that are refused with 429 (too many requests) after the delay
    /// that the answer names (`Retry-After`), for up to `persistence`. A request that was refused
    /// so had no effect.
    #[must_use]
    pub fn persistent(self, persistence: Duration) -> Self {
        Self { persistence, ..self }
    }

    /// Has the client's writes apply only to this state (`If-Match`).
    #[must_use]
    pub fn if_match(self, etag: String) -> Self {
        Self { if_match: Some(etag), ..self }
    }

    /// Reads.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.exchange(Method::GET, path, None).await
    }

    /// Reads a text.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        let answer = self.answer(Method::GET, path, None).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Writes; the answer has a body.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.exchange(Method::POST, &self.write_path(path), Some(encode(body)?)).await
    }

    /// Puts something into the place of what is there; the answer has a body.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.exchange(Method::PUT, &self.write_path(path), Some(encode(body)?)).await
    }

    /// Changes; the answer has a body.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.exchange(Method::PATCH, &self.write_path(path), Some(encode(body)?)).await
    }

    /// Deletes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        self.answer(Method::DELETE, &self.write_path(path), None).await.map(drop)
    }

    fn write_path(&self, path: &str) -> String {
        let joint = if path.contains('?') { '&' } else { '?' };
        if self.dry_run { format!("{path}{joint}dry_run=true") } else { path.to_owned() }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Error> {
        let answer = self.answer(method, path, body).await?;
        decode(&answer.body)
    }

    /// Reads into a file, however long it is, and gives its length in bytes.
    ///
    /// # Errors
    /// [`Error`]; then what is in the file is of no use.
    pub async fn download(&self, path: &str, file: &mut impl std::io::Write) -> Result<u64, Error> {
        let Target::Coordinator(context) = &self.target else {
            return Err(Error::refused("a node has nothing to download".into()));
        };
        let request = Request::get(path)
            .header(HOST, "meshward")
            .header(AUTHORIZATION, format!("Bearer {}", context.token))
            .body(Full::new(Bytes::new()))
            .map_err(Error::failed)?;
        let download = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(dial(context).await?))
                .await
                .map_err(Error::failed)?;
            let driver = tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(Error::failed)?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let said = Limited::new(body, MAX_ANSWER)
                    .collect()
                    .await
                    .map_err(Error::failed)?
                    .to_bytes();
                return Err(refusal(status, &said));
            }
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame
                    .map_err(|error| Error::Failed(format!("the answer broke off: {error}")))?;
                if let Some(data) = frame.data_ref() {
                    file.write_all(data).map_err(Error::failed)?;
                    length += data.len() as u64;
                }
            }
            driver.abort();
            Ok(length)
        };
        tokio::time::timeout(DOWNLOAD, download).await.map_err(|_| self.hangs(DOWNLOAD))?
    }

    /// Returns the error after a request that was sent and not answered in time.
    fn hangs(&self, patience: Duration) -> Error {
        let who = match &self.target {
            Target::Coordinator(context) => format!("the coordinator at {}", context.server),
            Target::Node(socket) => format!("the node daemon at {}", socket.display()),
        };
        let seconds = patience.as_secs();
        Error::Failed(format!(
            "{who} was reached and has not answered for {seconds} s; is it stopped or overloaded?"
        ))
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Error> {
        let begun = Instant::now();
        loop {
            let (error, pause, until) = match self.attempt(&method, path, body.clone()).await {
                Ok(answer) if answer.status.is_success() => return Ok(answer),
                Ok(Answer { status, retry_after, body, .. }) => {
                    let (pause, until) = match status {
                        StatusCode::SERVICE_UNAVAILABLE => (PAUSE, self.wait),
                        StatusCode::TOO_MANY_REQUESTS => match retry_after {
                            Some(pause) => (pause, self.persistence),
                            // Nobody says that it passes soon.
                            None => (PAUSE, Duration::ZERO),
                        },
                        _ => (PAUSE, Duration::ZERO),
                    };
                    (refusal(status, &body), pause, until)
                }
                Err(error @ Error::Unreachable(_)) => (error, PAUSE, self.wait),
                Err(error) => return Err(error),
            };
            if begun.elapsed() + pause > until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "meshward");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Target::Coordinator(context) = &self.target {
            request = request.header(AUTHORIZATION, format!("Bearer {}", context.token));
        }
        if let Some(etag) = self.if_match.as_ref().filter(|_| *method != Method::GET) {
            request = request.header(IF_MATCH, etag);
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(Error::failed)?;
        let exchange = async {
            match &self.target {
                Target::Coordinator(context) => send(dial(context).await?, request).await,
                Target::Node(socket) => send(dial_node(socket).await?, request).await,
            }
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| self.hangs(PATIENCE))?
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        Error::Failed(format!(
            "the answer is not what this version expects ({error}); are both sides of one version?"
        ))
    })
}

/// Returns the error of an answer without success.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    let (text, field) = match serde_json::from_slice(body) {
        Ok(Problem { detail, field, .. }) => (detail, field),
        Err(_) => (format!("the answer was {status}"), None),
    };
    if status.is_client_error() {
        Error::Refused { status: Some(status.as_u16()), text, field }
    } else {
        Error::Failed(text)
    }
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(Error::failed)
}

async fn dial(context: &Context) -> Result<TlsStream<TcpStream>, Error> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(context.ca.as_bytes())
        .map_err(|error| Error::refused(format!("the CA in the context is damaged: {error}")))?;
    roots.add(ca).map_err(Error::failed)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::failed)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(COORDINATOR_NAME).map_err(Error::failed)?;
    // One after the other begins, and whoever proves first to be the coordinator is it: a place
    // that is silent costs a moment.
    let mut attempts = JoinSet::new();
    let mut servers = context.servers().map(ToOwned::to_owned);
    let mut failures = Vec::new();
    loop {
        let next = servers.next();
        let is_last = next.is_none();
        if let Some(server) = next {
            let (connector, name) = (connector.clone(), name.clone());
            attempts.spawn(async move { dial_one(&connector, name, &server).await });
        }
        let wait = if is_last { DIAL } else { STAGGER };
        match tokio::time::timeout(wait, attempts.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => failures.push(error),
            Ok(Some(Err(panic))) => return Err(Error::failed(panic)),
            Ok(None) => return Err(worst(&failures)),
            Err(_) if is_last => {
                let all: Vec<&str> = context.servers().collect();
                failures.push(Error::Unreachable(format!(
                    "the coordinator does not answer at {}; does a firewall stand in between, or \
                     is it stopped?",
                    all.join(", ")
                )));
                return Err(worst(&failures));
            }
            Err(_) => {}
        }
    }
}

/// Returns the error after all addresses failed. An answer from somebody who is not the coordinator
/// says more than no answer.
fn worst(failures: &[Error]) -> Error {
    let failed = failures.iter().position(|error| matches!(error, Error::Failed(_)));
    let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
    match failed {
        Some(_) => Error::Failed(texts.join("; ")),
        None => Error::Unreachable(texts.join("; ")),
    }
}

async fn dial_one(
    connector: &TlsConnector,
    name: ServerName<'static>,
    server: &str,
) -> Result<TlsStream<TcpStream>, Error> {
    let stream = TcpStream::connect(server).await.map_err(|error| {
        Error::Unreachable(format!(
            "cannot reach the coordinator at {server} ({error}); does meshward-coordinator run \
             there?"
        ))
    })?;
    connector.connect(name, stream).await.map_err(|error| {
        Error::Failed(format!(
            "what answers at {server} is not the coordinator of this context: {error}"
        ))
    })
}

async fn dial_node(socket: &Path) -> Result<UnixStream, Error> {
    UnixStream::connect(socket).await.map_err(|error| {
        let path = socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => Error::refused(format!(
                "the node's socket {path} is for root only; run this as root"
            )),
            _ => Error::Unreachable(format!(
                "no node daemon answers on {path} ({error}); does meshward-node run on this \
                 machine?"
            )),
        }
    })
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Error> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(Error::failed)?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(Error::failed)?;
    let status = response.status();
    let header =
        |name: HeaderName| response.headers().get(name)?.to_str().ok().map(ToOwned::to_owned);
    let seconds: Option<u64> = header(RETRY_AFTER).and_then(|text| text.parse().ok());
    let (retry_after, etag) = (seconds.map(Duration::from_secs), header(ETAG));
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body =
        body.map_err(|error| Error::Failed(format!("the answer broke off: {error}")))?.to_bytes();
    driver.abort();
    Ok(Answer { status, retry_after, etag, body })
}

#[cfg(test)]
mod tests;
