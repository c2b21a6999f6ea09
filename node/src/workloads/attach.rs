//! Attaching namespaces as workloads, relabelling and detaching them.

use super::{
    interfaces::{InspectedNetns, check_unattached, inspect_netns, is_of_host},
    reservations::Reserved,
    show::show,
    state::{State, Workloads, name_of, plain_report, unknown},
};
use crate::{
    addresses::Allocator,
    attachment::{self, Attachment, Origin, Owner},
    enforcement::Standing,
    refusal::Refusal,
};
use meshward_api_types::local::{Attach, DryRun, LocalWorkload, Relabel, State as WorkloadState};
use meshward_control_proto::{FromNode, WorkloadReport};
use meshward_types::{AcceptFrom, NetworkName, WorkloadId};
use std::time::Duration;
use tracing::info;

/// The bound on how long an attach waits for the coordinator's decision.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// A coordinator that has not answered for this long counts as away, though its session has not
/// ended yet.
const SILENCE: Duration = Duration::from_millis(1500);

impl Workloads {
    /// Attaches a namespace, and waits for a moment for the workload to be let in.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn attach(&self, wanted: Attach, dry_run: DryRun) -> Result<LocalWorkload, Refusal> {
        let network = wanted.network.clone();
        let id = {
            let _turn = self.turn(&network).await;
            let before = self.allocator(&network);
            let (attachment, reserved) = self.prepare(wanted, dry_run).await?;
            if dry_run.0 {
                return Ok(self.undo_preparation(&network, before, &attachment, &reserved));
            }
            let report = attachment.report.clone();
            self.open_reserved(attachment, reserved, Attachment::open).await?;
            info!(
                workload = %report.id, name = %report.name, network = %report.network,
                labels = %report.labels, "attached"
            );
            self.announce(&report);
            report.id
        };
        self.folder.flush().await;
        let shown = self.wait_decided(&id).await?;
        if let WorkloadState::Refused(reason) = &shown.state {
            let reason = reason.clone();
            self.detach(&id)?;
            return Err(Refusal::Invalid(format!(
                "the coordinator refused the workload: {reason}"
            )));
        }
        Ok(shown)
    }

    /// Undoes the preparation of a dry run, and returns what the workload would have been.
    pub(super) fn undo_preparation(
        &self,
        network: &NetworkName,
        before: Allocator,
        attachment: &Attachment,
        reserved: &Reserved,
    ) -> LocalWorkload {
        let mut state = self.state.lock();
        state.reserved.retain(|address| !reserved.contains(address));
        state.allocators.insert(network.clone(), before);
        show(attachment, Standing::default(), None)
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
        let spec = self.enforcement.network(network)?;
        let owner = wanted.owner.map(owner_of).transpose()?;
        let InspectedNetns { id: netns_id, interface } =
            inspect_netns(wanted.netns.clone()).await?;
        if !wanted.host && is_of_host(netns_id) {
            return Err(Refusal::Invalid(format!(
                "{} is the namespace of this host itself: every process here would be the \
                workload; if that is what you want, say `--host`",
                wanted.netns.display()
            )));
        }
        let mut lost = self.without_interface(network, netns_id).await;
        if let Some(id) = lost.take_if(|_| !dry_run.0) {
            self.detach_lost(&id)?;
        }
        let (addresses, reserved) = {
            let mut state = self.state.lock();
            check_unattached(&state, network, netns_id, &wanted.netns, lost.as_ref())?;
            self.allocate_reserved(&mut state, network, &spec.blocks)?
        };
        let id = attachment::new_id();
        let name = wanted.name.unwrap_or_else(|| name_of(&id));
        let report = WorkloadReport {
            labels: wanted.labels,
            accepts: wanted.accepts,
            ..plain_report(id, network, name, addresses)
        };
        let attachment = Attachment {
            netns_id: Some(netns_id),
            owner,
            measured: true,
            ..Attachment::new(report, wanted.netns, interface, Origin::Local)
        };
        Ok((attachment, reserved))
    }

    /// Waits for a moment for the coordinator's decision on a workload. Where the coordinator is
    /// away or silent, the node vouches for it if it can.
    pub(super) async fn wait_decided(&self, id: &WorkloadId) -> Result<LocalWorkload, Refusal> {
        let begun = tokio::time::Instant::now();
        loop {
            let changed = self.enforcement.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if begun.elapsed() >= SILENCE {
                self.vouch_for_undecided(Some(id));
            }
            let shown = {
                let state = self.state.lock();
                let workload = state.attached.get(id);
                let workload = workload
                    .ok_or_else(|| Refusal::Missing(format!("workload {id} was detached")))?;
                self.show(workload)
            };
            let is_decided = shown.state != WorkloadState::Waiting || !self.link.has_session();
            if is_decided || begun.elapsed() >= DECIDED_WITHIN {
                return Ok(shown);
            }
            let next = if begun.elapsed() < SILENCE { SILENCE } else { DECIDED_WITHIN };
            let _ = tokio::time::timeout_at(begun + next, changed).await;
        }
    }

    /// Detaches a workload, or only says whether it could.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if there is none.
    pub fn detach_if(&self, id: &WorkloadId, dry_run: DryRun) -> Result<(), Refusal> {
        if !dry_run.0 {
            return self.detach(id);
        }
        match self.state.lock().attached.contains_key(id) {
            true => Ok(()),
            false => Err(unknown(id)),
        }
    }

    /// Detaches a workload and deletes its interface.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if there is none.
    pub fn detach(&self, id: &WorkloadId) -> Result<(), Refusal> {
        if !self.drop_workload(&mut self.state.lock(), id) {
            return Err(unknown(id));
        }
        self.link.send(FromNode::Stopped(id.clone()));
        info!(workload = %id, "detached");
        Ok(())
    }

    /// Gives a workload other labels.
    ///
    /// # Errors
    /// [`Refusal`]; then it has those that it had.
    pub fn relabel(
        &self,
        id: &WorkloadId,
        wanted: Relabel,
        dry_run: DryRun,
    ) -> Result<LocalWorkload, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::Invalid(error.to_string());
        wanted.labels.check_unreserved().map_err(|error| invalid(&error))?;
        let report = {
            let mut state = self.state.lock();
            check_relabel(&state, id, &wanted)?;
            let workload = state.attached.get_mut(id).ok_or_else(|| unknown(id))?;
            if dry_run.0 {
                let mut attachment = workload.attachment.clone();
                attachment.report.labels = wanted.labels;
                return Ok(show(&attachment, Standing::default(), None));
            }
            workload.attachment.report.labels = wanted.labels;
            workload.refused = None;
            let report = workload.attachment.report.clone();
            self.keep(&state, id).map_err(|error| Refusal::Failed(format!("{error:#}")))?;
            report
        };
        info!(workload = %id, labels = %report.labels, "relabelled");
        self.announce(&report);
        let state = self.state.lock();
        let workload = state.attached.get(id).ok_or_else(|| unknown(id))?;
        Ok(self.show(workload))
    }
}

fn check_relabel(state: &State, id: &WorkloadId, wanted: &Relabel) -> Result<(), Refusal> {
    let workload = state.attached.get(id).ok_or_else(|| unknown(id))?;
    if !workload.attachment.measured {
        return Err(Refusal::Invalid(format!("workload {id} was not measured yet; try again")));
    }
    let now = &workload.attachment.report.labels;
    if wanted.instead_of.as_ref().is_some_and(|known| known != now) {
        let text = format!("workload {id} has other labels by now: {now}; read them again");
        return Err(Refusal::Changed(text));
    }
    Ok(())
}

fn owner_of(pid: u32) -> Result<Owner, Refusal> {
    Owner::of(pid)
        .ok_or_else(|| Refusal::Invalid(format!("there is no process {pid} to own the workload")))
}
