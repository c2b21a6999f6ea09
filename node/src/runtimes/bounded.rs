//! Answers from outside, read with a bound: of size, of time, and of where they come from.

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
    http::request,
};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};
use tokio::net::UnixStream;

/// The largest size of an answer's head, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Reads the body of an answer over TCP, of at most `limit` bytes.
///
/// # Errors
/// Fails if it is longer, or ends halfway.
pub(super) async fn read(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let announced = response.content_length().unwrap_or(0);
    ensure!(
        announced <= limit as u64,
        "the answer has {announced} bytes; at most {limit} are taken"
    );
    while let Some(chunk) = response.chunk().await? {
        ensure!(body.len() + chunk.len() <= limit, "the answer has more than {limit} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Sends a GET request over a unix socket, and reads an answer of at most `limit` bytes.
///
/// # Errors
/// Fails if nothing answers there in time, or with more.
pub(super) async fn ask_unix(
    socket: &Path,
    path: &str,
    limit: usize,
    patience: Duration,
) -> Result<(StatusCode, Bytes)> {
    answered(open_unix(socket, path), (limit, patience)).await
}

/// Sends a POST request with a body in JSON over a unix socket, and reads an answer.
///
/// # Errors
/// Fails if nothing answers there in time, or with more bytes than the limit.
pub(super) async fn post_unix(
    socket: &Path,
    path: &str,
    body: String,
    bounds: (usize, Duration),
) -> Result<(StatusCode, Bytes)> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    answered(send_unix(socket, request, Full::new(Bytes::from(body))), bounds).await
}

async fn answered(
    response: impl Future<Output = Result<Response<Incoming>>>,
    (limit, patience): (usize, Duration),
) -> Result<(StatusCode, Bytes)> {
    let read = async {
        let response = response.await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await;
        let body =
            body.map_err(|error| anyhow::anyhow!("{error}; at most {limit} bytes are taken"))?;
        Ok((status, body.to_bytes()))
    };
    let answer = tokio::time::timeout(patience, read).await;
    answer.with_context(|| format!("no answer within {} s", patience.as_secs()))?
}

/// Sends a GET request over a unix socket. Returns the answer, whose body is still to come.
///
/// # Errors
/// Fails if nothing answers there.
pub(super) async fn open_unix(socket: &Path, path: &str) -> Result<Response<Incoming>> {
    send_unix(socket, Request::get(path), Empty::<Bytes>::new()).await
}

async fn send_unix<B>(
    socket: &Path,
    request: request::Builder,
    body: B,
) -> Result<Response<Incoming>>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = request.header(HOST, "localhost").body(body)?;
    Ok(sender.send_request(request).await?)
}

/// Checks a part of a path that somebody else has named: it leads nowhere else.
///
/// # Errors
/// Fails if it holds what is no part of an id.
pub(super) fn check_id(id: &str) -> Result<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-:".contains(c);
    if id.is_empty() || id.len() > 256 || !id.chars().all(fits) || id.starts_with('.') {
        bail!("`{}` is no id of a container or image", id.escape_default());
    }
    Ok(id)
}

/// Returns `true` for an address of the internet: not of this machine, this link, or a private
/// network (IANA's registries of special addresses, RFC 6890).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let special = a == 0 || a >= 224 || (a, b, c) == (192, 0, 0);
    !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared || special)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [first, second, ..] = ip.segments();
    let translated = (first, second) == (0x64, 0xff9b);
    if translated {
        let [.., a, b, c, d] = ip.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let local = first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80;
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_machines_links_and_private_networks_are_not_public() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd42::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in
            ["192.0.2.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "64:ff9b::808:808"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn an_id_leads_nowhere_else() {
        for id in ["", "..", "../x", "a/b", "a?b", "a%2fb", "a b", "a\r\nX: y"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id("sha256:0123abc").is_ok() && check_id("web-1_a.b").is_ok());
    }
}
