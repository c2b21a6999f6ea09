//! Devices: machines with a stock WireGuard, for which this node is the gateway into the mesh. Each
//! is a workload here, and its interface is a session with this node's endpoint.

use super::state::{State, Workload, Workloads, plain_report};
use crate::{
    attachment::{self, Attachment, Origin},
    clock,
    refusal::Refusal,
};
use meshward_api_types::local::State as WorkloadState;
use meshward_control_proto::{DeviceAnswer, DeviceOrder, WorkloadReport};
use meshward_datapath::LocalWorkload;
use meshward_types::PublicKey;
use std::{collections::BTreeSet, path::PathBuf};
use tracing::{info, warn};

impl Workloads {
    /// Adds a device.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn add_device(&self, order: DeviceOrder) -> Result<DeviceAnswer, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::Invalid(error.to_string());
        order.labels.check_unreserved().map_err(|error| invalid(&error))?;
        let network = order.network.clone();
        let (id, addresses) = {
            let _turn = self.turn(&network).await;
            let spec = self.enforcement.network(&network)?;
            let (addresses, reserved) = {
                let mut state = self.state.lock();
                check_new(&state, &order)?;
                self.allocate_reserved(&mut state, &network, &spec.blocks)?
            };
            let id = attachment::new_id();
            let report = WorkloadReport {
                labels: order.labels,
                device: Some(order.public_key),
                ..plain_report(id.clone(), &network, order.name, addresses.clone())
            };
            let (netns, interface) = (PathBuf::new(), String::new());
            let attachment = Attachment {
                measured: true,
                ..Attachment::new(report.clone(), netns, interface, Origin::Device)
            };
            self.open_reserved(attachment, reserved, Attachment::open).await?;
            info!(workload = %id, name = %report.name, %network, "device added");
            self.announce(&report);
            (id, addresses)
        };
        self.folder.flush().await;
        let shown = self.wait_decided(&id).await?;
        if let WorkloadState::Refused(reason) = shown.state {
            self.detach(&id)?;
            return Err(Refusal::Invalid(format!("the coordinator refused the device: {reason}")));
        }
        let served = self.enforcement.endpoint(&network);
        let device_key = served.and_then(|served| served.endpoint.device_key());
        let public_key = device_key
            .ok_or_else(|| Refusal::Failed("the endpoint has no key for devices".into()))?;
        let spec = self.enforcement.network(&network)?;
        let mut prefixes = spec.prefixes;
        prefixes.extend(self.enforcement.view(|view| view.routes(&network)));
        Ok(DeviceAnswer { id, addresses, public_key, prefixes, mtu: spec.mtu })
    }

    /// Has the endpoint serve a device.
    pub(super) async fn serve_device(
        &self,
        attachment: Attachment,
        key: PublicKey,
    ) -> Result<(), Refusal> {
        let WorkloadReport { id, addresses, network, .. } = attachment.report.clone();
        let gone = || Refusal::Failed(format!("the endpoint of {network} does not run"));
        let served = self.enforcement.endpoint(&network).ok_or_else(gone)?;
        if served.endpoint.device_key().is_none() {
            let (folder, of) = (self.folder.clone(), network.clone());
            let secret = tokio::task::spawn_blocking(move || folder.device_key(&of)).await;
            let secret = secret.map_err(|panic| Refusal::Failed(panic.to_string()))?;
            served.endpoint.set_device_key(secret);
        }
        let local = LocalWorkload { id: id.clone(), addresses, prefixes: vec![], vouched: None };
        let mut state = self.state.lock();
        let add = || {
            let last_address = attachment.last_address;
            let index = served.endpoint.add_device(clock::now(), local, key, last_address);
            if attachment.quarantined_until.is_some() {
                served.endpoint.quarantine_locally(index, true);
            }
            index
        };
        let index = self.enforcement.add_workload(&network, &id, &served, add).ok_or_else(gone)?;
        let default_routes = BTreeSet::new();
        let (refused, checks) = (None, vec![]);
        let workload = Workload { attachment, served, index, refused, default_routes, checks };
        state.attached.insert(id, workload);
        Ok(())
    }

    /// Notes the addresses of the devices, so that they are found after a restart.
    pub fn note_device_addresses(&self) {
        let mut state = self.state.lock();
        let served = self.enforcement.endpoints();
        let all = served.iter().flat_map(|(_, served)| served.endpoint.device_addresses());
        for (id, address) in all.collect::<Vec<_>>() {
            let Some(workload) = state.attached.get_mut(&id) else { continue };
            if workload.attachment.last_address == Some(address) {
                continue;
            }
            workload.attachment.last_address = Some(address);
            if let Err(error) = self.keep(&state, &id) {
                warn!(workload = %id, "the device's address was not written down: {error:#}");
            }
        }
    }
}

/// Refuses a device whose key or name another one has.
fn check_new(state: &State, order: &DeviceOrder) -> Result<(), Refusal> {
    let own = state.attached.values().map(|workload| &workload.attachment.report);
    for other in own.filter(|other| other.network == order.network) {
        if other.device == Some(order.public_key) {
            let text = format!("device {} has this key already", other.name);
            return Err(Refusal::Invalid(text));
        }
        if other.device.is_some() && other.name == order.name {
            return Err(Refusal::Invalid(format!("there is a device `{}` already", other.name)));
        }
    }
    Ok(())
}
