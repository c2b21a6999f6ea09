//! Checks of nodes' reports: a node reports only workloads of its own, with addresses, prefixes and
//! keys that nobody else has.

use super::{batch::Batch, prefixes::check_prefix};
use crate::{
    records::{NodeRecord, ReportRecord, WorkloadRef},
    world::{KeyOwner, NetworkState},
};
use ipnet::IpNet;
use meshward_control_proto::WorkloadReport;
use meshward_types::AcceptFrom;

/// The largest number of prefixes behind one workload.
const MAX_PREFIXES: usize = 64;

impl Batch<'_> {
    /// Refuses a report that the node may not make.
    ///
    /// # Errors
    /// The reason, in words.
    pub(super) fn check(&self, node: &NodeRecord, report: &WorkloadReport) -> Result<(), String> {
        let network = &report.network;
        let state =
            self.world.networks.get(network).ok_or(format!("there is no network `{network}`"))?;
        if report.addresses.is_empty() {
            check_serves(node, report)?;
            return Err("it has no address".into());
        }
        self.check_addresses(node, state, report)?;
        self.check_prefixes(node, state, report)?;
        self.check_device(report)?;
        report.labels.check_unreserved().map_err(|error| error.to_string())?;
        AcceptFrom::check_count(&report.accepts).map_err(|error| error.to_string())?;
        match &report.measurement {
            Some(measured) => measured.check(),
            None => Ok(()),
        }
    }

    /// Refuses an id or an address of another workload, and addresses outside the node's blocks.
    fn check_addresses(
        &self,
        node: &NodeRecord,
        state: &NetworkState,
        report: &WorkloadReport,
    ) -> Result<(), String> {
        let (network, blocks) = (&report.network, check_serves(node, report)?);
        let known = self.current(&report.id);
        if known.is_some_and(|known| known.network() != network) {
            return Err(format!("workload id {} is used in another network", report.id));
        }
        if known.is_some_and(|known| *known.node() != node.name) {
            return Err(format!("workload id {} belongs to another node", report.id));
        }
        for address in &report.addresses {
            if !blocks.iter().any(|block| block.contains(address)) {
                return Err(format!("{address} is not in a block of node {}", node.name));
            }
            let before = state.by_address.get(address).filter(|id| !self.gone.contains(*id));
            let owner = self.addresses.get(&(network.clone(), *address)).or(before);
            if let Some(other) = owner.filter(|id| **id != report.id) {
                return Err(format!("{address} belongs to workload {other}"));
            }
        }
        Ok(())
    }

    /// Refuses prefixes that overlap with the network, or are behind another workload of the node.
    fn check_prefixes(
        &self,
        node: &NodeRecord,
        network: &NetworkState,
        report: &WorkloadReport,
    ) -> Result<(), String> {
        if report.prefixes.len() > MAX_PREFIXES {
            return Err(format!("a route has at most {MAX_PREFIXES} prefixes; make several of it"));
        }
        for prefix in &report.prefixes {
            check_prefix(self.world, &report.network, prefix)
                .map_err(|refusal| refusal.to_string())?;
            let mut others = self.behind(network, prefix).filter(|known| known.id() != &report.id);
            if let Some(other) = others.find(|known| *known.node() == node.name) {
                return Err(format!(
                    "{prefix} is behind this node already, as workload {}",
                    other.id()
                ));
            }
        }
        Ok(())
    }

    /// Refuses a device whose key or name belongs to another one.
    fn check_device(&self, report: &WorkloadReport) -> Result<(), String> {
        let Some(key) = &report.device else { return Ok(()) };
        let is_other = |owner: &&KeyOwner| match owner {
            KeyOwner::Device(id) => *id != report.id && !self.gone.contains(id),
            KeyOwner::Node(_) => true,
        };
        if let Some(owner) = self.world.keys.owner(key).filter(is_other) {
            return Err(format!(
                "the key {key} belongs to {owner}; make another pair of keys for this device"
            ));
        }
        if let Some(id) = self.devices.get(key).filter(|id| **id != report.id) {
            return Err(format!(
                "the key {key} belongs to device {id}; make another pair of keys for this device"
            ));
        }
        let has_name = |known: &WorkloadRef| {
            *known.id() != report.id
                && known.device().is_some()
                && (known.network(), known.name()) == (&report.network, &report.name)
        };
        let unchanged = self.world.keys.devices().filter(|id| !self.has_changed(id));
        let unchanged = unchanged.filter_map(|id| self.world.workload(id));
        let new = self.devices.values().filter_map(|id| WorkloadRef::of(self.new.get(id)?));
        match unchanged.chain(new).find(has_name) {
            Some(other) => {
                Err(format!("there is a device `{}` already, {}", report.name, other.id()))
            }
            None => Ok(()),
        }
    }

    /// Returns the reasons for refusing a workload because of others that are admitted: all
    /// gateways of a prefix give it the same labels, those of the first one.
    pub(super) fn prefix_conflicts(&self, node: &NodeRecord, report: &ReportRecord) -> Vec<String> {
        let Some(network) = self.world.networks.get(&report.network) else { return vec![] };
        let is_admitted = |known: &WorkloadRef| matches!(known, WorkloadRef::Admitted(_));
        let conflict = |prefix: &IpNet| {
            let other = self.behind(network, prefix).filter(is_admitted).find(|known| {
                known.id() != &report.id
                    && *known.node() != node.name
                    && *known.labels() != report.labels
            })?;
            Some(format!(
                "{prefix} is behind node {} with other labels ({}): all gateways of a prefix give \
                it the same",
                other.node(),
                other.labels()
            ))
        };
        report.prefixes.iter().filter_map(conflict).collect()
    }
}

/// Returns the node's blocks of a workload's network.
fn check_serves<'a>(node: &'a NodeRecord, report: &WorkloadReport) -> Result<&'a [IpNet], String> {
    let network = &report.network;
    let blocks = node.blocks.get(network).ok_or_else(|| match node.problems.get(network) {
        Some(problem) => problem.clone(),
        None => format!(
            "node {} may not serve network `{network}`: its join token did not name it",
            node.name
        ),
    })?;
    Ok(blocks)
}
