//! The workloads of this node.

use super::{
    local_entry::LocalEntry,
    state::{Holder, LocalGateway, Tables},
};
use crate::{
    config::WorkloadConfig,
    index::{PeerIndex, WorkloadIndex},
    owner::QuotaOwner,
    rules::Party,
    workload::LocalWorkload,
};
use meshward_types::WorkloadId;
use std::net::IpAddr;

impl Tables {
    /// Adds a workload of this node.
    pub(crate) fn add_workload(&mut self, workload: LocalWorkload) -> WorkloadIndex {
        let free = self.locals.iter().position(Option::is_none);
        let index = WorkloadIndex::of_position(free.unwrap_or(self.locals.len()));
        let claimant = self.next_claimant();
        for address in &workload.addresses {
            self.addresses.put(*address, claimant, Holder::Local(index), Holder::outranks);
        }
        for prefix in &workload.prefixes {
            let gateway = LocalGateway { claimant, workload: index };
            self.local_prefixes.add(*prefix, gateway, |gateway| gateway.claimant);
        }
        self.local_ids.insert(workload.id.clone(), index);
        let owner = QuotaOwner::Workload(index);
        let known = self.workloads.get(&workload.id);
        let admitted = known.and_then(|known| self.admission_of(&known.config, &workload, owner));
        let local = Some(LocalEntry {
            workload,
            owner,
            claimant,
            admitted,
            device: None,
            is_quarantined_locally: false,
        });
        match self.locals.get_mut(index.position()) {
            Some(free) => *free = local,
            None => self.locals.push(local),
        }
        self.rules.begin_generation();
        index
    }

    /// Makes a workload of this node a device. Returns the peer that it is.
    pub(crate) fn make_device(&mut self, workload: WorkloadIndex) -> PeerIndex {
        let free = self.free_peers.pop();
        let peer = free.unwrap_or_else(|| {
            self.peers.push(None);
            PeerIndex::of_position(self.peers.len() - 1)
        });
        if let Some(local) = self.local_mut(workload) {
            local.device = Some(peer);
        }
        self.devices.insert(peer, workload);
        peer
    }

    /// Returns the device that a peer is.
    #[inline]
    pub(crate) fn device_at(&self, peer: PeerIndex) -> Option<WorkloadIndex> {
        if self.devices.is_empty() { None } else { self.devices.get(&peer).copied() }
    }

    /// Returns the devices, with the peers that they are.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (PeerIndex, &WorkloadId)> {
        self.devices
            .iter()
            .filter_map(|(peer, workload)| Some((*peer, &self.local(*workload)?.workload.id)))
    }

    /// Removes a workload of this node. Returns the peer that it was, if it was a device.
    pub(crate) fn remove_workload(&mut self, workload: WorkloadIndex) -> Option<PeerIndex> {
        let local = self.locals.get_mut(workload.position()).and_then(Option::take)?;
        if let Some(peer) = local.device {
            self.devices.remove(&peer);
            self.free_peers.push(peer);
        }
        if self.local_ids.get(&local.workload.id) == Some(&workload) {
            self.local_ids.remove(&local.workload.id);
        }
        for address in &local.workload.addresses {
            self.addresses.remove(address, local.claimant);
        }
        for prefix in &local.workload.prefixes {
            self.local_prefixes.remove(*prefix, |own| own.claimant == local.claimant);
        }
        self.rules.learnt_names().forget(local.owner);
        self.rules.begin_generation();
        local.device
    }

    /// Quarantines a workload by the node's own decision, or ends that quarantine.
    pub(crate) fn quarantine_locally(&mut self, workload: WorkloadIndex, is_quarantined: bool) {
        if let Some(local) = self.local_mut(workload) {
            local.is_quarantined_locally = is_quarantined;
            self.rules.begin_generation();
        }
    }

    /// Applies the coordinator's description of a workload, if it is one of this node.
    pub(super) fn update_admission(&mut self, id: &WorkloadId, config: Option<&WorkloadConfig>) {
        let Some(&index) = self.local_ids.get(id) else { return };
        let admitted = config.and_then(|config| {
            let local = self.local(index)?;
            self.admission_of(config, &local.workload, local.owner)
        });
        if let Some(local) = self.local_mut(index) {
            local.admitted = admitted;
        }
    }

    /// Returns the party that a workload is by the coordinator's word, which counts only for this
    /// node and these addresses.
    fn admission_of(
        &self,
        config: &WorkloadConfig,
        local: &LocalWorkload,
        owner: QuotaOwner,
    ) -> Option<Party> {
        let is_same = config.node == self.node
            && config.addresses == local.addresses
            && config.prefixes == local.prefixes;
        is_same.then(|| Party::of_workload(config, owner))
    }

    /// Returns a workload of this node.
    #[inline]
    pub(crate) fn local(&self, workload: WorkloadIndex) -> Option<&LocalEntry> {
        self.locals.get(workload.position())?.as_ref()
    }

    pub(super) fn local_mut(&mut self, workload: WorkloadIndex) -> Option<&mut LocalEntry> {
        self.locals.get_mut(workload.position())?.as_mut()
    }

    /// Returns the workload of this node that has an address, or behind which it lies.
    pub(crate) fn local_at(&self, address: IpAddr) -> Option<(WorkloadIndex, &LocalEntry)> {
        let behind =
            || Some(self.gateways(&self.local_prefixes, address)?.gateways.first()?.workload);
        let own = match self.addresses.get(&address) {
            Some(Holder::Local(workload)) => Some(*workload),
            _ => None,
        };
        let workload = own.or_else(behind)?;
        Some((workload, self.local(workload)?))
    }
}
