//! The inbox of a session: a node's messages, read ahead as far as its budget allows.

use anyhow::{Context, Result};
use meshward_control_proto::{FromNode, MAX_FRAME, decode};
use meshward_runtime::frames;
use meshward_types::Revision;
use quinn::RecvStream;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinHandle,
};

/// The maximum number of messages that wait; then the node's stream is not read.
const MAX_MESSAGES: usize = 4096;
/// The memory that a waiting message needs besides its bytes, at most.
const OVERHEAD: usize = 64;
/// The maximum length of an acknowledgement ([`FromNode::Enforced`]), in bytes.
const MAX_ENFORCED: usize = 16;

/// The messages that wait. They wait as bytes: decoded, they could need much more memory, so only
/// one is decoded at a time.
pub(super) struct Inbox {
    frames: mpsc::Receiver<(Vec<u8>, OwnedSemaphorePermit)>,
    /// The newest revision that the node has acknowledged. It overtakes the messages that wait.
    pub enforced: watch::Receiver<Revision>,
    reader: JoinHandle<()>,
}

impl Inbox {
    /// Starts to read a stream; at most `waiting` bytes wait.
    pub(super) fn read(mut stream: RecvStream, waiting: usize) -> Self {
        let (to_session, frames) = mpsc::channel(MAX_MESSAGES);
        let (to_enforced, enforced) = watch::channel(Revision(0));
        let room = waiting.max(MAX_FRAME + OVERHEAD);
        let budget = Arc::new(Semaphore::new(room));
        let reader = tokio::spawn(async move {
            while let Ok(body) = frames::receive_body(&mut stream, MAX_FRAME).await {
                if body.len() <= MAX_ENFORCED
                    && let Ok(FromNode::Enforced(revision)) = decode(&body)
                {
                    to_enforced.send_replace(revision);
                    continue;
                }
                // A message is never longer than the whole budget.
                let Ok(permit) =
                    budget.clone().acquire_many_owned((body.len() + OVERHEAD) as u32).await
                else {
                    return;
                };
                if to_session.send((body, permit)).await.is_err() {
                    return;
                }
            }
        });
        Self { frames, enforced, reader }
    }

    /// Waits for the next message; `None` once the session has ended.
    ///
    /// # Errors
    /// Fails if the message cannot be decoded.
    pub(super) async fn next(&mut self) -> Result<Option<FromNode>> {
        let Some((body, _permit)) = self.frames.recv().await else { return Ok(None) };
        Ok(Some(decode(&body)?))
    }

    /// Returns the next message, if one waits.
    ///
    /// # Errors
    /// Fails as [`Self::next`] does.
    pub(super) fn next_at_once(&mut self) -> Result<Option<FromNode>> {
        let Ok((body, _permit)) = self.frames.try_recv() else { return Ok(None) };
        Ok(Some(decode(&body)?))
    }

    /// Waits for the next message, for at most `timeout`.
    ///
    /// # Errors
    /// Fails if no message comes in time, the session ends, or the message cannot be decoded.
    pub(super) async fn expect(&mut self, timeout: Duration) -> Result<FromNode> {
        let message = tokio::time::timeout(timeout, self.next()).await;
        message.context("the node sent nothing in time")??.context("the session ended")
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
