//! The interface of a workload: made without a lock, then served.

use super::{
    reservations::Reserved,
    state::{State, Workload, Workloads},
};
use crate::{
    attachment::{self, Attachment, MakeInterface, Origin},
    refusal::Refusal,
    sys::Tun,
    workers::ServedEndpoint,
};
use ipnet::IpNet;
use meshward_datapath::LocalWorkload;
use meshward_netns::{Error, Netns, NetnsId};
use meshward_types::{NetworkName, WorkloadId};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::info;

/// An interface that is made, and what it was made for.
struct Opened {
    served: Arc<ServedEndpoint>,
    tun: Tun,
    /// The prefixes behind gateways to which it was given routes.
    routes: BTreeSet<IpNet>,
}

impl Workloads {
    /// Opens a workload for the first time, whose addresses were reserved, and keeps it.
    pub(super) async fn open_reserved(
        &self,
        attachment: Attachment,
        reserved: Reserved,
        make: MakeInterface,
    ) -> Result<(), Refusal> {
        let id = attachment.report.id.clone();
        let opened = self.open(attachment, make).await;
        let mut state = self.state.lock();
        state.reserved.retain(|address| !reserved.contains(address));
        opened?;
        self.keep_or_drop(&mut state, &id)
    }

    /// Makes the interface of a workload by `make`, and has the workload served. No lock is held
    /// while the kernel works.
    pub(super) async fn open(
        &self,
        attachment: Attachment,
        make: MakeInterface,
    ) -> Result<(), Refusal> {
        if let Some(key) = attachment.report.device {
            return self.serve_device(attachment, key).await;
        }
        let network = attachment.report.network.clone();
        let served = self.enforcement.endpoint(&network).ok_or_else(|| not_running(&network))?;
        let mut spec = self
            .enforcement
            .view(|view| view.network(&network).cloned())
            .ok_or_else(|| not_running(&network))?;
        let routes = self.state.lock().routes.get(&network).cloned().unwrap_or_default();
        if attachment.is_egress_gateway() {
            // Nothing leaves untranslated, not even the first packet.
            self.translate_sources(&attachment, &spec.prefixes).await?;
        } else {
            // The workload needs routes to what is behind gateways, too.
            let others = routes.iter().filter(|route| !attachment.report.prefixes.contains(route));
            spec.prefixes.extend(others.copied());
        }
        let (opening, offloads) = (attachment.clone(), self.offloads);
        let made = tokio::task::spawn_blocking(move || make(&opening, &spec, offloads)).await;
        let made = made.map_err(|panic| Refusal::Failed(panic.to_string()));
        let made = made.and_then(|made| made.map_err(|error| Refusal::Failed(error.to_string())));
        let tun = made.inspect_err(|_| {
            self.stop_translating(&mut self.state.lock(), &attachment.report.id);
        })?;
        let id = attachment.report.id.clone();
        self.commit(attachment, Opened { served, tun, routes })
            .inspect_err(|_| self.stop_translating(&mut self.state.lock(), &id))
    }

    /// Has a workload served whose interface is made, if its endpoint is still there.
    fn commit(&self, attachment: Attachment, opened: Opened) -> Result<(), Refusal> {
        let Opened { served, tun, routes } = opened;
        let report = &attachment.report;
        let (id, network) = (report.id.clone(), report.network.clone());
        let local = LocalWorkload {
            id: id.clone(),
            addresses: report.addresses.clone(),
            prefixes: report.prefixes.clone(),
            vouched: None,
        };
        let mut state = self.state.lock();
        let mut tun = Some(tun);
        let added = self.enforcement.add_workload(&network, &id, &served, || {
            let tun = tun.take().expect("it is added once");
            let index = self.workers.attach(&served, local, tun);
            if attachment.quarantined_until.is_some() || attachment.admitted_as.is_some() {
                served.endpoint.quarantine_locally(index, true);
            }
            index
        });
        let Some(index) = added else {
            tun.into_iter().for_each(attachment::close);
            return Err(not_running(&network));
        };
        let now = state.routes.get(&network).cloned().unwrap_or_default();
        if now != routes && attachment.is_in_namespace() {
            self.change_routes(vec![attachment.clone()], &routes, &now);
        }
        let default_routes = BTreeSet::new();
        let (refused, checks) = (None, vec![]);
        let workload = Workload { attachment, served, index, refused, default_routes, checks };
        state.attached.insert(id, workload);
        self.spread_default_routes(&mut state, &network);
        Ok(())
    }

