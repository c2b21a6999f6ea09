//! A request of gRPC's health checking protocol:
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>. Its two messages have one
//! field each, so they are written and read here.

use super::http::AGENT;
use h2::client;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    body::Bytes,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use std::net::SocketAddr;
use tokio::{net::TcpStream, task::JoinSet};

const METHOD: &str = "grpc.health.v1.Health/Check";
/// The largest headers of an answer, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 4096;
/// The length of a message's prefix: a byte for compression, four for the length.
const PREFIX: usize = 5;

/// `HealthCheckResponse.ServingStatus`.
const SERVING: u64 = 1;
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks about a service: its status has to be `SERVING`.
///
/// # Errors
/// The reason why it has not passed.
pub(super) async fn ask(
    stream: TcpStream,
    address: SocketAddr,
    service: &str,
) -> Result<(), String> {
    let mut builder = client::Builder::new();
    let handshake = builder.max_header_list_size(MAX_HEADERS).enable_push(false).handshake(stream);
    let (sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    // It ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    exchange(sender, address, service).await.map_err(|error| match error {
        Failure::Transport(error) => format!("HTTP/2: {error}"),
        Failure::Answer(problem) => problem,
    })
}

enum Failure {
    Transport(h2::Error),
    Answer(String),
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self::Transport(error)
    }
}

async fn exchange(
    sender: client::SendRequest<Bytes>,
    address: SocketAddr,
    service: &str,
) -> Result<(), Failure> {
    let mut sender = sender.ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{address}/{METHOD}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(())
        .map_err(|error| Failure::Answer(error.to_string()))?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(request_of(service), true)?;
    let response = response.await?;
    if response.status() != StatusCode::OK {
        return Err(Failure::Answer(format!("status {} of HTTP", response.status().as_u16())));
    }
    // An answer without a message has its status in the headers.
    check_status(response.headers())?;
    let mut body = response.into_body();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
        if message.len() > MAX_ANSWER {
            return Err(Failure::Answer(format!("it answers more than {MAX_ANSWER} bytes")));
        }
    }
    if let Some(trailers) = body.trailers().await? {
        check_status(&trailers)?;
    }
    match serving_status(&message) {
        Some(SERVING) => Ok(()),
        Some(other) => {
            let name = usize::try_from(other).ok().and_then(|at| STATUSES.get(at));
            let name = name.map_or_else(|| other.to_string(), |name| (*name).to_owned());
            Err(Failure::Answer(format!("it answers {name}")))
        }
        None => Err(Failure::Answer("it does not answer as grpc.health.v1 does".into())),
    }
}

/// Checks `grpc-status`, if it is there.
fn check_status(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let message = text("grpc-message").unwrap_or_default();
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        // NOT_FOUND: the protocol's answer about a service that the server does not know.
        Some("5") => Err(Failure::Answer(format!("it does not know the service: {message}"))),
        Some("12") => {
            Err(Failure::Answer("it does not implement grpc.health.v1.Health/Check".into()))
        }
        Some(other) => Err(Failure::Answer(format!("status {other} of gRPC: {message}"))),
    }
}

/// Returns a `HealthCheckRequest` with its prefix: field 1 is the service.
fn request_of(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        write_varint(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    // A name has at most some hundred bytes (`MAX_PATH` of the policy's reader).
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], &message].concat().into()
}

fn write_varint(out: &mut Vec<u8>, mut number: usize) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads the status of a `HealthCheckResponse` with its prefix: field 1; 0 if it is left out.
/// `None` if that is none, or more than one.
fn serving_status(answer: &[u8]) -> Option<u64> {
    let (prefix, message) = answer.split_at_checked(PREFIX)?;
    let [0, length @ ..] = *prefix.first_chunk::<PREFIX>()? else { return None };
    if usize::try_from(u32::from_be_bytes(length)).ok()? != message.len() {
        return None;
    }
    let (mut rest, mut status) = (message, 0);
    while !rest.is_empty() {
        let tag = read_varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = read_varint(&mut rest)?,
            (_, 0) => drop(read_varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(read_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..10 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        assert_eq!(&request_of("")[..], [0; 5]);
        assert_eq!(&request_of("shop.Api")[..], b"\0\0\0\0\x0a\x0a\x08shop.Api");
        let long = request_of(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0; 5]), Some(0));
        // Fields that are not known are skipped.
        assert_eq!(serving_status(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 2]), Some(2));
    }

    #[test]
    fn answers_cut_anywhere_or_changed_anywhere_are_read_or_refused() {
        let answer = [0, 0, 0, 0, 15, 0x12, 2, 9, 9, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1];
        assert_eq!(serving_status(&answer), Some(SERVING));
        for length in 0..answer.len() {
            assert_eq!(serving_status(&answer[..length]), None, "{length}");
        }
        for at in 0..answer.len() {
            for byte in 0..=255 {
                let mut changed = answer;
                changed[at] = byte;
                let _ = serving_status(&changed);
            }
        }
        assert_eq!(serving_status(&[0, 0, 0, 0, 4, 0x12, 0xff, 0xff, 0x7f]), None);
        assert_eq!(serving_status(&[1, 0, 0, 0, 2, 8, 1]), None, "compressed");
    }
}
