//! Containers: workloads whose namespaces a container runtime makes. They are placed first and
//! measured then; before that, nobody is told of them and nothing passes.

use super::{
    Node, Refusal, State,
    workloads::{check_unattached, name_of, report, served, used_addresses},
};
use crate::{
    attachment::{self, Attachment, Make, Origin},
    workers::ServedEndpoint,
};
use ipnet::IpNet;
use meshward_api_types::local::LocalWorkload as Shown;
use meshward_control_proto::view::NetworkSpec;
use meshward_datapath::WorkloadIndex;
use meshward_types::{
    AcceptFrom, Labels, NetworkName, WorkloadId, WorkloadName,
    measurement::{Image, ImageSignature, Measurement, Sha256},
};
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// For how long Docker may take to move an interface that it was given.
const MOVING: Duration = Duration::from_secs(30);

/// What is to be placed on the mesh.
pub struct Place {
    pub network: NetworkName,
    /// Its addresses, which were reserved; if there are none, they are found.
    pub addresses: Vec<IpAddr>,
    pub netns: PathBuf,
    /// What the interface is called.
    pub interface: String,
    pub origin: Origin,
}

/// What is on the mesh now.
pub struct Placed {
    pub id: WorkloadId,
    pub addresses: Vec<IpAddr>,
    pub network: NetworkSpec,
}

/// What was found out about a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub name: Option<WorkloadName>,
    pub labels: Labels,
    pub accepts: Vec<AcceptFrom>,
    pub measurement: Option<Arc<Measurement>>,
    pub signatures: Vec<(Sha256, Vec<ImageSignature>)>,
    /// What could not be made sense of.
    pub objection: Option<String>,
    /// The keys of labels that were not taken.
    pub left_out: Vec<String>,
}

/// A workload, as far as it matters for measuring it.
pub struct Container {
    pub id: WorkloadId,
    pub origin: Origin,
    /// Whether its network wants to know the signatures of its images.
    pub judged: bool,
    /// Whether it was measured already.
    pub measured: bool,
    /// As what it was measured.
    pub measurement: Option<Arc<Measurement>>,
}

/// The most labels that were left out that the log names.
const NAMED: usize = 16;

impl Node {
    /// A network that the node serves. Right after the daemon's start, the coordinator's word is
    /// waited for.
    ///
    /// # Errors
    /// [`Refusal::Missing`] or [`Refusal::Early`].
    pub async fn network(&self, name: &NetworkName) -> Result<NetworkSpec, Refusal> {
        self.wait_told(|state| state.view.network(name).is_some()).await;
        served(&*self.state.lock().await, name).cloned()
    }

    /// All networks that the node serves. Right after the daemon's start, the coordinator's word is
    /// waited for if none is known.
    pub async fn networks(&self) -> Vec<(NetworkName, NetworkSpec)> {
        self.wait_told(|state| state.view.networks().next().is_some()).await;
        let state = self.state.lock().await;
        state.view.networks().map(|(name, spec)| (name.clone(), spec.clone())).collect()
    }

    /// Reserves an address of a network in the node's block: the one that is wanted, or one of the
    /// same family as `like`.
    ///
    /// # Errors
    /// [`Refusal`] if there is none, or the wanted one is not to be had.
    pub async fn reserve(
        &self,
        network: &NetworkName,
        ipv6: bool,
        wanted: Option<IpAddr>,
    ) -> Result<IpAddr, Refusal> {
        self.wait_served(network).await;
        let mut state = self.state.lock().await;
        let blocks = served(&state, network)?.blocks.clone();
        let blocks: Vec<_> =
            blocks.into_iter().filter(|block| block.addr().is_ipv6() == ipv6).collect();
        let address = match wanted {
            None => self.allocate(&mut state, network, &blocks)?.pop().ok_or_else(|| {
                let family = if ipv6 { "IPv6" } else { "IPv4" };
                Refusal::Invalid(format!("network {network} has no {family} prefix"))
            })?,
            Some(address) => {
                if !blocks.iter().any(|block| block.contains(&address)) {
                    let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
                    return Err(Refusal::Invalid(format!(
                        "{address} is not in this node's block of network {network}, {}; ask for an address in there, or for none",
                        blocks.join(", ")
                    )));
                }
                if used_addresses(&state, network, &self.membership.name).contains(&address) {
                    return Err(Refusal::Invalid(format!(
                        "{address} is in use; ask for another, or for none"
                    )));
                }
                address
            }
        };
        state.reserved.insert((network.clone(), address));
        Ok(address)
    }

