//! A member that says what it likes: a session with a node's credentials, and none of its manners.

use anyhow::{Context, Result};
use meshward_control_proto::{
    Answer, FromCoordinator, FromNode, InstanceId, MAX_UPDATE, MemberKind, Question,
    WorkloadReport, encode,
    view::{Digest, ResourceHashes},
};
use meshward_netns::Netns;
use meshward_runtime::{
    dial::{Dial, Reached},
    frames,
    member::MemberFolder,
    random,
    tls::clock,
};
use meshward_types::Revision;
use quinn::{RecvStream, SendStream};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// A session of a machine that has joined, without its daemon.
pub struct CraftedSession {
    runtime: Runtime,
    /// The connection, which closes when this is dropped.
    reached: Reached,
    send: SendStream,
    receive: RecvStream,
    /// `true` after a message was given up halfway: the stream cannot be read any more.
    is_torn: bool,
}

impl Drop for CraftedSession {
    /// Has the coordinator know that it has ended: it counts a member's connections.
    fn drop(&mut self) {
        self.reached.connection.close(0u32.into(), b"");
        // What closes it leaves by a task of the runtime.
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    }
}

impl CraftedSession {
    /// Dials the coordinator from a namespace with what `meshward-node join` left in a data folder;
    /// says nothing.
    ///
    /// # Errors
    /// Fails if the machine has not joined, or the coordinator is not reached.
    pub fn dial(netns: &Netns, data: &Path) -> Result<Self> {
        let folder = MemberFolder::open(data, MemberKind::Node, &[])?;
        let membership = folder.membership()?.context("it has not joined")?;
        let credentials = folder.credentials()?;
        let dial = Dial::for_session(&credentials.ca, &credentials.certificate, &credentials.key)?;
        // Its threads are in the namespace of the one that makes it.
        netns.run(move || -> Result<Self> {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let (reached, (send, receive)) = runtime.block_on(async {
                let reached = dial.dial(&membership.coordinator).await?;
                let streams = reached.connection.open_bi().await?;
                anyhow::Ok((reached, streams))
            })?;
            Ok(Self { runtime, reached, send, receive, is_torn: false })
        })?
    }

    /// Dials, and says hello with these workloads.
    ///
    /// # Errors
    /// Fails as [`Self::dial`] does, or if the session ends at once.
    pub fn begin(netns: &Netns, data: &Path, workloads: Vec<WorkloadReport>) -> Result<Self> {
        let mut session = Self::dial(netns, data)?;
        session.say(&FromNode::Hello {
            version: "crafted".into(),
            instance: InstanceId(random()),
            clock: clock(),
            revision: Revision(0),
            digest: Digest::default(),
        })?;
        for part in FromNode::inventory(vec![], workloads) {
            session.say(&part)?;
        }
        Ok(session)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Fails if the session has ended.
    pub fn say(&mut self, message: &FromNode) -> Result<()> {
        self.say_bytes(&encode(message))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Fails if the session has ended, or nothing is read for five seconds.
    pub fn say_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { runtime, send, .. } = self;
        let sent =
            async { tokio::time::timeout(Duration::from_secs(5), send.write_all(bytes)).await };
        Ok(runtime.block_on(sent).context("the coordinator does not read")??)
    }

    /// Answers whatever the coordinator asks from now on with the parts that `answer` makes of a
    /// question.
    pub fn answer(&self, answer: impl Fn(&Question) -> Vec<Answer> + Send + Sync + 'static) {
        let connection = self.reached.connection.clone();
        self.runtime.spawn(async move {
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                let Ok(question) = frames::receive::<Question>(&mut receive, MAX_UPDATE).await
                else {
                    continue;
                };
                for part in answer(&question) {
                    if send.write_all(&encode(&part)).await.is_err() {
                        break;
                    }
                }
                let _ = send.finish();
            }
        });
    }

    /// Reads messages of the coordinator until `until` returns a value for one, for at most
    /// `patience`. Answers a request to compare with nothing.
    ///
    /// # Errors
    /// Fails if the session ends before, or nothing of the kind comes.
    pub fn hear<T>(
        &mut self,
        patience: Duration,
        mut until: impl FnMut(FromCoordinator) -> Option<T>,
    ) -> Result<T> {
        anyhow::ensure!(!self.is_torn, "a message was given up halfway");
        let deadline = Instant::now() + patience;
        let Self { runtime, send, receive, is_torn, .. } = self;
        runtime.block_on(async {
            loop {
                *is_torn = true;
                let left = deadline.saturating_duration_since(Instant::now());
                let message =
                    tokio::time::timeout(left, frames::receive(receive, MAX_UPDATE)).await;
                let message = message.context("nothing of the kind was said")??;
                *is_torn = false;
                if matches!(message, FromCoordinator::Compare) {
                    for part in FromNode::resource_hashes(ResourceHashes::new()) {
                        send.write_all(&encode(&part)).await?;
                    }
                }
                if let Some(found) = until(message) {
                    return Ok(found);
                }
            }
        })
    }
}
