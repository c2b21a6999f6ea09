//! Control messages on QUIC streams.

use meshward_control_proto::{BadFrame, body_length, decode, encode};
use quinn::{ReadExactError, RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};

/// An error of sending or receiving a message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed the stream, or the connection is gone.
    #[error("the connection ended: {0}")]
    Ended(String),
    /// The body is not a message of this type.
    #[error(transparent)]
    Bad(#[from] BadFrame),
}

impl From<ReadExactError> for FrameError {
    fn from(error: ReadExactError) -> Self {
        Self::Ended(error.to_string())
    }
}

/// Sends one message.
///
/// # Errors
/// [`FrameError::Ended`].
pub async fn send(stream: &mut SendStream, message: &impl Serialize) -> Result<(), FrameError> {
    send_encoded(stream, &encode(message)).await
}

/// Sends one message that is already encoded after its length.
///
/// # Errors
/// [`FrameError::Ended`].
pub async fn send_encoded(stream: &mut SendStream, frame: &[u8]) -> Result<(), FrameError> {
    stream.write_all(frame).await.map_err(|error| FrameError::Ended(error.to_string()))
}

/// Receives one message whose body has at most `limit` bytes.
///
/// # Errors
/// [`FrameError`].
pub async fn receive<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<T, FrameError> {
    Ok(decode(&receive_body(stream, limit).await?)?)
}

/// Receives one message as [`receive`] does; `None` if the stream ends before it begins.
///
/// # Errors
/// [`FrameError`].
pub async fn receive_or_end<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<Option<T>, FrameError> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        other => other?,
    }
    Ok(Some(decode(&receive_rest(stream, head, limit).await?)?))
}

/// Receives the body of one message, of at most `limit` bytes.
///
/// # Errors
/// [`FrameError`].
pub async fn receive_body(stream: &mut RecvStream, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    receive_rest(stream, head, limit).await
}

async fn receive_rest(
    stream: &mut RecvStream,
    head: [u8; 4],
    limit: usize,
) -> Result<Vec<u8>, FrameError> {
    let length = body_length(head, limit)?;
    let mut body = Vec::new();
    // The announced length reserves no memory: the body grows as bytes arrive.
    while body.len() < length {
        let at = body.len();
        body.resize(length.min(at + (64 << 10)), 0);
        stream.read_exact(&mut body[at..]).await?;
    }
    Ok(body)
}
