//! A GET request of HTTP/1.1.

use crate::grpc::AGENT;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::{net::TcpStream, task::JoinSet};

/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// The part of an answer's body that is read, in bytes: a server that is cut off earlier may log
/// that.
const MAX_BODY: usize = 64 << 10;

/// Asks for a path: the status has to be from 200 to 399.
///
/// # Errors
/// The reason why it has not passed.
pub(super) async fn ask(stream: TcpStream, address: SocketAddr, path: &str) -> Result<(), String> {
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(in_words)?;
    // It ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(in_words)?;
    let response = sender.send_request(request).await.map_err(in_words)?;
    let status = response.status();
    if !(200..400).contains(&status.as_u16()) {
        return Err(format!("status {}", status.as_u16()));
    }
    let (mut body, mut read) = (response.into_body(), 0);
    while let Some(Ok(frame)) = body.frame().await
        && read < MAX_BODY
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

fn in_words(error: impl std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
