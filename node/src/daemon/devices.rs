//! Devices: machines with a stock WireGuard, for which this node is the gateway into the mesh. Each
//! is a workload here, and its interface is a session with this node's endpoint.

use super::{
    Node, Refusal, State, Workload,
    workloads::{report, served},
};
use crate::{
    attachment::{self, Attachment, Origin},
    clock,
};
use meshward_api_types::local::State as WorkloadState;
use meshward_control_proto::{DeviceAnswer, DeviceOrder, WorkloadReport};
use meshward_datapath::LocalWorkload;
use meshward_types::PublicKey;
use std::path::PathBuf;
use tracing::{info, warn};

impl Node {
    /// Takes a device in.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn add_device(&self, order: DeviceOrder) -> Result<DeviceAnswer, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::Invalid(error.to_string());
        order.labels.check_unreserved().map_err(|error| invalid(&error))?;
        let (id, addresses) = {
            let _turn = self.turn(&order.network).await;
            let mut state = self.state.lock().await;
            served(&state, &order.network)?;
            let own = state.workloads.values().map(|workload| &workload.attachment.report);
            for other in own.filter(|other| other.network == order.network) {
                if other.device == Some(order.public_key) {
                    return Err(Refusal::Invalid(format!(
                        "device {} has this key already",
                        other.name
                    )));
                }
                if other.device.is_some() && other.name == order.name {
                    return Err(Refusal::Invalid(format!(
                        "there is a device `{}` already",
                        other.name
                    )));
                }
            }
            let (addresses, reserved) = self.allocate_reserved(&mut state, &order.network)?;
            drop(state);
            let id = attachment::new_id();
            let report = WorkloadReport {
                labels: order.labels,
                device: Some(order.public_key),
                ..report(id.clone(), &order.network, order.name, addresses.clone())
            };
            let attachment = Attachment {
                report: report.clone(),
                netns: PathBuf::new(),
                netns_id: None,
                owner: None,
                interface: String::new(),
                seen_at: None,
                held_until: None,
                origin: Origin::Device,
                measured: true,
                let_in_as: None,
            };
            self.open_reserved(attachment, reserved).await?;
            info!(workload = %id, name = %report.name, network = %report.network, "device taken in");
            self.announce(&mut *self.state.lock().await, &report);
            (id, addresses)
        };
        self.folder.settled().await;
        let shown = self.wait_admitted(&id).await?;
        if let WorkloadState::Refused(reason) = shown.state {
            self.detach(&id).await?;
            return Err(Refusal::Invalid(format!("the coordinator refused the device: {reason}")));
        }
        let state = self.state.lock().await;
        let running = state.endpoints.get(&order.network);
        let device_key = running.and_then(|running| running.served.endpoint.device_key());
        let public_key = device_key
            .ok_or_else(|| Refusal::Failed("the endpoint has no key for devices".into()))?;
        let spec = served(&state, &order.network)?;
        let mut prefixes = spec.prefixes.clone();
        prefixes.extend(state.view.routes(&order.network));
        Ok(DeviceAnswer { id, addresses, public_key, prefixes, mtu: spec.mtu })
    }

    /// Lets the endpoint of a device serve it.
    pub(super) fn serve_device(
        &self,
        state: &mut State,
        attachment: Attachment,
        key: PublicKey,
    ) -> Result<(), Refusal> {
        let network = attachment.report.network.clone();
        let gone = || Refusal::Failed(format!("the endpoint of {network} does not run"));
        let served = state.endpoints.get(&network).ok_or_else(gone)?.served.clone();
        if served.endpoint.device_key().is_none() {
            served.endpoint.set_device_key(self.folder.device_key(&network));
        }
        let WorkloadReport { id, addresses, .. } = attachment.report.clone();
        let local = LocalWorkload { id: id.clone(), addresses, prefixes: vec![], vouched: None };
        let index = served.endpoint.add_device(clock::now(), local, key, attachment.seen_at);
        if attachment.held_until.is_some() {
            served.endpoint.quarantine_locally(index, true);
        }
        state.workloads.insert(id, Workload { attachment, index, vouched: None, refused: None });
        Ok(())
    }

    /// Notes where the devices are, so that they are found after a restart.
    pub(super) async fn note_devices(&self) {
        let mut state = self.state.lock().await;
        let all =
            state.endpoints.values().flat_map(|running| running.served.endpoint.device_addresses());
        for (id, address) in all.collect::<Vec<_>>() {
            let Some(workload) = state.workloads.get_mut(&id) else { continue };
            if workload.attachment.seen_at == Some(address) {
                continue;
            }
            workload.attachment.seen_at = Some(address);
            if let Err(error) = self.keep_workload(&state, &id) {
                warn!(workload = %id, "where the device is was not written down: {error:#}");
            }
        }
    }
}
