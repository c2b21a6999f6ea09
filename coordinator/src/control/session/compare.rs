//! Comparison of a node's view with the world: the node sends hashes, and gets what differs.

use super::link::NodeLink;
use crate::{control::inbox::Inbox, sessions::Session};
use anyhow::{Context, Result};
use meshward_control_proto::{FromCoordinator, FromNode, view::ResourceHashes};
use std::time::Duration;
use tokio::time::Instant;

/// Time limit for a node to send the hashes of its view.
const HASHES_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of resources that a node may have beyond those that it should have.
const SPARE_RESOURCES: usize = 1 << 16;
/// The maximum number of other messages that a node may send before its hashes are complete.
const MAX_MESSAGES_MEANWHILE: usize = 256;

/// Compares the node's view with the world, and sends what differs. Returns the other messages that
/// came meanwhile, in their order.
///
/// # Errors
/// Fails if the node does not send its hashes in time, or has more resources than it can have.
pub(super) async fn compare(
    link: &mut NodeLink,
    inbox: &mut Inbox,
    session: &Session,
) -> Result<Vec<FromNode>> {
    link.send(&FromCoordinator::Compare).await?;
    let ReceivedHashes { hashes, other_messages } = receive_hashes(link, inbox).await?;
    link.mesh.adjust(|world| world.adopt(&link.node, &hashes));
    let parts = link.mesh.look(|world| {
        session.clear_backlog();
        world.view_parts(&link.node)
    });
    // A hundred thousand resources take a tenth of a second: neither the mesh nor other sessions
    // wait for that.
    let compare = move || {
        let view = parts.into_view();
        (view.revision, view.changes_since(&hashes))
    };
    let (revision, changes) = tokio::task::spawn_blocking(compare).await?;
    link.send_update(revision, changes).await?;
    Ok(other_messages)
}

/// The hashes of a node's view.
struct ReceivedHashes {
    hashes: ResourceHashes,
    /// The messages that came before the hashes were complete.
    other_messages: Vec<FromNode>,
}

async fn receive_hashes(link: &NodeLink, inbox: &mut Inbox) -> Result<ReceivedHashes> {
    let deadline = Instant::now() + HASHES_TIMEOUT;
    let (mut hashes, mut max) = (ResourceHashes::new(), SPARE_RESOURCES);
    let mut other_messages = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = inbox.expect(left).await;
        match message.context("the node did not send the hashes of its view")? {
            FromNode::ResourceHashes { part, is_last } => {
                if hashes.len() + part.len() > max {
                    // The node may be one that should have as many.
                    let expected = link.mesh.look(|world| world.view_parts(&link.node)).count();
                    max = SPARE_RESOURCES + 2 * expected;
                    anyhow::ensure!(
                        hashes.len() + part.len() <= max,
                        "the node has more resources than the mesh"
                    );
                }
                hashes.extend(part);
                if is_last {
                    return Ok(ReceivedHashes { hashes, other_messages });
                }
            }
            _ if other_messages.len() == MAX_MESSAGES_MEANWHILE => {
                anyhow::bail!("the node sends everything but the hashes of its view")
            }
            other => other_messages.push(other),
        }
    }
}