    /// Removes a workload; returns `true` if it was attached. Its interface is deleted soon, in the
    /// background.
    pub(super) fn drop_workload(&self, state: &mut State, id: &WorkloadId) -> bool {
        let Some(workload) = state.attached.remove(id) else { return false };
        let Workload { attachment, served, index, .. } = workload;
        self.enforcement.forget_workload(&attachment.report.network, id);
        let tun = self.workers.detach(&served, index);
        if attachment.origin == Origin::Route {
            self.forget_rules(attachment, tun);
            self.stop_translating(state, id);
        } else if let Some(tun) = tun {
            attachment::close(tun);
        }
        self.folder.forget_workload(id);
        self.enforcement.notify_changed();
        true
    }

    /// Returns `true` if the interface of a workload is in its namespace, and is the one that this
    /// daemon holds.
    pub(super) async fn has_interface(&self, id: &WorkloadId, attachment: &Attachment) -> bool {
        let name = self.interface_name(id);
        let is_held = name.as_deref() == Some(attachment.interface.as_str());
        let attachment = attachment.clone();
        is_held
            && tokio::task::spawn_blocking(move || attachment.has_interface())
                .await
                .unwrap_or(false)
    }

    /// Returns the name of a workload's interface, wherever it is.
    pub(super) fn interface_name(&self, id: &WorkloadId) -> Option<String> {
        let (served, index) = {
            let state = self.state.lock();
            let workload = state.attached.get(id)?;
            (workload.served.clone(), workload.index)
        };
        served.interface_name(index)
    }

    /// Returns the workload of a network in a namespace whose interface somebody has deleted.
    pub(super) async fn without_interface(
        &self,
        network: &NetworkName,
        netns: NetnsId,
    ) -> Option<WorkloadId> {
        let is_in = |attachment: &Attachment| {
            attachment.netns_id == Some(netns)
                && attachment.report.network == *network
                && !matches!(attachment.origin, Origin::Route | Origin::Device)
        };
        let (there, attachment) = self.find(is_in)?;
        (!self.has_interface(&there.id, &attachment).await).then_some(there.id)
    }

    /// Detaches a workload whose interface is gone; somebody else may have done that already.
    pub(super) fn detach_lost(&self, id: &WorkloadId) -> Result<(), Refusal> {
        info!(workload = %id, "its interface is gone");
        match self.detach(id) {
            Ok(()) | Err(Refusal::Missing(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }
}

fn not_running(network: &NetworkName) -> Refusal {
    Refusal::Failed(format!("the endpoint of {network} does not run"))
}

/// A namespace that is to be attached.
pub(super) struct InspectedNetns {
    /// The namespace's identity.
    pub(super) id: NetnsId,
    /// A name that no interface there has.
    pub(super) interface: String,
}

/// Opens a namespace and looks for a free name for an interface there.
pub(super) async fn inspect_netns(path: PathBuf) -> Result<InspectedNetns, Refusal> {
    let looked = tokio::task::spawn_blocking(move || {
        let netns = Netns::open(&path)?;
        let id = netns.id().map_err(|source| Error::Open { path, source })?;
        Ok(InspectedNetns { id, interface: attachment::free_interface(&netns)? })
    });
    let looked = looked.await.map_err(|panic| Refusal::Failed(panic.to_string()))?;
    looked.map_err(|error: Error| Refusal::Invalid(error.to_string()))
}

/// Refuses a namespace that is attached to a network already. `lost`: a workload that does not
/// count, for its interface is gone.
pub(super) fn check_unattached(
    state: &State,
    network: &NetworkName,
    netns: NetnsId,
    path: &Path,
    lost: Option<&WorkloadId>,
) -> Result<(), Refusal> {
    let same = |other: &Workload| {
        let Attachment { report, netns_id, .. } = &other.attachment;
        *netns_id == Some(netns) && report.network == *network && Some(&report.id) != lost
    };
    match state.attached.values().any(same) {
        true => {
            Err(Refusal::Invalid(format!("{} is attached to {network} already", path.display())))
        }
        false => Ok(()),
    }
}

/// Returns `true` if a namespace is that of the daemon, which is the host's.
pub(super) fn is_of_host(netns: NetnsId) -> bool {
    NetnsId::of_path(Path::new("/proc/self/ns/net")).is_ok_and(|own| own == netns)
}
