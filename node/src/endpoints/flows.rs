//! Flows and learnt names outlive the daemon: they are written at intervals and at the end, and
//! restored at the start.

use super::lifecycle::Endpoints;
use crate::{clock, state_files::NamesFile, workers::ServedEndpoint};
use meshward_datapath::Now;
use meshward_types::NetworkName;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tracing::{info, warn};

/// The interval at which flows are written. Those that began since the last time are lost in a
/// crash.
const INTERVAL: Duration = Duration::from_secs(30);

/// The interval at which learnt names are written, if they have changed. Those of the time since
/// are lost in a crash: their workloads ask again.
const NAMES_INTERVAL: Duration = Duration::from_secs(1);

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: clock::now(), unix }
}

fn file(network: &NetworkName) -> String {
    format!("flows/{network}")
}

impl Endpoints {
    /// Restores the learnt names and the flows of each network, once its workloads are attached.
    /// Flows that cannot be read are set aside: connections are then taken up by their packets.
    pub fn restore_flows(&self) {
        for (network, served) in self.enforcement.endpoints() {
            let endpoint = &served.endpoint;
            // First: rules about flows may name names.
            let names = self.folder.learnt_names(&network).names(now().unix);
            endpoint.restore_names(clock::now(), &names);
            let flows = self
                .folder
                .read_or_set_aside(&file(&network), |kept| endpoint.import_flows(now(), kept));
            endpoint.note_flows_imported();
            let Some(flows) = flows else { continue };
            info!(%network, flows, "flows taken up again");
            // From now on there may be others, so the file does not have all of them any more.
            self.folder.write_later(&file(&network), endpoint.export_flows(now(), false));
        }
    }

    /// Writes flows down, for ever.
    pub async fn keep_flows(&self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            for (network, served) in self.enforcement.endpoints() {
                self.write_flows(network, served, false).await;
            }
        }
    }

    /// Writes the learnt names down whenever they have changed, for ever.
    pub async fn keep_names(&self) {
        loop {
            tokio::time::sleep(NAMES_INTERVAL).await;
            let begun = Instant::now();
            for (network, served) in self.enforcement.endpoints() {
                self.write_names(&network, &served).await;
            }
            // Whoever has learnt much does not keep the node busy with that.
            tokio::time::sleep(begun.elapsed() * 20).await;
        }
    }

    async fn write_names(&self, network: &NetworkName, served: &Arc<ServedEndpoint>) {
        if !served.endpoint.take_names_changed() {
            return;
        }
        let (folder, own, served) = (self.folder.clone(), network.clone(), served.clone());
        let write = move || {
            let names = NamesFile::new(served.endpoint.learnt_names(), now().unix);
            folder.keep_learnt_names(&own, &names)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            warn!(%network, "the learnt names were not written down: {error:#}");
        }
    }

    /// Writes the learnt names and the flows down for the last time: no packet passes from now on.
    pub async fn stop_and_write_flows(&self) {
        for (network, served) in self.enforcement.endpoints() {
            self.workers.stop(&served);
            self.write_names(&network, &served).await;
            self.write_flows(network, served, true).await;
        }
    }

    async fn write_flows(&self, network: NetworkName, served: Arc<ServedEndpoint>, is_last: bool) {
        let export = move || served.endpoint.export_flows(now(), is_last);
        if let Ok(flows) = tokio::task::spawn_blocking(export).await {
            self.folder.write_later(&file(&network), flows);
        }
    }
}
