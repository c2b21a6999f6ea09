//! Egress gateways of this node: the translation of source addresses begins before and ends after
//! the interface of each.

use super::{
    source_nat::{self, EgressInterface},
    state::{State, Workloads},
};
use crate::{attachment::Attachment, refusal::Refusal};
use ipnet::IpNet;
use meshward_types::WorkloadId;
use tokio::sync::oneshot;
use tracing::{debug, warn};

impl Workloads {
    /// Has the addresses of packets that leave by an egress gateway translated, before there are
    /// any.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the kernel or the host cannot do that.
    pub(super) async fn translate_sources(
        &self,
        attachment: &Attachment,
        network: &[IpNet],
    ) -> Result<(), Refusal> {
        let (done, is_done) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let name = attachment.interface.clone();
            let interface = EgressInterface { name, network: network.to_vec() };
            state.egress_interfaces.insert(attachment.report.id.clone(), interface);
            let rules = source_nat::rules(state.egress_interfaces.values());
            self.kernel_changes.enqueue(move || {
                let _ = done.send(source_nat::set(&rules));
            });
        }
        let set = is_done.await.map_err(|gone| Refusal::Failed(gone.to_string()))?;
        set.map_err(|error| {
            self.stop_translating(&mut self.state.lock(), &attachment.report.id);
            Refusal::Invalid(error.to_string())
        })
    }

    /// Removes the rules for a workload that is gone, soon, if it was an egress gateway.
    pub(super) fn stop_translating(&self, state: &mut State, id: &WorkloadId) {
        if state.egress_interfaces.remove(id).is_none() {
            return;
        }
        let rules = source_nat::rules(state.egress_interfaces.values());
        self.kernel_changes.enqueue(move || {
            if let Err(error) = source_nat::set(&rules) {
                warn!("rules that translate addresses stay behind: {error}");
            }
        });
    }

    /// Removes what a daemon that was killed may have left behind, soon, if there is no egress
    /// gateway any more.
    pub fn forget_old_translation(&self) {
        if !self.state.lock().egress_interfaces.is_empty() {
            return;
        }
        self.kernel_changes.enqueue(|| {
            if let Err(error) = source_nat::set(&source_nat::removal()) {
                debug!("no rules that translate addresses are removed: {error}");
            }
        });
    }
}
