//! The limit of the timestamps of handshakes on disk, so that they grow over restarts whatever the
//! clock does. It is ahead of them and written anew every nine minutes, not at each handshake.

use super::lifecycle::{Endpoints, timestamp_limit};
use crate::clock::unix_seconds;
use meshward_types::NetworkName;
use std::time::Duration;

/// The distance of timestamps to their limit at which it is written anew, in seconds.
const NEAR: u64 = 60;
/// The interval at which that is checked.
const LOOK: Duration = Duration::from_secs(1);

impl Endpoints {
    /// Keeps the limits ahead of the timestamps, for ever. A limit that cannot be written is tried
    /// again: meanwhile timestamps grow all the same, but do not follow the clock.
    pub async fn watch_timestamps(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            for (network, below) in self.near_limits() {
                let (folder, of) = (self.folder.clone(), network.clone());
                let written =
                    tokio::task::spawn_blocking(move || folder.keep_stamp_limit(&of, below)).await;
                let why = match written {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => {
                        Some(format!("the limit of timestamps is not on disk: {error:#}"))
                    }
                    Err(panic) => Some(panic.to_string()),
                };
                let is_written = why.is_none();
                self.folder.troubles().note("timestamps", why);
                if is_written && let Some(served) = self.enforcement.endpoint(&network) {
                    if let Some(kept) = self.kept.lock().get_mut(&network) {
                        kept.timestamps_below = below;
                    }
                    served.endpoint.set_timestamp_limit(below);
                }
            }
        }
    }

    /// Returns the limits that timestamps have come near to, and what they are to be.
    fn near_limits(&self) -> Vec<(NetworkName, u64)> {
        let now = unix_seconds();
        let endpoints = self.enforcement.endpoints();
        let kept = self.kept.lock();
        let limits = endpoints.into_iter().filter_map(|(network, served)| {
            let below = kept.get(&network)?.timestamps_below;
            let newest = served.endpoint.newest_timestamp();
            (newest.max(now).saturating_add(NEAR) > below)
                .then(|| (network, timestamp_limit(newest, now).max(below)))
        });
        limits.collect()
    }
}
