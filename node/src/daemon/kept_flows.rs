//! Flows outlive the daemon: they are written down at intervals and at the end, and taken up at the start.

use super::{Node, State};
use meshward_datapath::Now;
use meshward_model::NetworkName;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tracing::{info, warn};

/// How often flows are written down. What was begun since the last time is not there after a crash.
const INTERVAL: Duration = Duration::from_secs(30);

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix }
}

fn file(network: &NetworkName) -> String {
    format!("flows/{network}")
}

impl Node {
    /// Takes up the flows that each network had, once its workloads are there. Flows that cannot be read are left: connections are
    /// then taken up by their packets.
    pub(super) fn take_up_flows(&self, state: &State) {
        for (network, running) in &state.endpoints {
            let kept = match self.folder.read(&file(network)) {
                Ok(Some(kept)) => kept,
                Ok(None) => continue,
                Err(error) => {
                    warn!(%network, "the flows that were kept cannot be read: {error:#}");
                    continue;
                }
            };
            let endpoint = &running.service.endpoint;
            match endpoint.import_flows(now(), &kept) {
                Ok(flows) => info!(%network, flows, "flows taken up again"),
                Err(error) => warn!(%network, "the flows that were kept are not taken up: {error}"),
            }
            // From now on there may be others, so what is written there is not all any more.
            if let Err(error) = self.folder.write(&file(network), &endpoint.export_flows(now(), false)) {
                warn!(%network, "flows were not written down: {error:#}");
            }
        }
    }

    /// Writes flows down, for ever.
    pub async fn keep_flows(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.write_flows(false).await;
        }
    }

    /// Writes down the flows of all networks. `is_last`: the daemon ends, and no packet passes from now on.
    pub async fn write_flows(&self, is_last: bool) {
        let services: Vec<_> = {
            let state = self.state.lock().await;
            state.endpoints.iter().map(|(network, it)| (network.clone(), it.service.clone())).collect()
        };
        for (network, service) in services {
            if is_last {
                self.data_plane.stop(&service);
            }
            let folder = self.folder.clone();
            let written = tokio::task::spawn_blocking(move || {
                folder.write(&file(&network), &service.endpoint.export_flows(now(), is_last))
            });
            if let Ok(Err(error)) = written.await {
                warn!("flows were not written down: {error:#}");
            }
        }
    }
}
