//! Containers: workloads whose namespaces a container runtime makes. They are attached first and
//! measured then; before that, nobody is told of them and nothing passes.

use super::{
    interfaces::check_unattached,
    state::{State, Workloads, name_of, plain_report},
};
use crate::{
    attachment::{self, Attachment, MakeInterface, Origin},
    refusal::Refusal,
};
use ipnet::IpNet;
use meshward_control_proto::{ImageSignatures, WorkloadReport, view::NetworkSpec};
use meshward_netns::NetnsId;
use meshward_types::{
    AcceptFrom, Labels, NetworkName, WorkloadId, WorkloadName,
    measurement::{Image, Measurement, Sha256},
};
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// The bound on how long Docker may take to move an interface into the container.
const MOVED_WITHIN: Duration = Duration::from_secs(30);
/// The most labels that were left out that the log names.
const MAX_NAMED: usize = 16;

/// A container that is to be attached.
pub struct NewContainer {
    /// The network.
    pub network: NetworkName,
    /// The reserved addresses; without any, free ones are allocated.
    pub addresses: Vec<IpAddr>,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// The name of its interface.
    pub interface: String,
    /// The runtime that made it.
    pub(crate) origin: Origin,
}

/// A container that is attached.
pub struct AttachedContainer {
    /// The id as a workload.
    pub id: WorkloadId,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The network.
    pub network: NetworkSpec,
}

/// The facts that were found out about a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerFacts {
    /// The name.
    pub name: Option<WorkloadName>,
    /// The labels.
    pub labels: Labels,
    /// The workloads that its owner lets reach it.
    pub accepts: Vec<AcceptFrom>,
    /// The image, command and so on.
    pub measurement: Option<Arc<Measurement>>,
    /// The signatures found of its images.
    pub signatures: Vec<ImageSignatures>,
    /// The part that could not be understood: it cannot be admitted.
    pub objection: Option<String>,
    /// The keys of labels that were left out.
    pub left_out: Vec<String>,
}

/// A container, as far as it matters for measuring it.
pub struct Container {
    /// The id as a workload.
    pub id: WorkloadId,
    /// The runtime that made it.
    pub(crate) origin: Origin,
    /// `true` if the network has admission: signatures of images are wanted.
    pub has_admission: bool,
    /// `true` if it was measured already.
    pub measured: bool,
    /// The last measurement.
    pub measurement: Option<Arc<Measurement>>,
}

