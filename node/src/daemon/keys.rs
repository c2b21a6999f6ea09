//! Other keys for the endpoints: on a schedule and on demand, without losing a packet.

use super::Node;
use crate::clock;
use anyhow::Result;
use meshward_types::NetworkName;
use std::time::Duration;
use tracing::{info, warn};

/// How often the age of the keys is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// For how long the key of before is good after a change that nobody asked for: who was away from
/// the coordinator for less, has heard of the new one by then.
const KEEP: Duration = Duration::from_secs(24 * 3600);

impl Node {
    /// Gives endpoints other keys, those of all networks if none is named. The ones of now are good
    /// for `keep` more.
    ///
    /// # Errors
    /// If a key cannot be written down; then the endpoint has the one that it had.
    pub async fn rotate_keys(&self, networks: &[NetworkName], keep: Duration) -> Result<()> {
        let _turn = self.attaching.lock().await;
        let all: Vec<NetworkName> = {
            let state = self.state.lock().await;
            let named = |network: &&NetworkName| networks.is_empty() || networks.contains(network);
            state.endpoints.keys().filter(named).cloned().collect()
        };
        for network in all {
            let (folder, rotated) = (self.folder.clone(), network.clone());
            let next =
                tokio::task::spawn_blocking(move || folder.rotate_endpoint_key(&rotated, keep))
                    .await??;
            self.forget_previous_key_in_time(&network);
            let mut state = self.state.lock().await;
            let Some(running) = state.endpoints.get_mut(&network) else { continue };
            running.public_key = next.public();
            running.served.endpoint.rotate_key(clock::now(), next, keep);
            info!(%network, public_key = %running.public_key, keep_old_seconds = keep.as_secs(), "endpoint has another key");
            self.report_endpoint(&state, &network);
        }
        Ok(())
    }

    /// Removes the key that an endpoint had before once its time is up, unless another has taken
    /// its place by then.
    pub(super) fn forget_previous_key_in_time(&self, network: &NetworkName) {
        let (folder, network) = (self.folder.clone(), network.clone());
        let Some((until, left)) = folder.previous_key_lasts(&network) else { return };
        tokio::spawn(async move {
            tokio::time::sleep(left).await;
            if folder.previous_key_lasts(&network).is_some_and(|(now, _)| now == until) {
                info!(%network, "the key of before is removed: its time is up");
                folder.forget_previous_key(&network);
            }
        });
    }

    /// Changes keys that have had their time, for ever. While the coordinator is away they stay:
    /// nobody could be told.
    pub async fn watch_keys(&self) {
        let age = self.config.rotate_keys.0;
        loop {
            tokio::time::sleep(LOOK.min(age.max(Duration::from_secs(1)))).await;
            let old: Vec<NetworkName> = {
                let state = self.state.lock().await;
                if state.session.is_none() {
                    continue;
                }
                let is_old = |network: &&NetworkName| self.folder.endpoint_key_age(network) >= age;
                state.endpoints.keys().filter(is_old).cloned().collect()
            };
            if !old.is_empty()
                && let Err(error) = self.rotate_keys(&old, KEEP).await
            {
                warn!("the keys stay as they are: {error:#}");
            }
        }
    }
}
