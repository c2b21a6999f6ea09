//! A small client of registries, for what signatures take: manifests and blobs (OCI distribution
//! specification, "Pull"), and tokens
//! (<https://distribution.github.io/distribution/spec/auth/token/>). A registry may be anybody's,
//! and is named by whoever names an image: every answer is bounded, and it leads us to no other
//! host and into no private network.

use super::bounded::{self, is_public};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{
    Client, Response, StatusCode, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde::Deserialize;
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// The most bytes of a manifest and of a token's answer.
const MAX_MANIFEST: usize = 1 << 20;
const MAX_TOKEN: usize = 64 << 10;
/// The most redirects, within one host, that are followed.
const MAX_REDIRECTS: usize = 3;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The access to a registry.
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// `HOST` or `HOST:PORT`.
    pub registry: String,
    /// `true` to use plain HTTP.
    pub plain: bool,
    /// `true` if it may be in a private network, because the operator has named it.
    pub private: bool,
    /// Hosts to which it may send us for blobs.
    pub elsewhere: Vec<String>,
    /// The user with the password, if the registry needs one.
    pub credentials: Option<Credentials>,
}

/// The credentials for HTTP's basic authentication (RFC 7617).
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    pub user: String,
    pub password: String,
}

/// A registry.
pub(super) struct Registry {
    access: Access,
    client: Client,
    /// The `Authorization` header, once the registry has asked for it.
    authorization: Option<String>,
}

impl Registry {
    /// Creates a client that waits for at most `timeout` for each answer.
    ///
    /// # Errors
    /// Fails if it is in a private network, and nobody has named it.
    pub(super) fn new(access: Access, patience: Duration) -> Result<Self> {
        let (own, elsewhere) = (host_of(&access.registry).to_owned(), access.elsewhere.clone());
        let redirects = Policy::custom(move |attempt| {
            let host = attempt.url().host_str().unwrap_or_default();
            let before = attempt.previous().last().map(Url::scheme);
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("it redirects too often")
            } else if before == Some("https") && attempt.url().scheme() != "https" {
                attempt.error("it redirects to a URL without TLS")
            } else if host == own || elsewhere.iter().any(|allowed| allowed == host) {
                attempt.follow()
            } else {
                let to = host.to_owned();
                attempt.error(format!(
                    "it redirects to {to}; if that is right, name it in `registry_redirects`"
                ))
            }
        });
        let mut builder =
            Client::builder().timeout(patience).redirect(redirects).user_agent("meshward-node");
        builder = match access.private {
            true => builder.no_proxy(),
            false => builder.dns_resolver(Arc::new(PublicOnly)),
        };
        let registry = Self { client: builder.build()?, access, authorization: None };
        registry.check_host(host_of(&registry.access.registry))?;
        Ok(registry)
    }

    /// Checks an address; a name is checked once it is resolved.
    fn check_host(&self, host: &str) -> Result<()> {
        let address = host.trim_matches(['[', ']']).parse().ok();
        ensure!(
            self.access.private || host != "localhost" && address.is_none_or(is_public),
            "{host} is in a private network; if that is right, name the registry in \
            `private_registries`"
        );
        Ok(())
    }

    /// Returns the manifest of a tag or digest; `None` if there is none.
    ///
    /// # Errors
    /// Fails if the registry does not answer as it should.
    pub(super) async fn manifest(
        &mut self,
        path: &str,
        reference: &str,
    ) -> Result<Option<Vec<u8>>> {
        self.get(path, &format!("manifests/{reference}"), Some(MANIFEST), MAX_MANIFEST).await
    }

    /// Returns a blob of at most `limit` bytes.
    ///
    /// # Errors
    /// Fails if the registry does not answer as it should.
    pub(super) async fn blob(&mut self, path: &str, digest: &str, limit: usize) -> Result<Vec<u8>> {
        let found = self.get(path, &format!("blobs/{digest}"), None, limit).await?;
        found.with_context(|| format!("the registry does not have the blob {digest}"))
    }

    async fn get(
        &mut self,
        path: &str,
        what: &str,
        accept: Option<&str>,
        limit: usize,
    ) -> Result<Option<Vec<u8>>> {
        let scheme = if self.access.plain { "http" } else { "https" };
        let host = match self.access.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let url = Url::parse(&format!("{scheme}://{host}/v2/{path}/{what}"))?;
        let mut answer = self.send(&url, accept).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            self.authorization = Some(self.authorize(&answer, path).await?);
            answer = self.send(&url, accept).await?;
        }
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => bounded::read(answer, limit).await.map(Some),
            status => bail!("{url} answers {status}"),
        }
    }

    async fn send(&self, url: &Url, accept: Option<&str>) -> Result<Response> {
        let mut request = self.client.get(url.clone());
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        Ok(request.send().await?)
    }

    /// Returns the `Authorization` header that a registry asks for in a 401 answer.
    async fn authorize(&self, refusal: &Response, path: &str) -> Result<String> {
        let challenge =
            refusal.headers().get(WWW_AUTHENTICATE).context("it does not say what it wants")?;
        let challenge = challenge.to_str()?;
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            let Credentials { user, password } =
                self.access.credentials.as_ref().context("it wants a password")?;
            return Ok(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))));
        }
        ensure!(
            scheme.eq_ignore_ascii_case("bearer"),
            "it wants something else than a password or token"
        );
        let realm = parameter(parameters, "realm").context("it does not say who gives tokens")?;
        let mut url = Url::parse(realm)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        ensure!(
            url.scheme() == "https" || self.access.plain && url.scheme() == "http",
            "tokens are not asked for without TLS, at {host}"
        );
        self.check_host(&host)?;
        let scope =
            parameter(parameters, "scope").map_or(format!("repository:{path}:pull"), str::to_owned);
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = parameter(parameters, "service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.client.get(url);
        if let Some(Credentials { user, password }) = &self.access.credentials {
            request = request.basic_auth(user, Some(password));
        }
        let answer = request.send().await?.error_for_status()?;
        let token: Token = serde_json::from_slice(&bounded::read(answer, MAX_TOKEN).await?)?;
        let token =
            token.token.or(token.access_token).context("there is no token in the answer")?;
        Ok(format!("Bearer {token}"))
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The host of `HOST:PORT` or `[HOST]:PORT`.
pub(super) fn host_of(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => registry,
    }
}

/// A parameter of a challenge, as in `realm="https://auth.example/token",service="registry"` (RFC
/// 9110 §11.2).
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = parameters;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// Resolves names, and leaves out addresses that are not the internet's.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                let name = name.as_str();
                return Err(format!(
                    "{name} is in a private network; if that is right, name the \
                    registry in `private_registries`"
                )
                .into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
