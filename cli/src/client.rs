//! HTTP to the coordinator, over TLS with the mesh's CA as its only root, and to the node, over its unix socket.

use crate::{Mistake, arguments::Common};
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use meshward_model::{
    api::{Context as ApiContext, ErrorBody},
    control::COORDINATOR_NAME,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, io::ErrorKind, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(20);
const MAX_ANSWER: usize = 256 << 20;

/// Where requests go.
pub struct Client {
    place: Place,
    dry_run: bool,
}

enum Place {
    Coordinator(ApiContext),
    Node(PathBuf),
}

impl Client {
    /// The coordinator of the context.
    ///
    /// # Errors
    /// [`Mistake`] if there is no context.
    pub fn coordinator(common: &Common) -> Result<Self> {
        Ok(Self { place: Place::Coordinator(context(common)?), dry_run: common.dry_run })
    }

    /// Whether there is a coordinator to ask.
    pub fn has_context(common: &Common) -> bool {
        context(common).is_ok()
    }

    /// The same, whose writes only say what would happen.
    pub fn dry(self) -> Self {
        Self { dry_run: true, ..self }
    }

    /// The node daemon of this machine.
    pub fn node(common: &Common) -> Self {
        Self { place: Place::Node(common.socket.clone()), dry_run: false }
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.exchange(Method::GET, path, None).await
    }

    /// Writes; the answer has a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        self.exchange(Method::POST, &self.write_path(path), Some(body)).await
    }

    /// Deletes.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.answer(Method::DELETE, &self.write_path(path), None).await.map(drop)
    }

    fn write_path(&self, path: &str) -> String {
        if self.dry_run { format!("{path}?dry_run=true") } else { path.to_owned() }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T> {
        let answer = self.answer(method, path, body).await?;
        serde_json::from_slice(&answer)
            .context("the answer is not what this version expects; are both sides of one version?")
    }

    async fn answer(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "meshward");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Place::Coordinator(context) = &self.place {
            request = request.header(AUTHORIZATION, format!("Bearer {}", context.token));
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let exchange = async {
            match &self.place {
                Place::Coordinator(context) => send(dial(context).await?, request).await,
                Place::Node(socket) => send(dial_node(socket).await?, request).await,
            }
        };
        let (status, body) =
            tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")??;
        if status.is_success() {
            return Ok(body);
        }
        let said = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error);
        let said = said.unwrap_or_else(|_| format!("the answer was {status}"));
        if status.is_client_error() {
            return Err(Mistake(said).into());
        }
        anyhow::bail!(said)
    }
}

/// Where the coordinator is, and who we are to it.
///
/// # Errors
/// [`Mistake`] if there is no context.
pub fn context(common: &Common) -> Result<ApiContext> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let usual = [
        home.join(".config/meshward/context.json"),
        "/var/lib/meshward/coordinator/admin.json".into(),
        home.join(".local/state/meshward/coordinator/admin.json"),
    ];
    let candidates = match &common.context {
        Some(file) => vec![file.clone()],
        None => usual.to_vec(),
    };
    for file in &candidates {
        match fs::read(file) {
            Ok(text) => {
                return serde_json::from_slice(&text).map_err(|error| {
                    Mistake(format!("{} is no context file: {error}", file.display())).into()
                });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Mistake(format!("cannot read {}: {error}", file.display())).into()),
        }
    }
    if let Some(file) = &common.context {
        return Err(Mistake(format!("there is no context file {}", file.display())).into());
    }
    Err(Mistake(format!(
        "meshctl does not know which coordinator to talk to; copy the coordinator's admin.json from its data folder to {}, or name it with --context FILE",
        usual[0].display()
    ))
    .into())
}

async fn dial(context: &ApiContext) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(context.ca.as_bytes())
        .map_err(|error| Mistake(format!("the CA in the context is damaged: {error}")))?;
    roots.add(ca)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = &context.server;
    let stream = TcpStream::connect(server).await.with_context(|| {
        format!("cannot reach the coordinator at {server}; does meshward-coordinator run there?")
    })?;
    let name = ServerName::try_from(COORDINATOR_NAME)?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .with_context(|| format!("what answers at {server} is not the coordinator of this context"))
}

async fn dial_node(socket: &PathBuf) -> Result<UnixStream> {
    UnixStream::connect(socket).await.map_err(|error| {
        let path = socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => {
                Mistake(format!("the node's socket {path} is for root only; run meshctl as root")).into()
            }
            _ => anyhow::anyhow!(
                "no node daemon answers on {path} ({error}); does meshward-node run on this machine?"
            ),
        }
    })
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes();
    driver.abort();
    Ok((status, body))
}
