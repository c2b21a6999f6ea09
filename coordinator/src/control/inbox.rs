//! What a node says, read ahead as far as its budget goes.

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

/// Messages that may wait; then the node's stream is held back.
const QUEUE: usize = 4096;
/// What a message takes besides its bytes, at the most.
const OVERHEAD: usize = 64;
/// A message that says which revision is enforced is no longer than this.
const SHORT: usize = 16;

/// The messages that wait. They wait as bytes: decoded they could be much more, and so only one is
/// at a time.
pub(super) struct Inbox {
    frames: mpsc::Receiver<(Vec<u8>, OwnedSemaphorePermit)>,
    /// The newest revision that the node says it enforces, ahead of all that waits: whoever waits
    /// for that does not wait for what else the node says.
    pub enforced: watch::Receiver<Revision>,
    reader: JoinHandle<()>,
}

impl Inbox {
    /// Reads a stream from now on; at most `waiting` bytes wait.
    pub(super) fn read(mut stream: RecvStream, waiting: usize) -> Self {
        let (to_session, frames) = mpsc::channel(QUEUE);
        let (to_enforced, enforced) = watch::channel(Revision(0));
        let room = waiting.max(MAX_FRAME + OVERHEAD);
        let budget = Arc::new(Semaphore::new(room));
        let reader = tokio::spawn(async move {
            while let Ok(body) = frames::receive_body(&mut stream, MAX_FRAME).await {
                if body.len() <= SHORT
                    && let Ok(FromNode::Enforced(revision)) = decode(&body)
                {
                    to_enforced.send_replace(revision);
                    continue;
                }
                // A message is never longer than all the room there is.
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

    /// The next message; `None`: the session has ended.
    ///
    /// # Errors
    /// If it is no message of a node.
    pub(super) async fn next(&mut self) -> Result<Option<FromNode>> {
        let Some((body, _permit)) = self.frames.recv().await else { return Ok(None) };
        Ok(Some(decode(&body)?))
    }

    /// The next message, if one waits.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) fn next_at_once(&mut self) -> Result<Option<FromNode>> {
        let Ok((body, _permit)) = self.frames.try_recv() else { return Ok(None) };
        Ok(Some(decode(&body)?))
    }

    /// The next message, which has to come within `patience`.
    ///
    /// # Errors
    /// If it does not, or is none.
    pub(super) async fn expect(&mut self, patience: Duration) -> Result<FromNode> {
        let message = tokio::time::timeout(patience, self.next()).await;
        message.context("the node says nothing")??.context("the session ended")
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
