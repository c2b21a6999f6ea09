//! Key rotation: on a schedule and on demand, without losing a packet.

use super::lifecycle::Endpoints;
use crate::clock;
use anyhow::Result;
use meshward_types::NetworkName;
use std::time::Duration;
use tracing::info;

/// The time for which the previous key stays valid after a scheduled rotation: peers that were away
/// from the coordinator for less know the new one by then.
pub(crate) const PREVIOUS_KEY_LIFETIME: Duration = Duration::from_hours(24);

impl Endpoints {
    /// Gives an endpoint another key; the current one stays good for `keep`.
    ///
    /// # Errors
    /// Fails if the key cannot be written; then the endpoint has the one that it had.
    pub async fn rotate_key(&self, network: &NetworkName, keep: Duration) -> Result<()> {
        let _turn = self.changing.lock().await;
        let Some(served) = self.enforcement.endpoint(network) else { return Ok(()) };
        let (folder, of) = (self.folder.clone(), network.clone());
        let next =
            tokio::task::spawn_blocking(move || folder.rotate_endpoint_key(&of, keep)).await??;
        self.forget_previous_key_in_time(network);
        let public_key = next.public();
        served.endpoint.rotate_key(clock::now(), next, keep);
        self.enforcement.set_public_key(network, public_key);
        info!(%network, %public_key, keep_old_seconds = keep.as_secs(), "endpoint has another key");
        Ok(())
    }

    /// Removes the key that an endpoint had before once its time is up, unless another has taken
    /// its place by then.
    pub(super) fn forget_previous_key_in_time(&self, network: &NetworkName) {
        let (folder, network) = (self.folder.clone(), network.clone());
        let Some(validity) = folder.previous_key_validity(&network) else { return };
        tokio::spawn(async move {
            tokio::time::sleep(validity.left).await;
            let now = folder.previous_key_validity(&network);
            if now.is_some_and(|now| now.until == validity.until) {
                info!(%network, "the previous key is removed: its time is up");
                folder.forget_previous_key(&network);
            }
        });
    }

    /// Returns the networks whose endpoints have had their keys for at least `age`.
    pub fn with_keys_older_than(&self, age: Duration) -> Vec<NetworkName> {
        let all = self.enforcement.endpoints().into_iter().map(|(network, _)| network);
        all.filter(|network| self.folder.endpoint_key_age(network) >= age).collect()
    }
}
