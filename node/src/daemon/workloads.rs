//! Attaching namespaces as workloads, and detaching them.

use super::{Node, Refusal, State, Workload, show, show_attachment};
use crate::{
    addresses::Allocator,
    attachment::{self, Attachment, Make, Origin, Owner},
    offloads::Offloads,
};
use anyhow::Result;
use ipnet::IpNet;
use meshward_api_types::local::{
    Attach, DryRun, LocalWorkload as Shown, Relabel, State as WorkloadState,
};
use meshward_control_proto::{FromNode, Resource, ResourceKey, WorkloadReport, view::NetworkSpec};
use meshward_datapath::LocalWorkload;
use meshward_types::{AcceptFrom, Labels, NetworkName, WorkloadId, WorkloadName};
use std::{
    collections::HashSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::MutexGuard;
use tracing::{info, warn};

/// For how long an attach waits for the coordinator's word.
const ADMISSION: Duration = Duration::from_secs(5);
/// A coordinator that has not answered for this long counts as away, though its session has not
/// ended yet.
const SILENCE: Duration = Duration::from_millis(1500);
/// For how long an attach waits for the coordinator to tell of its network, and then for the
/// endpoint.
const TOLD: Duration = Duration::from_secs(5);
/// How often the workloads' namespaces and owners are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// Attaches a namespace, and waits for a moment for the workload to be let in.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn attach(&self, wanted: Attach, dry_run: DryRun) -> Result<Shown, Refusal> {
        if dry_run.0 {
            let _turn = self.turn(&wanted.network).await;
            let network = wanted.network.clone();
            let before = self.allocator_of(&network).await;
            let (attachment, reserved) = self.prepare(wanted, dry_run).await?;
            return Ok(self.take_back(&network, before, &attachment, &reserved).await);
        }
        let id = {
            let _turn = self.turn(&wanted.network).await;
            let (attachment, reserved) = self.prepare(wanted, dry_run).await?;
            let report = attachment.report.clone();
            self.open_reserved(attachment, reserved).await?;
            info!(workload = %report.id, name = %report.name, network = %report.network, labels = %report.labels,
                "attached");
            self.announce(&mut *self.state.lock().await, &report);
            report.id
        };
        self.folder.settled().await;
        let shown = self.wait_admitted(&id).await?;
        if let WorkloadState::Refused(reason) = &shown.state {
            let reason = reason.clone();
            self.detach(&id).await?;
            return Err(Refusal::Invalid(format!(
                "the coordinator refused the workload: {reason}"
            )));
        }
        Ok(shown)
    }

    /// Which addresses of a network come next.
    pub(super) async fn allocator_of(&self, network: &NetworkName) -> Option<Allocator> {
        self.state.lock().await.endpoints.get(network).map(|running| running.allocator.clone())
    }

    /// Takes back what was prepared for a workload, and shows what it would have been.
    pub(super) async fn take_back(
        &self,
        network: &NetworkName,
        before: Option<Allocator>,
        attachment: &Attachment,
        reserved: &Reserved,
    ) -> Shown {
        let mut state = self.state.lock().await;
        state.reserved.retain(|held| !reserved.contains(held));
        if let (Some(running), Some(before)) = (state.endpoints.get_mut(network), before) {
            running.allocator = before;
        }
        show_attachment(&state, attachment, None, None)
    }

    async fn prepare(
        &self,
        wanted: Attach,
        dry_run: DryRun,
    ) -> Result<(Attachment, Reserved), Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::Invalid(error.to_string());
        wanted.labels.check_unreserved().map_err(|error| invalid(&error))?;
        AcceptFrom::check_count(&wanted.accepts).map_err(|error| invalid(&error))?;
        let network = &wanted.network;
        served(&*self.state.lock().await, network)?;
        let owner = match wanted.owner {
            None => None,
            Some(pid) => match Owner::of(pid) {
                Some(owner) => Some(owner),
                None => {
                    return Err(Refusal::Invalid(format!(
                        "there is no process {pid} to own the workload"
                    )));
                }
            },
        };
        let (interface, netns_id) = look_into(wanted.netns.clone()).await?;
        if !wanted.host && is_of_host(netns_id) {
            return Err(Refusal::Invalid(format!(
                "{} is the namespace of this host itself: every process here would be the workload; if that is what you want, say `--host`",
                wanted.netns.display()
            )));
        }
        let mut empty = self.empty_in(network, netns_id).await;
        if let Some(id) = empty.take_if(|_| !dry_run.0) {
            self.let_go(&id).await?;
        }
        let (addresses, reserved) = {
            let mut state = self.state.lock().await;
            check_unattached(&state, network, netns_id, &wanted.netns, empty.as_ref())?;
            self.allocate_reserved(&mut state, network)?
        };
        let id = attachment::new_id();
        let name = match wanted.name {
            Some(name) => name,
            None => name_of(&id),
        };
        let report = WorkloadReport {
            prefixes: vec![],
            labels: wanted.labels,
            accepts: wanted.accepts,
            ..report(id, network, name, addresses)
        };
        let attachment = Attachment {
            report,
            netns: wanted.netns,
            netns_id: Some(netns_id),
            owner,
            interface,
            seen_at: None,
            held_until: None,
            origin: Origin::Local,
            measured: true,
            let_in_as: None,
        };
        Ok((attachment, reserved))
    }

    /// Finds an address in each block of a network that nobody has, and keeps it from others for as
    /// long as it takes to attach.
    pub(super) fn allocate_reserved(
        &self,
        state: &mut State,
        network: &NetworkName,
    ) -> Result<(Vec<IpAddr>, Reserved), Refusal> {
        let blocks = served(state, network)?.blocks.clone();
        let addresses = self.allocate(state, network, &blocks)?;
        let reserved: Reserved =
            addresses.iter().map(|address| (network.clone(), *address)).collect();
        state.reserved.extend(reserved.iter().cloned());
        Ok((addresses, reserved))
    }

    /// Finds an address in each of these blocks that nobody has.
    pub(super) fn allocate(
        &self,
        state: &mut State,
        network: &NetworkName,
        blocks: &[IpNet],
    ) -> Result<Vec<IpAddr>, Refusal> {
        let used = used_addresses(state, network, &self.membership.name);
        let running = state.endpoints.get_mut(network);
        let running = running
            .ok_or_else(|| Refusal::Failed(format!("the endpoint of {network} does not run")))?;
        running
            .allocator
            .allocate(network, blocks, &used)
            .map_err(|error| Refusal::Invalid(error.to_string()))
    }

    /// Makes the workload's interface in its namespace, or takes it up again, and has it served.
    pub(super) async fn open(&self, attachment: Attachment) -> Result<(), Refusal> {
        self.open_by(attachment, Attachment::open).await
    }

    /// Opens a workload for the first time, whose addresses were reserved, and keeps it.
    pub(super) async fn open_reserved(
        &self,
        attachment: Attachment,
        reserved: Reserved,
    ) -> Result<(), Refusal> {
        let id = attachment.report.id.clone();
        let opened = self.open(attachment).await;
        let mut state = self.state.lock().await;
        state.reserved.retain(|held| !reserved.contains(held));
        opened?;
        self.keep_or_drop(&mut state, &id)
    }

    /// Makes the interface by `make`, and has the workload served. The state is not held while the
    /// kernel works; that two do this at once, `attaching` prevents.
    pub(super) async fn open_by(&self, attachment: Attachment, make: Make) -> Result<(), Refusal> {
        if let Some(key) = attachment.report.device {
            return self.serve_device(&mut *self.state.lock().await, attachment, key);
        }
        let network = attachment.report.network.clone();
        let gone = || Refusal::Failed(format!("the endpoint of {network} does not run"));
        let (served, mut spec, routes) = {
            let state = self.state.lock().await;
            let served = state.endpoints.get(&network).ok_or_else(gone)?.served.clone();
            let spec = state.view.network(&network).cloned().ok_or_else(gone)?;
            (served, spec, state.view.routes(&network))
        };
        // The workload needs ways to what is behind gateways, too.
        let others = routes.iter().filter(|route| !attachment.report.prefixes.contains(route));
        spec.prefixes.extend(others.copied());
        let opening = attachment.clone();
        let wanted = Offloads::without(&self.config.disable_offloads);
        let opened = tokio::task::spawn_blocking(move || make(&opening, &spec, wanted)).await;
        let tun = opened
            .map_err(|panic| Refusal::Failed(panic.to_string()))?
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let report = &attachment.report;
        let local = LocalWorkload {
            id: report.id.clone(),
            addresses: report.addresses.clone(),
            prefixes: report.prefixes.clone(),
            vouched: None,
        };
        let mut state = self.state.lock().await;
        let running = state.endpoints.get(&network).filter(|own| Arc::ptr_eq(&own.served, &served));
        let Some(running) = running else {
            attachment::close(tun);
            return Err(gone());
        };
        let now = running.routes.clone();
        let index = self.workers.attach(&served, local, tun);
        if attachment.held_until.is_some() || attachment.let_in_as.is_some() {
            served.endpoint.quarantine_locally(index, true);
        }
        if now != routes && attachment.is_placed() {
            self.change_routes(vec![attachment.clone()], routes, now);
        }
        let id = report.id.clone();
        state.workloads.insert(id, Workload { attachment, index, vouched: None, refused: None });
        Ok(())
    }

    /// The turn to attach to a network. Right after the daemon's start, or the network's, the
    /// coordinator's word and the endpoint are waited for.
    pub(super) async fn turn(&self, network: &NetworkName) -> MutexGuard<'_, ()> {
        self.wait_served(network).await;
        self.attaching.lock().await
    }

    /// Waits for a moment until a network's endpoint runs, if the node is to serve it.
    pub(super) async fn wait_served(&self, network: &NetworkName) {
        self.wait_told(|state| state.view.network(network).is_some()).await;
        let runs = |state: &State| state.endpoints.contains_key(network);
        self.wait_for(|state| state.view.network(network).is_none() || runs(state)).await;
    }

    /// Waits for a moment until the coordinator has told everything, or what is known is enough.
    pub(super) async fn wait_told(&self, is_enough: impl Fn(&State) -> bool) {
        self.wait_for(|state| state.told || is_enough(state)).await;
    }

    async fn wait_for(&self, is_it: impl Fn(&State) -> bool) {
        let until = tokio::time::Instant::now() + TOLD;
        loop {
            let changed = self.admission.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state.lock().await;
                if is_it(&state) {
                    return;
                }
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    pub(super) async fn wait_admitted(&self, id: &WorkloadId) -> Result<Shown, Refusal> {
        let begun = tokio::time::Instant::now();
        loop {
            let changed = self.admission.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock().await;
                if begun.elapsed() >= SILENCE {
                    self.vouch_for_unadmitted(&mut state);
                }
                let workload = state.workloads.get(id);
                let workload = workload
                    .ok_or_else(|| Refusal::Missing(format!("workload {id} was detached")))?;
                let shown = show(&state, workload);
                let spoken = shown.state != WorkloadState::Waiting || state.session.is_none();
                if spoken || begun.elapsed() >= ADMISSION {
                    return Ok(shown);
                }
            }
            let patience = if begun.elapsed() < SILENCE { SILENCE } else { ADMISSION };
            let _ = tokio::time::timeout_at(begun + patience, changed).await;
        }
    }

    /// Detaches a workload, or only says whether it could.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if there is none.
    pub async fn detach_if(&self, id: &WorkloadId, dry_run: DryRun) -> Result<(), Refusal> {
        match (dry_run.0, self.state.lock().await.workloads.contains_key(id)) {
            (_, false) => return Err(unknown(id)),
            (true, true) => return Ok(()),
            (false, true) => {}
        }
        self.detach(id).await
    }

    /// Detaches a workload and deletes its interface.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if there is none.
    pub async fn detach(&self, id: &WorkloadId) -> Result<(), Refusal> {
        let mut state = self.state.lock().await;
        if !self.drop_workload(&mut state, id) {
            return Err(unknown(id));
        }
        if let Some(session) = &state.session {
            let _ = session.send(FromNode::Stopped(id.clone()));
        }
        info!(workload = %id, "detached");
        Ok(())
    }

    /// Says that a workload has started or is other than it was, or vouches for it if there is
    /// nobody to say it to.
    pub(super) fn announce(&self, state: &mut State, report: &WorkloadReport) {
        match &state.session {
            Some(session) => {
                let _ = session.send(FromNode::Started(report.clone().fitted()));
            }
            None => self.vouch_for_unadmitted(state),
        }
    }

    /// Gives a workload other labels.
    ///
    /// # Errors
    /// [`Refusal`]; then it has those that it had.
    pub async fn relabel(
        &self,
        id: &WorkloadId,
        Relabel { labels, instead_of }: Relabel,
        dry_run: DryRun,
    ) -> Result<Shown, Refusal> {
        labels.check_unreserved().map_err(|error| Refusal::Invalid(error.to_string()))?;
        {
            let mut state = self.state.lock().await;
            let workload = state.workloads.get_mut(id).ok_or_else(|| unknown(id))?;
            if !workload.attachment.measured {
                return Err(Refusal::Invalid(format!(
                    "workload {id} was not measured yet; try again"
                )));
            }
            if instead_of.is_some_and(|known| known != workload.attachment.report.labels) {
                let now = &workload.attachment.report.labels;
                let text = format!("workload {id} has other labels by now: {now}; read them again");
                return Err(Refusal::Changed(text));
            }
            if dry_run.0 {
                let mut attachment = workload.attachment.clone();
                attachment.report.labels = labels;
                return Ok(show_attachment(&state, &attachment, None, None));
            }
            workload.attachment.report.labels = labels;
            workload.refused = None;
            let report = workload.attachment.report.clone();
            self.keep_workload(&state, id)
                .map_err(|error| Refusal::Failed(format!("{error:#}")))?;
            info!(workload = %id, labels = %report.labels, "relabelled");
            self.announce(&mut state, &report);
        }
        let state = self.state.lock().await;
        let workload = state.workloads.get(id).ok_or_else(|| unknown(id))?;
        Ok(show(&state, workload))
    }

    pub(super) fn keep_or_drop(&self, state: &mut State, id: &WorkloadId) -> Result<(), Refusal> {
        if let Err(failure) = self.keep_workload(state, id) {
            self.drop_workload(state, id);
            return Err(Refusal::Failed(format!("nothing was attached: {failure:#}")));
        }
        Ok(())
    }

    /// Takes a workload out. Its interface goes by itself, soon.
    pub(super) fn drop_workload(&self, state: &mut State, id: &WorkloadId) -> bool {
        let Some(workload) = state.workloads.remove(id) else { return false };
        let running = state.endpoints.get(&workload.attachment.report.network);
        let tun = running.and_then(|running| self.workers.detach(&running.served, workload.index));
        if workload.attachment.origin == Origin::Route {
            self.forget_rules(workload.attachment, tun);
        } else if let Some(tun) = tun {
            attachment::close(tun);
        }
        self.folder.forget_workload(id);
        self.admission.notify_waiters();
        true
    }

    pub(super) fn keep_workload(&self, state: &State, id: &WorkloadId) -> Result<()> {
        match state.workloads.get(id) {
            Some(workload) => self.folder.keep_workload(id, &workload.attachment),
            None => Ok(()),
        }
    }

    /// Detaches workloads whose namespace or owner is gone, for ever.
    pub async fn look_after_workloads(&self) {
        loop {
            tokio::time::sleep(LOOK_AFTER).await;
            self.note_devices().await;
            let all: Vec<Attachment> =
                self.state.lock().await.workloads.values().map(|w| w.attachment.clone()).collect();
            let checked = tokio::task::spawn_blocking(move || {
                let placed = all.into_iter().filter(Attachment::is_placed);
                placed.filter(|attachment| !attachment.lives()).collect::<Vec<_>>()
            });
            for gone in checked.await.unwrap_or_default() {
                let Attachment { report, origin, .. } = &gone;
                info!(workload = %report.id, "its namespace or owner is gone");
                if matches!(origin, Origin::Docker { .. }) {
                    // They stay those of Docker's endpoint, until Docker deletes that.
                    self.hold_addresses(&report.network, &report.addresses).await;
                }
                match self.detach(&report.id).await {
                    // Whoever made the namespace may have detached it meanwhile.
                    Ok(()) | Err(Refusal::Missing(_)) => {}
                    Err(refusal) => warn!(workload = %report.id, "cannot detach: {refusal}"),
                }
            }
        }
    }
}

