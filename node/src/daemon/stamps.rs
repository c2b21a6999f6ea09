//! What is on disk of the timestamps of handshakes, so that they grow over restarts whatever the
//! clock does. A limit ahead of them is kept, which is written anew every nine minutes: not at each
//! handshake.

use super::{Node, seconds_now};
use meshward_types::NetworkName;
use std::time::Duration;

/// How far ahead the limit is written, and how near to it timestamps may come, in seconds.
const MARGIN: u64 = 600;
const NEAR: u64 = 60;
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The limit for an endpoint whose timestamps have come so far, at this time; all in seconds since
/// 1970.
pub(super) fn limit(newest: u64, now: u64) -> u64 {
    newest.max(now).saturating_add(MARGIN)
}

impl Node {
    /// Keeps the limits ahead of the timestamps, for ever. What cannot be written is tried again:
    /// meanwhile they grow all the same, but do not follow the clock.
    pub async fn watch_stamps(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let near: Vec<(NetworkName, u64)> = {
                let (state, now) = (self.state.lock().await, seconds_now());
                let newest = state.endpoints.iter().map(|(network, running)| {
                    (network, running.served.endpoint.newest_timestamp(), running.stamps_below)
                });
                newest
                    .filter(|(_, newest, below)| newest.max(&now).saturating_add(NEAR) > *below)
                    .map(|(network, newest, below)| {
                        (network.clone(), limit(newest, now).max(below))
                    })
                    .collect()
            };
            for (network, below) in near {
                let (folder, kept) = (self.folder.clone(), network.clone());
                let done =
                    tokio::task::spawn_blocking(move || folder.keep_stamp_limit(&kept, below))
                        .await;
                let why = match done {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => {
                        Some(format!("the limit of timestamps is not on disk: {error:#}"))
                    }
                    Err(panic) => Some(panic.to_string()),
                };
                let is_kept = why.is_none();
                self.folder.troubles().note("timestamps", why);
                let mut state = self.state.lock().await;
                if let Some(running) = state.endpoints.get_mut(&network).filter(|_| is_kept) {
                    running.stamps_below = below;
                    running.served.endpoint.set_timestamp_limit(below);
                }
            }
        }
    }
}
