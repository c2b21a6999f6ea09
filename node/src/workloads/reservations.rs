//! Addresses: which come next, and those that are kept for workloads that are not there yet.

use super::state::{State, Workloads};
use crate::{addresses::Allocator, refusal::Refusal};
use ipnet::IpNet;
use meshward_types::NetworkName;
use std::{collections::HashSet, net::IpAddr};

/// Addresses that are reserved for a workload which is not there yet.
pub(super) type Reserved = Vec<(NetworkName, IpAddr)>;

impl Workloads {
    /// Reserves an address of a network in the node's block: the wanted one, or else the next of
    /// the family.
    ///
    /// # Errors
    /// [`Refusal`] if there is none, or the wanted one is not to be had.
    pub async fn reserve(
        &self,
        network: &NetworkName,
        ipv6: bool,
        wanted: Option<IpAddr>,
    ) -> Result<IpAddr, Refusal> {
        self.enforcement.wait_served(network).await;
        let blocks = self.enforcement.network(network)?.blocks;
        let blocks: Vec<_> =
            blocks.into_iter().filter(|block| block.addr().is_ipv6() == ipv6).collect();
        let mut state = self.state.lock();
        let address = match wanted {
            None => self.allocate(&mut state, network, &blocks)?.pop().ok_or_else(|| {
                let family = if ipv6 { "IPv6" } else { "IPv4" };
                Refusal::Invalid(format!("network {network} has no {family} prefix"))
            })?,
            Some(address) => {
                self.check_free(&state, network, &blocks, address)?;
                address
            }
        };
        state.reserved.insert((network.clone(), address));
        Ok(address)
    }

    fn check_free(
        &self,
        state: &State,
        network: &NetworkName,
        blocks: &[IpNet],
        address: IpAddr,
    ) -> Result<(), Refusal> {
        if !blocks.iter().any(|block| block.contains(&address)) {
            let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
            return Err(Refusal::Invalid(format!(
                "{address} is not in this node's block of network {network}, {}; ask for an \
                address in there, or for none",
                blocks.join(", ")
            )));
        }
        if self.used_addresses(state, network).contains(&address) {
            return Err(Refusal::Invalid(format!(
                "{address} is in use; ask for another, or for none"
            )));
        }
        Ok(())
    }

    /// Reserves addresses of a workload that is about to be detached.
    pub fn reserve_all(&self, network: &NetworkName, addresses: &[IpAddr]) {
        let reserved = addresses.iter().map(|address| (network.clone(), *address));
        self.state.lock().reserved.extend(reserved);
    }

    /// Gives a reserved address back.
    pub fn release(&self, network: &NetworkName, address: IpAddr) {
        self.state.lock().reserved.remove(&(network.clone(), address));
    }

    /// Reserves addresses again that were reserved before the daemon's restart, but those of
    /// workloads that are there.
    pub fn restore_reserved(&self, addresses: impl IntoIterator<Item = (NetworkName, IpAddr)>) {
        let mut state = self.state.lock();
        let attached: HashSet<_> = state
            .attached
            .values()
            .flat_map(|workload| {
                let report = &workload.attachment.report;
                report.addresses.iter().map(|address| (report.network.clone(), *address))
            })
            .collect();
        state.reserved.extend(addresses.into_iter().filter(|address| !attached.contains(address)));
    }

    /// Finds an address in each block of a network that nobody has, and reserves it for as long as
    /// it takes to attach.
    pub(super) fn allocate_reserved(
        &self,
        state: &mut State,
        network: &NetworkName,
        blocks: &[IpNet],
    ) -> Result<(Vec<IpAddr>, Reserved), Refusal> {
        let addresses = self.allocate(state, network, blocks)?;
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
        if self.enforcement.endpoint(network).is_none() {
            return Err(Refusal::Failed(format!("the endpoint of {network} does not run")));
        }
        let used = self.used_addresses(state, network);
        let allocator = state.allocators.entry(network.clone()).or_default();
        allocator
            .allocate(network, blocks, &used)
            .map_err(|error| Refusal::Invalid(error.to_string()))
    }

    /// Returns which addresses of a network come next.
    pub(super) fn allocator(&self, network: &NetworkName) -> Allocator {
        self.state.lock().allocators.get(network).cloned().unwrap_or_default()
    }

    /// The addresses that cannot be given out: those of the workloads, those that are reserved, and
    /// those that the coordinator still has for workloads that are gone.
    fn used_addresses(&self, state: &State, network: &NetworkName) -> HashSet<IpAddr> {
        let mut used = self.enforcement.own_addresses(network);
        let attached = state.attached.values().map(|workload| &workload.attachment.report);
        let attached = attached.filter(|report| report.network == *network);
        used.extend(attached.flat_map(|report| &report.addresses));
        let reserved = state.reserved.iter().filter(|(name, _)| name == network);
        used.extend(reserved.map(|(_, address)| address));
        used
    }
}