    /// Keeps addresses of a workload that is about to be detached.
    pub async fn hold_addresses(&self, network: &NetworkName, addresses: &[IpAddr]) {
        let held = addresses.iter().map(|address| (network.clone(), *address));
        self.state.lock().await.reserved.extend(held);
    }

    /// Gives a reserved address back.
    pub async fn free(&self, network: &NetworkName, address: IpAddr) {
        self.state.lock().await.reserved.remove(&(network.clone(), address));
    }

    /// Reserves addresses again that were given out before the daemon's restart.
    pub async fn keep_reserved(&self, addresses: impl IntoIterator<Item = (NetworkName, IpAddr)>) {
        let mut state = self.state.lock().await;
        let attached: Vec<_> = state
            .workloads
            .values()
            .flat_map(|workload| {
                let report = &workload.attachment.report;
                report.addresses.iter().map(|address| (report.network.clone(), *address))
            })
            .collect();
        state.reserved.extend(addresses.into_iter().filter(|address| !attached.contains(address)));
    }

    /// Makes a container's interface in its namespace, closed.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn place(&self, wanted: Place) -> Result<Placed, Refusal> {
        let netns = attachment::netns_of(&wanted.netns);
        let (_, id) = netns.map_err(|error| Refusal::Invalid(error.to_string()))?;
        self.place_by(wanted, Some(id), Attachment::open).await
    }

    /// Makes a container's interface where Docker takes it from, closed. There may be no namespace
    /// yet.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn place_outside(self: &Arc<Self>, wanted: Place) -> Result<Placed, Refusal> {
        let before = wanted.interface.clone();
        let placed = self.place_by(wanted, None, Attachment::open_outside).await?;
        let (node, id) = (self.clone(), placed.id.clone());
        tokio::spawn(async move { node.follow_move(&id, &before).await });
        Ok(placed)
    }

    async fn place_by(
        &self,
        wanted: Place,
        netns_id: Option<(u64, u64)>,
        make: Make,
    ) -> Result<Placed, Refusal> {
        let Place { network, addresses, netns, interface, origin } = wanted;
        let _turn = self.turn(&network).await;
        if let Some(id) = netns_id
            && let Some(empty) = self.empty_in(&network, id).await
        {
            self.let_go(&empty).await?;
        }
        let (spec, addresses, reserved) = {
            let mut state = self.state.lock().await;
            let spec = served(&state, &network)?.clone();
            if let Some(id) = netns_id {
                check_unattached(&state, &network, id, &netns, None)?;
            }
            check_unused(&state, &network, &addresses)?;
            match addresses.is_empty() {
                true => {
                    let (addresses, reserved) = self.allocate_reserved(&mut state, &network)?;
                    (spec, addresses, reserved)
                }
                false => (spec, addresses, vec![]),
            }
        };
        let id = attachment::new_id();
        let report = report(id.clone(), &network, name_of(&id), addresses.clone());
        let attachment = Attachment {
            report,
            netns,
            netns_id,
            owner: None,
            interface,
            seen_at: None,
            held_until: None,
            origin,
            measured: false,
            let_in_as: None,
        };
        let opened = self.open_by(attachment, make).await;
        {
            let mut state = self.state.lock().await;
            state.reserved.retain(|held| !reserved.contains(held));
            opened?;
            self.keep_or_drop(&mut state, &id)?;
            for address in &addresses {
                state.reserved.remove(&(network.clone(), *address));
            }
        }
        self.folder.settled().await;
        info!(workload = %id, %network, "a container is placed, and closed until it is measured");
        self.to_measure.notify_one();
        Ok(Placed { id, addresses, network: spec })
    }

    /// Waits until Docker has moved an interface into the container, and notes what it is called
    /// there.
    async fn follow_move(&self, id: &WorkloadId, before: &str) {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(2);
        while begun.elapsed() < MOVING {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
            let mut state = self.state.lock().await;
            let Some((served, index)) = served_at(&state, id) else { return };
            let name = self.workers.interface_name(&served, index).filter(|name| name != before);
            let (Some(name), Some(workload)) = (name, state.workloads.get_mut(id)) else {
                continue;
            };
            let Ok((_, netns_id)) = attachment::netns_of(&workload.attachment.netns) else {
                continue;
            };
            workload.attachment.interface = name;
            workload.attachment.netns_id = Some(netns_id);
            let attachment = workload.attachment.clone();
            let routes: Vec<IpNet> =
                state.view.routes(&attachment.report.network).into_iter().collect();
            if let Err(error) = self.keep_workload(&state, id) {
                warn!(workload = %id, "the interface's name was not written down: {error:#}");
            }
            drop(state);
            let finished = tokio::task::spawn_blocking(move || attachment.finish(&routes)).await;
            if let Ok(Err(error)) = finished {
                warn!(workload = %id, "the interface was not configured to the end: {error}");
            }
            return;
        }
        warn!(workload = %id, "the interface was not taken into a container, and goes");
        let _ = self.detach(id).await;
    }

    /// The workloads that container runtimes run.
    pub async fn containers(&self) -> Vec<Container> {
        let state = self.state.lock().await;
        let of_runtimes = |attachment: &&Attachment| {
            matches!(attachment.origin, Origin::Docker { .. } | Origin::Cni { .. })
        };
        let all = state.workloads.values().map(|workload| &workload.attachment).filter(of_runtimes);
        all.map(|attachment| {
            let Attachment { report, origin, measured, .. } = attachment;
            Container {
                id: report.id.clone(),
                origin: origin.clone(),
                judged: state.view.network(&report.network).is_none_or(|spec| spec.admission),
                measured: *measured,
                measurement: report.measurement.clone(),
            }
        })
        .collect()
    }

    /// The images of workloads that are refused: signatures may have been made since.
    pub async fn refused_images(&self) -> Vec<(WorkloadId, Vec<Image>)> {
        let state = self.state.lock().await;
        let refused = state.workloads.values().map(|workload| &workload.attachment.report);
        let refused =
            refused.filter(|report| state.view.refusal(&report.network, &report.id).is_some());
        refused
            .filter_map(|report| {
                Some((
                    report.id.clone(),
                    report.measurement.as_ref()?.all_images().cloned().collect(),
                ))
            })
            .collect()
    }

    /// Takes what was found out about a container: from now on the coordinator knows of it.
    pub async fn settle(&self, id: &WorkloadId, found: Found) {
        let mut state = self.state.lock().await;
        let Some(workload) = state.workloads.get_mut(id) else { return };
        let attachment = &mut workload.attachment;
        let before = (attachment.measured, attachment.report.clone());
        let Found { name, labels, accepts, measurement, mut signatures, objection, left_out } =
            found;
        let report = &mut attachment.report;
        // Those of images that it still runs hold, whether or not they were looked for again.
        let runs = |digest: &Sha256| {
            measurement.iter().any(|own| own.all_images().any(|image| image.digest == *digest))
        };
        let mut kept = std::mem::take(&mut report.signatures);
        kept.retain(|(digest, _)| {
            runs(digest) && !signatures.iter().any(|(other, _)| other == digest)
        });
        signatures.extend(kept);
        if let Some(name) = name {
            report.name = name;
        }
        (report.labels, report.accepts, report.measurement) = (labels, accepts, measurement);
        (report.signatures, report.objection) = (signatures, objection);
        attachment.measured = true;
        let report = report.clone();
        if before.0 && before.1 == report {
            return;
        }
        self.hold_unjudged(&mut state, id, before.1.measurement.filter(|_| before.0));
        if let Err(error) = self.keep_workload(&state, id) {
            warn!(workload = %id, "the measurement was not written down: {error:#}");
        }
        info!(workload = %id, name = %report.name, network = %report.network, labels = %report.labels, "measured");
        if !left_out.is_empty() {
            let (named, count) = (&left_out[..left_out.len().min(NAMED)], left_out.len());
            info!(workload = %id, keys = ?named, "{count} of its labels were left out: they cannot be labels here, or are too many");
        }
        self.announce(&mut state, &report);
        drop(state);
        self.admission.notify_waiters();
    }

    /// Adds signatures to what is known of a container.
    pub async fn add_signatures(
        &self,
        id: &WorkloadId,
        signatures: Vec<(Sha256, Vec<ImageSignature>)>,
    ) {
        let mut state = self.state.lock().await;
        let Some(workload) = state.workloads.get_mut(id) else { return };
        let report = &mut workload.attachment.report;
        if report.signatures == signatures {
            return;
        }
        report.signatures = signatures;
        let report = report.clone();
        self.announce(&mut state, &report);
    }

    /// The workload of a container runtime's endpoint, and how it is attached.
    pub async fn find(&self, is: impl Fn(&Attachment) -> bool) -> Option<(Shown, Attachment)> {
        let state = self.state.lock().await;
        let found = state.workloads.values().find(|workload| is(&workload.attachment))?;
        Some((super::show(&state, found), found.attachment.clone()))
    }

    /// All containers of a runtime.
    pub async fn find_all(
        &self,
        is: impl Fn(&Attachment) -> bool,
    ) -> Vec<(WorkloadId, Attachment)> {
        let state = self.state.lock().await;
        let found = state.workloads.iter().filter(|(_, workload)| is(&workload.attachment));
        found.map(|(id, workload)| (id.clone(), workload.attachment.clone())).collect()
    }
}

