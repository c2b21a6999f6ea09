//! The end of a membership: a node that was removed from the mesh, or that leaves it.

use crate::{
    app::Node,
    attachment::{self, Attachment},
    clock::unix_seconds,
    config::Config,
    folder::Folder,
    session,
};
use anyhow::Result;
use meshward_api_types::local::RemovedNode;
use meshward_runtime::{Mistake, member::Membership};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::UnixStream;
use tracing::{debug, error, warn};

/// The time that is given to the kernel to delete interfaces.
const DELETING: Duration = Duration::from_millis(300);
/// The interval at which the daemon's end is polled for.
const PAUSE: Duration = Duration::from_millis(50);
/// The time within which a running daemon must end after its node has left.
const ENDING: Duration = Duration::from_secs(10);

/// Closes everything once this node is no member any more.
pub async fn close(node: &Arc<Node>) {
    warn!("this node was removed from the mesh: its workloads are closed");
    if let Err(error) = node.close() {
        error!("that it was removed could not be noted: {error:#}");
    }
    mark_removed(&node.config, &node.membership, unix_seconds());
    tokio::time::sleep(DELETING).await;
}

/// Writes a note for `meshctl status`, beside the socket.
pub fn mark_removed(config: &Config, membership: &Membership, at: u64) {
    let Membership { name, mesh, .. } = membership.clone();
    let removed = RemovedNode { node: name, mesh, at };
    let path = RemovedNode::path(&config.socket);
    let written = serde_json::to_vec(&removed).map_err(std::io::Error::from);
    if let Err(error) = written.and_then(|text| std::fs::write(&path, text)) {
        debug!("{} was not written: {error}", path.display());
    }
}

/// Forgets the mesh on this machine.
///
/// # Errors
/// Fails if a file cannot be removed.
pub fn forget(config: &Config, folder: &Folder) -> Result<()> {
    folder.forget_mesh()?;
    let _ = std::fs::remove_file(RemovedNode::path(&config.socket));
    Ok(())
}

/// Leaves the mesh and forgets it on this machine. Returns the membership that ended.
///
/// # Errors
/// Fails if it is in none, or the coordinator does not let it go; then everything is as it was,
/// unless it is `force`d.
pub async fn leave(config: &Config, folder: &Folder, force: bool) -> Result<Membership> {
    let membership =
        folder.membership()?.ok_or_else(|| Mistake("this machine is in no mesh".into()))?;
    let left = match folder.removed_at() {
        Some(_) => Ok(()),
        None => session::leave(folder, &membership.coordinator).await,
    };
    match left {
        Err(error) if !force => {
            return Err(error
                .context("the mesh was not left; with --force it is forgotten here all the same"));
        }
        Err(error) => warn!(
            "the coordinator does not know that this node has left ({error:#}); there: meshctl \
            node remove {}",
            membership.name
        ),
        Ok(()) => {}
    }
    // A running daemon hears of it, closes the workloads, and ends. One that cannot hear of it has
    // to be ended first.
    let begun = Instant::now();
    while UnixStream::connect(&config.socket).await.is_ok() {
        if begun.elapsed() > ENDING {
            return Err(Mistake(
                "the daemon still runs; end it, and run `meshward-node leave --force`".into(),
            )
            .into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    close_left_behind(folder);
    forget(config, folder)?;
    Ok(membership)
}

/// Deletes the interfaces of workloads that no daemon has open.
fn close_left_behind(folder: &Folder) {
    let all: Vec<Attachment> = folder.workloads();
    all.iter().for_each(attachment::close_left_behind);
    if !all.is_empty() {
        std::thread::sleep(DELETING);
    }
}
