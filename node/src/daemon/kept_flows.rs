//! Flows outlive the daemon: they are written down at intervals and at the end, and taken up at the
//! start.

use super::{Node, State};
use crate::clock;
use meshward_datapath::Now;
use meshward_types::NetworkName;
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::info;

/// How often flows are written down. What was begun since the last time is not there after a crash.
const INTERVAL: Duration = Duration::from_secs(30);

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: clock::now(), unix }
}

fn file(network: &NetworkName) -> String {
    format!("flows/{network}")
}

impl Node {
    /// Takes up the flows that each network had, once its workloads are there. Flows that cannot be
    /// read are set aside: connections are then taken up by their packets.
    pub(super) fn take_up_flows(&self, state: &State) {
        for (network, running) in &state.endpoints {
            let endpoint = &running.served.endpoint;
            let flows =
                self.folder.take_up(&file(network), |kept| endpoint.import_flows(now(), kept));
            let Some(flows) = flows else { continue };
            info!(%network, flows, "flows taken up again");
            // From now on there may be others, so what is written there is not all any more.
            self.folder.keep(&file(network), endpoint.export_flows(now(), false));
        }
    }

    /// Writes flows down, for ever.
    pub async fn keep_flows(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.write_flows(false).await;
        }
    }

    /// Writes down the flows of all networks. `is_last`: the daemon ends, and no packet passes from
    /// now on.
    pub async fn write_flows(&self, is_last: bool) {
        let served: Vec<_> = {
            let state = self.state.lock().await;
            state
                .endpoints
                .iter()
                .map(|(network, it)| (network.clone(), it.served.clone()))
                .collect()
        };
        for (network, served) in served {
            if is_last {
                self.workers.stop(&served);
            }
            let exported =
                tokio::task::spawn_blocking(move || served.endpoint.export_flows(now(), is_last));
            if let Ok(flows) = exported.await {
                self.folder.keep(&file(&network), flows);
            }
        }
    }
}