impl Workloads {
    /// Makes a container's interface in its namespace, closed.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn attach_container(
        &self,
        wanted: NewContainer,
    ) -> Result<AttachedContainer, Refusal> {
        let id =
            NetnsId::of_path(&wanted.netns).map_err(|error| Refusal::Invalid(error.to_string()))?;
        self.attach_container_by(wanted, Some(id), Attachment::open).await
    }

    /// Makes a container's interface in the daemon's namespace, closed; Docker moves it from there.
    /// There may be no namespace yet.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn attach_container_outside(
        self: &Arc<Self>,
        wanted: NewContainer,
    ) -> Result<AttachedContainer, Refusal> {
        let before = wanted.interface.clone();
        let attached = self.attach_container_by(wanted, None, Attachment::open_outside).await?;
        let (workloads, id) = (self.clone(), attached.id.clone());
        tokio::spawn(async move { workloads.finish_move(&id, &before).await });
        Ok(attached)
    }

    async fn attach_container_by(
        &self,
        wanted: NewContainer,
        netns_id: Option<NetnsId>,
        make: MakeInterface,
    ) -> Result<AttachedContainer, Refusal> {
        let NewContainer { network, addresses, netns, interface, origin } = wanted;
        let _turn = self.turn(&network).await;
        if let Some(id) = netns_id
            && let Some(lost) = self.without_interface(&network, id).await
        {
            self.detach_lost(&lost)?;
        }
        let spec = self.enforcement.network(&network)?;
        let (addresses, mut reserved) = {
            let mut state = self.state.lock();
            if let Some(id) = netns_id {
                check_unattached(&state, &network, id, &netns, None)?;
            }
            check_unused(&state, &network, &addresses)?;
            match addresses.is_empty() {
                true => self.allocate_reserved(&mut state, &network, &spec.blocks)?,
                false => (addresses, vec![]),
            }
        };
        let id = attachment::new_id();
        let report = plain_report(id.clone(), &network, name_of(&id), addresses.clone());
        let attachment =
            Attachment { netns_id, ..Attachment::new(report, netns, interface, origin) };
        // Addresses that the caller reserved stay so if this fails.
        let opened = self.open(attachment, make).await;
        {
            let mut state = self.state.lock();
            if opened.is_ok() {
                reserved.extend(addresses.iter().map(|address| (network.clone(), *address)));
            }
            let kept = opened.and_then(|()| self.keep_or_drop(&mut state, &id));
            state.reserved.retain(|address| !reserved.contains(address));
            kept?;
        }
        self.folder.flush().await;
        info!(workload = %id, %network, "a container is attached, and closed until it is measured");
        self.to_measure.notify_one();
        Ok(AttachedContainer { id, addresses, network: spec })
    }

    /// Waits until Docker has moved an interface into the container, and notes its name there.
    async fn finish_move(&self, id: &WorkloadId, before: &str) {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(2);
        while begun.elapsed() < MOVED_WITHIN {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
            let Some((_, attachment)) = self.find(|own| own.report.id == *id) else { return };
            let Some(name) = self.interface_name(id).filter(|name| name != before) else {
                continue;
            };
            let Ok(netns_id) = NetnsId::of_path(&attachment.netns) else { continue };
            let Some((attachment, routes)) = self.note_moved(id, name, netns_id) else { return };
            let finished =
                tokio::task::spawn_blocking(move || attachment.configure_moved(&routes)).await;
            if let Ok(Err(error)) = finished {
                warn!(workload = %id, "the interface was not configured to the end: {error}");
            }
            return;
        }
        warn!(workload = %id, "the interface was not taken into a container, and goes");
        let _ = self.detach(id);
    }

    /// Notes the namespace and name of an interface that was moved; returns the routes that are to
    /// lead there.
    fn note_moved(
        &self,
        id: &WorkloadId,
        interface: String,
        netns_id: NetnsId,
    ) -> Option<(Attachment, Vec<IpNet>)> {
        let mut state = self.state.lock();
        let workload = state.attached.get_mut(id)?;
        workload.attachment.interface = interface;
        workload.attachment.netns_id = Some(netns_id);
        let attachment = workload.attachment.clone();
        if let Err(error) = self.keep(&state, id) {
            warn!(workload = %id, "the interface's name was not written down: {error:#}");
        }
        // From now on it is in the namespace: routes that change later are changed in it, too.
        self.spread_default_routes(&mut state, &attachment.report.network);
        let routes = state.routes.get(&attachment.report.network);
        Some((attachment, routes.into_iter().flatten().copied().collect()))
    }

    /// Returns the workloads that container runtimes run.
    pub fn containers(&self) -> Vec<Container> {
        let of_runtimes = |attachment: &Attachment| {
            matches!(attachment.origin, Origin::Docker { .. } | Origin::Cni { .. })
        };
        let all = self.find_all(of_runtimes).into_iter();
        all.map(|(id, attachment)| {
            let Attachment { report, origin, measured, .. } = attachment;
            let has_admission = self
                .enforcement
                .view(|view| view.network(&report.network).is_none_or(|spec| spec.admission));
            Container { id, origin, has_admission, measured, measurement: report.measurement }
        })
        .collect()
    }

    /// Returns the images of workloads that are refused: signatures may have been made since.
    pub fn refused_images(&self) -> Vec<(WorkloadId, Vec<Image>)> {
        let all = self.find_all(|own| own.report.measurement.is_some()).into_iter();
        let refused = all.filter(|(id, own)| {
            self.enforcement.view(|view| view.refusal(&own.report.network, id).is_some())
        });
        refused
            .filter_map(|(id, own)| {
                Some((id, own.report.measurement?.all_images().cloned().collect()))
            })
            .collect()
    }

    /// Records the facts about a container: from now on the coordinator knows of it.
    pub fn record_facts(&self, id: &WorkloadId, facts: ContainerFacts) {
        let left_out = facts.left_out.clone();
        let report = {
            let mut state = self.state.lock();
            let Some(workload) = state.attached.get_mut(id) else { return };
            let attachment = &mut workload.attachment;
            let (was_measured, before) = (attachment.measured, attachment.report.clone());
            merge_facts(&mut attachment.report, facts);
            attachment.measured = true;
            let report = attachment.report.clone();
            if was_measured && before == report {
                return;
            }
            self.close_unadmitted(&mut state, id, before.measurement.filter(|_| was_measured));
            if let Err(error) = self.keep(&state, id) {
                warn!(workload = %id, "the measurement was not written down: {error:#}");
            }
            report
        };
        info!(
            workload = %id, name = %report.name, network = %report.network,
            labels = %report.labels, "measured"
        );
        if !left_out.is_empty() {
            let (named, count) = (&left_out[..left_out.len().min(MAX_NAMED)], left_out.len());
            info!(workload = %id, keys = ?named, "{count} of its labels were left out: they cannot \
                be labels here, or are too many");
        }
        self.announce(&report);
        self.enforcement.notify_changed();
    }

    /// Adds signatures to what is known of a container.
    pub fn add_signatures(&self, id: &WorkloadId, signatures: Vec<ImageSignatures>) {
        let report = {
            let mut state = self.state.lock();
            let Some(workload) = state.attached.get_mut(id) else { return };
            let report = &mut workload.attachment.report;
            if report.signatures == signatures {
                return;
            }
            report.signatures = signatures;
            report.clone()
        };
        self.announce(&report);
    }
}

fn merge_facts(report: &mut WorkloadReport, facts: ContainerFacts) {
    let ContainerFacts { name, labels, accepts, measurement, mut signatures, objection, .. } =
        facts;
    // Signatures of images that it still runs hold, whether or not they were looked for again.
    let runs = |digest: &Sha256| {
        measurement.iter().any(|own| own.all_images().any(|image| image.digest == *digest))
    };
    let mut known = std::mem::take(&mut report.signatures);
    let is_new = |digest: &Sha256| !signatures.iter().any(|other| other.image == *digest);
    known.retain(|own| runs(&own.image) && is_new(&own.image));
    signatures.extend(known);
    if let Some(name) = name {
        report.name = name;
    }
    (report.labels, report.accepts, report.measurement) = (labels, accepts, measurement);
    (report.signatures, report.objection) = (signatures, objection);
}

/// Refuses addresses that a workload has: two never have one.
fn check_unused(state: &State, network: &NetworkName, addresses: &[IpAddr]) -> Result<(), Refusal> {
    let reports = state.attached.values().map(|workload| &workload.attachment.report);
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
