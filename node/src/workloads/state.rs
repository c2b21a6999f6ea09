//! The state of the workloads, and what its parts have in common.

use super::{
    denied_attempts::DeniedAttempts, kernel_changes::KernelChanges, source_nat::EgressInterface,
};
use crate::{
    addresses::Allocator,
    attachment::Attachment,
    coordinator_link::CoordinatorLink,
    enforcement::{Applied, Enforcement, RunningEndpoint},
    folder::Folder,
    offloads::Offloads,
    refusal::Refusal,
    workers::{ServedEndpoint, Workers},
};
use anyhow::Result;
use ipnet::IpNet;
use meshward_api_types::local::LocalCheck;
use meshward_control_proto::{FromNode, WorkloadReport};
use meshward_datapath::WorkloadIndex;
use meshward_runtime::member::Membership;
use meshward_types::{
    AcceptFrom, IdentityId, Labels, NetworkName, WorkloadId, WorkloadName, measurement::Measurement,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};
use tokio::sync::{MutexGuard, Notify};

/// The facts on which admission depends, apart from the node.
pub(super) type AdmissionKey = (NetworkName, Labels, Vec<AcceptFrom>, Option<Arc<Measurement>>);

/// The part of the node that has its workloads.
pub struct Workloads {
    pub(super) membership: Membership,
    pub(super) offloads: Offloads,
    pub(super) folder: Folder,
    pub(super) workers: Arc<Workers>,
    pub(super) enforcement: Arc<Enforcement>,
    pub(super) link: Arc<CoordinatorLink>,
    pub(super) state: Mutex<State>,
    /// The turn to attach: names of interfaces and namespaces are looked up before they are taken,
    /// so one attach comes after the other. Nothing but attaching waits for it.
    pub(super) attaching: tokio::sync::Mutex<()>,
    /// Routes and rules that are changed in the kernel.
    pub(super) kernel_changes: KernelChanges,
    /// Notified when there is a container to be measured.
    pub to_measure: Notify,
    /// The numbers of probes of health checks so far, by their kind and outcome.
    pub(super) probes: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) attached: BTreeMap<WorkloadId, Workload>,
    /// Workloads on disk whose networks have no endpoint yet; they are restored once they have.
    pub(super) deferred: Vec<Attachment>,
    pub(super) allocators: HashMap<NetworkName, Allocator>,
    /// Addresses that are given out for workloads that are not there yet.
    pub(super) reserved: HashSet<(NetworkName, IpAddr)>,
    /// The prefixes behind gateways to which the workloads of each network have routes.
    pub(super) routes: HashMap<NetworkName, BTreeSet<IpNet>>,
    /// The interfaces of egress gateways, from which packets leave with addresses of this host.
    pub(super) egress_interfaces: BTreeMap<WorkloadId, EgressInterface>,
    pub(super) attempts: DeniedAttempts,
    /// The identities under which workloads like these were admitted.
    pub(super) admitted: HashMap<AdmissionKey, IdentityId>,
}

pub(super) struct Workload {
    pub(super) attachment: Attachment,
    pub(super) served: Arc<ServedEndpoint>,
    pub(super) index: WorkloadIndex,
    /// The coordinator's reason for refusing the report itself.
    pub(super) refused: Option<String>,
    /// The default routes that its namespace was given, to egress gateways.
    pub(super) default_routes: BTreeSet<IpNet>,
    /// The health checks that services want of it.
    pub(super) checks: Vec<LocalCheck>,
}

impl Workloads {
    /// Creates the state without workloads.
    pub fn new(
        membership: Membership,
        offloads: Offloads,
        folder: Folder,
        workers: Arc<Workers>,
        (enforcement, link): (Arc<Enforcement>, Arc<CoordinatorLink>),
    ) -> Self {
        Self {
            membership,
            offloads,
            folder,
            workers,
            enforcement,
            link,
            state: Mutex::default(),
            attaching: tokio::sync::Mutex::default(),
            kernel_changes: KernelChanges::start(),
            to_measure: Notify::new(),
            probes: Mutex::default(),
        }
    }

