//! Telling somebody else's server, by HTTP or HTTPS.

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Uri, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// For how long one delivery is tried, and how often.
const PATIENCE: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 3;

/// Posts JSON; tries again if the server cannot be reached or says that it is its own fault.
///
/// # Errors
/// Why the last attempt failed.
pub async fn post(url: &str, body: &serde_json::Value) -> Result<()> {
    let mut failure = None;
    for attempt in 0..ATTEMPTS {
        tokio::time::sleep(Duration::from_secs(u64::from(attempt) * 2)).await;
        match tokio::time::timeout(PATIENCE, attempt_once(url, body)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => failure = Some(error),
            Err(_) => failure = Some(anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
    Err(failure.unwrap_or_else(|| anyhow::anyhow!("it was not tried")))
}

async fn attempt_once(url: &str, body: &serde_json::Value) -> Result<()> {
    let uri: Uri = url.parse().with_context(|| format!("`{url}` is no URL"))?;
    let host = uri.host().with_context(|| format!("`{url}` names no host"))?.to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let bare = host.trim_matches(['[', ']']);
    let stream =
        TcpStream::connect((bare, port)).await.with_context(|| format!("cannot reach {host}:{port}"))?;
    if !secure {
        return exchange(stream, &uri, &host, body).await;
    }
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that cannot be read is one that is not trusted.
        let _ = roots.add(certificate);
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(bare.to_owned()).with_context(|| format!("`{host}` is no host name"))?;
    exchange(TlsConnector::from(Arc::new(tls)).connect(name, stream).await?, &uri, &host, body).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    host: &str,
    body: &serde_json::Value,
) -> Result<()> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let _ = answer.into_body().frame().await;
    driver.abort();
    ensure!(status.is_success(), "the server answered {status}");
    Ok(())
}