impl Node {
    /// Closes a workload that is something else than when it was let in, while the coordinator is
    /// away which would have to judge that; and opens it again when it is as it was. `before`: what
    /// was measured of it until now.
    fn hold_unjudged(&self, state: &mut State, id: &WorkloadId, before: Option<Arc<Measurement>>) {
        let State { view, endpoints, workloads, session, .. } = state;
        let Some(workload) = workloads.get_mut(id) else { return };
        let Attachment { report, held_until, let_in_as, .. } = &mut workload.attachment;
        let judges = view.network(&report.network).is_none_or(|spec| spec.admission);
        let let_in = view.workload(&report.network, id).is_some();
        if session.is_some() || !judges || !let_in {
            return;
        }
        let known = let_in_as.take().or(before);
        *let_in_as = known.filter(|known| Some(known) != report.measurement.as_ref());
        if let Some(running) = endpoints.get(&report.network) {
            running
                .served
                .endpoint
                .quarantine_locally(workload.index, let_in_as.is_some() || held_until.is_some());
        }
        if let_in_as.is_some() {
            warn!(workload = %id, "it is something else than when it was let in, and the coordinator is away: it is closed until that is judged");
        }
    }

    /// The coordinator is there: what it says of workloads holds.
    pub(super) fn leave_to_coordinator(&self, state: &mut State) {
        let State { endpoints, workloads, .. } = state;
        let mut changed = Vec::new();
        for workload in workloads.values_mut() {
            let Attachment { report, held_until, let_in_as, .. } = &mut workload.attachment;
            if let_in_as.take().is_none() {
                continue;
            }
            if let Some(running) = endpoints.get(&report.network) {
                running.served.endpoint.quarantine_locally(workload.index, held_until.is_some());
            }
            changed.push(report.id.clone());
        }
        for id in changed {
            if let Err(error) = self.keep_workload(state, &id) {
                warn!(workload = %id, "it was not written down who judges it: {error:#}");
            }
        }
    }