    /// Adapts the workloads to an update that enforcement has applied.
    pub fn apply_update(&self, applied: &Applied) {
        for network in &applied.networks {
            self.spread_routes(network);
        }
        self.release_unadmitted();
        self.note_decisions(&applied.decisions);
        self.enforcement.notify_changed();
    }

    /// Drops the workloads of an endpoint whose network is gone.
    pub fn drop_endpoint(&self, network: &NetworkName, running: &RunningEndpoint) {
        let mut state = self.state.lock();
        let of_it = |workload: &&Workload| Arc::ptr_eq(&workload.served, &running.served);
        let own = state.attached.values().filter(of_it);
        let own: Vec<_> = own.map(|workload| workload.attachment.report.id.clone()).collect();
        for id in own {
            self.drop_workload(&mut state, &id);
        }
        state.allocators.remove(network);
        state.routes.remove(network);
    }

    /// Returns what the coordinator is told of the workloads when a session begins: of those that
    /// are measured.
    pub fn reports(&self) -> Vec<WorkloadReport> {
        let state = self.state.lock();
        let measured = state.attached.values().filter(|workload| workload.attachment.measured);
        measured.map(|workload| workload.attachment.report.clone()).collect()
    }

    /// Returns how many workloads are attached.
    pub fn count(&self) -> usize {
        self.state.lock().attached.len()
    }

    /// The turn to attach to a network. Right after the start of the daemon, or of the network, the
    /// coordinator's word and the endpoint are waited for.
    pub(super) async fn turn(&self, network: &NetworkName) -> MutexGuard<'_, ()> {
        self.enforcement.wait_served(network).await;
        self.attaching.lock().await
    }

    /// Reports that a workload has started or changed, or vouches for it if there is no session.
    pub(super) fn announce(&self, report: &WorkloadReport) {
        if !self.link.send(FromNode::Started(report.clone().fitted())) {
            self.vouch_for_undecided(Some(&report.id));
        }
    }

    /// Keeps a new workload on disk, or takes it out again.
    pub(super) fn keep_or_drop(&self, state: &mut State, id: &WorkloadId) -> Result<(), Refusal> {
        if let Err(failure) = self.keep(state, id) {
            self.drop_workload(state, id);
            return Err(Refusal::Failed(format!("nothing was attached: {failure:#}")));
        }
        Ok(())
    }

    /// Has a workload's record written, in the order of changes.
    pub(super) fn keep(&self, state: &State, id: &WorkloadId) -> Result<()> {
        match state.attached.get(id) {
            Some(workload) => self.folder.keep_workload(id, &workload.attachment),
            None => Ok(()),
        }
    }
}

/// An id as a name: they are of the same form.
pub(super) fn name_of(id: &WorkloadId) -> WorkloadName {
    id.as_str().parse().expect("a workload id is a name")
}

/// The report of a workload of which nothing is known but these.
pub(crate) fn plain_report(
    id: WorkloadId,
    network: &NetworkName,
    name: WorkloadName,
    addresses: Vec<IpAddr>,
) -> WorkloadReport {
    WorkloadReport {
        prefixes: vec![],
        device: None,
        id,
        network: network.clone(),
        name,
        labels: Labels::default(),
        addresses,
        accepts: vec![],
        measurement: None,
        signatures: vec![],
        objection: None,
        unhealthy: vec![],
    }
}

pub(super) fn unknown(id: &WorkloadId) -> Refusal {
    Refusal::Missing(format!(
        "there is no workload `{id}` on this node; `meshctl attached` shows them"
    ))
}

#[cfg(test)]
impl Workloads {
    /// Holds the turn to attach.
    pub(crate) async fn hold_turn(&self) -> MutexGuard<'_, ()> {
        self.attaching.lock().await
    }
}
