//! Calls of gRPC with one message each way:
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use h2::client;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    body::Bytes,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

/// The name by which servers know this program.
pub(crate) const AGENT: &str = concat!("meshward-node/", env!("CARGO_PKG_VERSION"));
/// The largest headers of an answer, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// The length of a message's prefix: a byte for compression, four for the length.
const PREFIX: usize = 5;

/// The statuses that mean something to callers.
pub(crate) const NOT_FOUND: u32 = 5;
pub(crate) const UNIMPLEMENTED: u32 = 12;

/// A call.
pub(crate) struct Call<'a> {
    /// The name of the server, as in a URL.
    pub(crate) authority: &'a str,
    /// The service and its method: `grpc.health.v1.Health/Check`.
    pub(crate) method: &'a str,
    /// The request.
    pub(crate) message: Vec<u8>,
    /// The largest answer, in bytes.
    pub(crate) max_answer: usize,
}

/// The error for a call without an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The connection has failed.
    #[error("HTTP/2: {0}")]
    Transport(#[from] h2::Error),
    /// It is a server of HTTP, and not of gRPC.
    #[error("status {0} of HTTP")]
    Http(u16),
    /// The server refuses.
    #[error("status {code} of gRPC: {message}")]
    Status {
        /// The status: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
        code: u32,
        /// The server's reason.
        message: String,
    },
    /// The answer is longer than [`Call::max_answer`].
    #[error("it answers more than {0} bytes")]
    TooLong(usize),
    /// The call or the answer is none of gRPC.
    #[error("it does not answer as gRPC does")]
    Malformed,
}

/// Makes a call over a connection of its own. Dropped before its end, it is cancelled.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn call<S>(stream: S, call: Call<'_>) -> Result<Vec<u8>, CallError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = client::Builder::new();
    let handshake = builder.max_header_list_size(MAX_HEADERS).enable_push(false).handshake(stream);
    let (sender, connection) = handshake.await?;
    // It ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    exchange(sender, call).await
}

async fn exchange(
    sender: client::SendRequest<Bytes>,
    call: Call<'_>,
) -> Result<Vec<u8>, CallError> {
    let Call { authority, method, message, max_answer } = call;
    let mut sender = sender.ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{authority}/{method}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(())
        .map_err(|_| CallError::Malformed)?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(framed(&message), true)?;
    let response = response.await?;
    if response.status() != StatusCode::OK {
        return Err(CallError::Http(response.status().as_u16()));
    }
    // An answer without a message has its status in the headers.
    check_status(response.headers())?;
    let mut body = response.into_body();
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        answer.extend_from_slice(&data);
        if answer.len() > max_answer {
            return Err(CallError::TooLong(max_answer));
        }
    }
    if let Some(trailers) = body.trailers().await? {
        check_status(&trailers)?;
    }
    unframed(&answer).map(<[u8]>::to_vec).ok_or(CallError::Malformed)
}

/// Checks `grpc-status`, if it is there.
fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(CallError::Status {
            code: code.parse().map_err(|_| CallError::Malformed)?,
            message: text("grpc-message").unwrap_or_default().to_owned(),
        }),
    }
}

/// Returns a message with its prefix.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// Returns the message after its prefix; `None` if it is compressed, or not exactly one.
fn unframed(answer: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = answer.split_at_checked(PREFIX)?;
    let [0, length @ ..] = *prefix.first_chunk::<PREFIX>()? else { return None };
    (usize::try_from(u32::from_be_bytes(length)).ok()? == message.len()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_before_it_and_is_refused_with_another_one() {
        assert_eq!(&framed(b"")[..], [0; 5]);
        assert_eq!(framed(&[7; 300])[..6], [0, 0, 0, 1, 0x2c, 7]);
        let framed = framed(b"shop");
        assert_eq!(unframed(&framed), Some(&b"shop"[..]));
        for length in 0..framed.len() {
            assert_eq!(unframed(&framed[..length]), None, "{length}");
        }
        assert_eq!(unframed(&[&framed[..], &framed].concat()), None, "two of them");
        assert_eq!(unframed(&[1, 0, 0, 0, 2, 8, 1]), None, "compressed");
    }
}