    /// Whether the interface of a workload is in its namespace, and is the one that this daemon
    /// holds.
    pub(super) async fn holds_interface(&self, id: &WorkloadId, attachment: &Attachment) -> bool {
        let held = {
            let state = self.state.lock().await;
            let name = served_at(&state, id)
                .and_then(|(served, index)| self.workers.interface_name(&served, index));
            name.as_deref() == Some(attachment.interface.as_str())
        };
        let attachment = attachment.clone();
        held && tokio::task::spawn_blocking(move || attachment.has_interface())
            .await
            .unwrap_or(false)
    }

    /// What is attached to a network in a namespace, if its interface is gone: somebody has deleted
    /// it.
    pub(super) async fn empty_in(
        &self,
        network: &NetworkName,
        netns: (u64, u64),
    ) -> Option<WorkloadId> {
        let is_in = |attachment: &Attachment| {
            attachment.netns_id == Some(netns)
                && attachment.report.network == *network
                && !matches!(attachment.origin, Origin::Route | Origin::Device)
        };
        let (there, attachment) = self.find(is_in).await?;
        (!self.holds_interface(&there.id, &attachment).await).then_some(there.id)
    }

    /// Detaches a workload whose interface is gone; somebody else may have done that already.
    pub(super) async fn let_go(&self, id: &WorkloadId) -> Result<(), Refusal> {
        info!(workload = %id, "its interface is gone");
        match self.detach(id).await {
            Ok(()) | Err(Refusal::Missing(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }
}

/// Refuses addresses that a workload has: two never have one.
fn check_unused(state: &State, network: &NetworkName, addresses: &[IpAddr]) -> Result<(), Refusal> {
    let reports = state.workloads.values().map(|workload| &workload.attachment.report);
    let mut own = reports.filter(|report| report.network == *network);
    let other = own.find_map(|report| {
        let address = report.addresses.iter().find(|address| addresses.contains(address))?;
        Some(format!(
            "{address} is in use by workload {}; detach it, or ask for another",
            report.id
        ))
    });
    other.map_or(Ok(()), |text| Err(Refusal::Invalid(text)))
}

fn served_at(state: &State, id: &WorkloadId) -> Option<(Arc<ServedEndpoint>, WorkloadIndex)> {
    let workload = state.workloads.get(id)?;
    let running = state.endpoints.get(&workload.attachment.report.network)?;
    Some((running.served.clone(), workload.index))
}
