//! The client of a Kubernetes API: over TLS, with a token, with bounds on answers.

use crate::runtimes::bounded::{self, check_id};
use anyhow::{Context, Result, bail};
use meshward_api_types::local::Kubernetes;
use reqwest::{Certificate, Client, Response, StatusCode, redirect::Policy};
use serde::de::DeserializeOwned;
use std::{fs, path::Path, time::Duration};

/// The time within which the API must answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest object in bytes: etcd stores up to 1.5 MiB.
pub(super) const MAX_OBJECT: usize = 4 << 20;
/// The time without data after which a watch has failed; the API ends it before that, and sends a
/// bookmark each minute.
const SILENCE: Duration = Duration::from_secs(330);
/// A connection on which nothing comes is probed after this time, and so many times.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;

/// The errors of a request to the API.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// There is no such object.
    #[error("the API knows no such thing")]
    Missing,
    /// The version is too old: the objects must be listed again.
    #[error("the API does not know that version any more")]
    Gone,
    /// The token lacks the permission.
    #[error("the API answers {status}: the token's role must `get`, `list` and `watch` {what}")]
    Forbidden { status: StatusCode, what: String },
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// One object.
///
/// # Errors
/// [`ApiError`].
pub(super) async fn get<T: DeserializeOwned>(api: &Kubernetes, path: &str) -> Result<T, ApiError> {
    get_at_most(api, path, MAX_OBJECT).await
}

/// An answer of at most so many bytes.
///
/// # Errors
/// [`ApiError`].
pub(super) async fn get_at_most<T: DeserializeOwned>(
    api: &Kubernetes,
    path: &str,
    limit: usize,
) -> Result<T, ApiError> {
    let (client, token) = client(api, |builder| builder.timeout(PATIENCE))?;
    let answer = client
        .get(url(api, path))
        .bearer_auth(token)
        .send()
        .await
        .context("the API does not answer")?;
    let body = bounded::read(accept(answer, path)?, limit).await?;
    Ok(serde_json::from_slice(&body).with_context(|| format!("what the API says of {path}"))?)
}

/// A watch: an answer whose body goes on.
///
/// # Errors
/// [`ApiError`].
pub(super) async fn open(api: &Kubernetes, path: &str) -> Result<Response, ApiError> {
    let (client, token) = client(api, |builder| {
        let builder = builder.connect_timeout(PATIENCE).read_timeout(SILENCE);
        builder
            .tcp_keepalive(KEEP_ALIVE)
            .tcp_keepalive_interval(KEEP_ALIVE)
            .tcp_keepalive_retries(PROBES)
    })?;
    let asked =
        tokio::time::timeout(PATIENCE, client.get(url(api, path)).bearer_auth(token).send());
    let answer =
        asked.await.context("the API does not answer")?.context("the API does not answer")?;
    accept(answer, path)
}

fn url(api: &Kubernetes, path: &str) -> String {
    format!("{}{path}", api.server.trim_end_matches('/'))
}

fn accept(answer: Response, path: &str) -> Result<Response, ApiError> {
    let bare = path.split('?').next().unwrap_or_default();
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::NOT_FOUND => Err(ApiError::Missing),
        StatusCode::GONE => Err(ApiError::Gone),
        status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
            Err(ApiError::Forbidden { status, what: bare.to_owned() })
        }
        status => Err(ApiError::Failed(anyhow::anyhow!("the API answers {status} to {bare}"))),
    }
}

/// The files are read each time: tokens are renewed.
fn client(
    api: &Kubernetes,
    set_up: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<(Client, String)> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let token = String::from_utf8(read(&api.token_file)?).context("the token is no text")?;
    let ca = Certificate::from_pem(&read(&api.ca_file)?)?;
    let client = set_up(Client::builder()).tls_certs_only([ca]).redirect(Policy::none()).build()?;
    Ok((client, token.trim().to_owned()))
}

/// Checks a name that becomes part of a path (RFC 1123).
///
/// # Errors
/// Fails if it could lead elsewhere.
pub(super) fn check_name(name: &str) -> Result<&str> {
    match check_id(name) {
        Ok(name) if !name.contains([':', '_']) => Ok(name),
        _ => bail!("`{}` is no name of Kubernetes", name.escape_default()),
    }
}