/// Addresses that are given out for a workload which is not there yet.
pub(super) type Reserved = Vec<(NetworkName, IpAddr)>;

/// Finds out what a namespace is, and a name for an interface there.
pub(super) async fn look_into(path: PathBuf) -> Result<(String, (u64, u64)), Refusal> {
    let looked = tokio::task::spawn_blocking(move || {
        let (netns, id) = attachment::netns_of(&path)?;
        Ok((attachment::free_interface(&netns)?, id))
    });
    let looked = looked.await.map_err(|panic| Refusal::Failed(panic.to_string()))?;
    looked.map_err(|error: meshward_netns::Error| Refusal::Invalid(error.to_string()))
}

/// A network that the node serves.
pub(super) fn served<'a>(
    state: &'a State,
    network: &NetworkName,
) -> Result<&'a NetworkSpec, Refusal> {
    if let Some(spec) = state.view.network(network) {
        return Ok(spec);
    }
    let known: Vec<_> = state.view.networks().map(|(name, _)| name.to_string()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(match state.told {
        true => Refusal::Missing(format!(
            "this node does not serve network `{network}`: it is not there, or the node's join token did not name it (it serves: {known})"
        )),
        false => Refusal::Early(format!(
            "this node does not know network `{network}` yet: the coordinator has not been heard since the daemon's start (it serves: {known})"
        )),
    })
}

