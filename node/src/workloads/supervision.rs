//! The lifecycle of workloads: restoring them after a restart, detaching those whose namespace or
//! owner is gone.

use super::state::Workloads;
use crate::{
    attachment::{self, Attachment, Origin},
    refusal::Refusal,
};
use std::time::Duration;
use tracing::{error, info, warn};

/// The interval at which namespaces and owners are checked.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl Workloads {
    /// Restores a workload that was attached before the daemon's start, if it still lives; defers
    /// it if its network has no endpoint.
    pub(crate) async fn restore(&self, attachment: Attachment) {
        let _turn = self.attaching.lock().await;
        let (id, network) = (attachment.report.id.clone(), attachment.report.network.clone());
        let looked_at = attachment.clone();
        let lives = tokio::task::spawn_blocking(move || looked_at.outlived_daemon()).await;
        if !lives.unwrap_or(false) {
            info!(workload = %id, %network, "its namespace, interface or owner is gone");
            self.folder.forget_workload(&id);
            let _ = tokio::task::spawn_blocking(move || attachment::close_left_behind(&attachment))
                .await;
            return;
        }
        {
            let mut state = self.state.lock();
            if self.enforcement.endpoint(&network).is_none() {
                warn!(workload = %id, %network, "its network is not known yet: it is closed until \
                    it is");
                state.deferred.push(attachment);
                return;
            }
        }
        let report = attachment.report.clone();
        match self.open(attachment, Attachment::open).await {
            Ok(()) => {
                info!(workload = %id, %network, "taken up again");
                self.note_known_decision(&mut self.state.lock(), &id);
                self.refresh_default_routes(&id);
                // A session that has begun already was not told of it.
                if self.link.has_session() {
                    self.announce(&report);
                }
            }
            Err(refusal) => error!(workload = %id, %network, "cannot be taken up again: {refusal}"),
        }
    }

    /// Restores the deferred workloads whose networks have endpoints by now.
    pub async fn restore_deferred(&self) {
        let waiting: Vec<Attachment> = {
            let mut state = self.state.lock();
            let has_endpoint =
                |own: &mut Attachment| self.enforcement.endpoint(&own.report.network).is_some();
            state.deferred.extract_if(.., has_endpoint).collect()
        };
        for attachment in waiting {
            self.restore(attachment).await;
        }
    }

    /// Detaches workloads whose namespace or owner is gone, for ever.
    pub async fn look_after(&self) {
        loop {
            tokio::time::sleep(LOOK_AFTER).await;
            self.note_device_addresses();
            let all = self.find_all(Attachment::is_in_namespace);
            let checked = tokio::task::spawn_blocking(move || {
                let all = all.into_iter().map(|(_, attachment)| attachment);
                all.filter(|attachment| !attachment.lives()).collect::<Vec<_>>()
            });
            for gone in checked.await.unwrap_or_default() {
                let Attachment { report, origin, .. } = &gone;
                info!(workload = %report.id, "its namespace or owner is gone");
                if matches!(origin, Origin::Docker { .. }) {
                    // They stay those of Docker's endpoint, until Docker deletes that.
                    self.reserve_all(&report.network, &report.addresses);
                }
                match self.detach(&report.id) {
                    // Whoever made the namespace may have detached it meanwhile.
                    Ok(()) | Err(Refusal::Missing(_)) => {}
                    Err(refusal) => warn!(workload = %report.id, "cannot detach: {refusal}"),
                }
            }
        }
    }
}