/// Refuses a namespace that is attached to a network already. `empty`: a workload that does not
/// count, for its interface is gone.
pub(super) fn check_unattached(
    state: &State,
    network: &NetworkName,
    netns: (u64, u64),
    path: &Path,
    empty: Option<&WorkloadId>,
) -> Result<(), Refusal> {
    let same = |other: &Workload| {
        let Attachment { report, netns_id, .. } = &other.attachment;
        *netns_id == Some(netns) && report.network == *network && Some(&report.id) != empty
    };
    match state.workloads.values().any(same) {
        true => {
            Err(Refusal::Invalid(format!("{} is attached to {network} already", path.display())))
        }
        false => Ok(()),
    }
}

/// Whether a namespace is that of the daemon, which is the host's.
fn is_of_host(netns: (u64, u64)) -> bool {
    attachment::netns_of(Path::new("/proc/self/ns/net")).is_ok_and(|(_, own)| own == netns)
}

/// An id as a name: they are of the same form.
pub(super) fn name_of(id: &WorkloadId) -> WorkloadName {
    id.as_str().parse().expect("a workload id is a name")
}

/// A workload of which nothing is known but what is here.
pub(super) fn report(
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
    }
}

pub(super) fn unknown(id: &WorkloadId) -> Refusal {
    Refusal::Missing(format!(
        "there is no workload `{id}` on this node; `meshctl attached` shows them"
    ))
}

/// Addresses that cannot be given out: those of the workloads, and those that the coordinator still
/// holds for workloads that are gone. Its peers may know those under another identity.
pub(super) fn used_addresses(
    state: &State,
    network: &NetworkName,
    own: &meshward_types::NodeName,
) -> HashSet<IpAddr> {
    let attached = state.workloads.values().map(|workload| &workload.attachment.report);
    let attached =
        attached.filter(|report| report.network == *network).flat_map(|report| &report.addresses);
    let held = state.view.resources.iter().filter_map(|(key, resource)| match (key, resource) {
        (ResourceKey::Workload(name, _), Resource::Workload(spec))
            if name == network && spec.node == *own =>
        {
            Some(spec)
        }
        _ => None,
    });
    let reserved =
        state.reserved.iter().filter(|(name, _)| name == network).map(|(_, address)| address);
    attached.chain(held.flat_map(|spec| &spec.addresses)).chain(reserved).copied().collect()
}
