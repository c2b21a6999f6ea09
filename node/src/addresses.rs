//! Addresses for workloads, out of the node's blocks.

use ipnet::IpNet;
use meshward_types::NetworkName;
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The largest number of host numbers that are tried; an IPv6 block has more than anyone attaches.
const MOST: u64 = 1 << 20;

/// The error of a block without a free address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the block {} of network {network} on this node is exhausted: {used} addresses are in use; \
    stop workloads, or make networks with wider blocks (`meshctl network create --block ...`)",
    blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
pub(crate) struct Exhausted {
    network: NetworkName,
    blocks: Vec<IpNet>,
    used: usize,
}

/// The allocator of a network's addresses: one of each block, with the same host number in all. It
/// goes round, so an address that was freed comes last, and its next owner is not mistaken for the
/// last one.
#[derive(Debug, Default, Clone)]
pub(crate) struct Allocator {
    last: u64,
}

impl Allocator {
    /// Finds addresses that are not in `used`.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub(crate) fn allocate(
        &mut self,
        network: &NetworkName,
        blocks: &[IpNet],
        used: &HashSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, Exhausted> {
        let exhausted =
            || Exhausted { network: network.clone(), blocks: blocks.to_vec(), used: used.len() };
        let most = blocks.iter().map(|block| hosts(*block)).min().ok_or_else(exhausted)?;
        for step in 0..most {
            let number = 1 + (self.last + step) % most;
            let addresses: Vec<IpAddr> = blocks.iter().map(|block| host(*block, number)).collect();
            if addresses.iter().all(|address| !used.contains(address)) {
                self.last = number;
                return Ok(addresses);
            }
        }
        Err(exhausted())
    }
}

/// Returns the number of workloads that a block has room for: its first and last address stay free,
/// as in an ordinary subnet.
fn hosts(block: IpNet) -> u64 {
    let bits = block.max_prefix_len() - block.prefix_len();
    if bits >= 20 { MOST } else { (1u64 << bits).saturating_sub(2) }
}

fn host(block: IpNet, number: u64) -> IpAddr {
    match block {
        IpNet::V4(block) => Ipv4Addr::from(u32::from(block.network()) + number as u32).into(),
        IpNet::V6(block) => Ipv6Addr::from(u128::from(block.network()) + u128::from(number)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_get_the_same_host_number_and_freed_ones_come_last() {
        let (network, mut allocator) = ("shop".parse().unwrap(), Allocator::default());
        let blocks: Vec<IpNet> =
            vec!["10.42.3.0/29".parse().unwrap(), "fd42::/64".parse().unwrap()];
        let mut used = HashSet::new();
        let first = allocator.allocate(&network, &blocks, &used).unwrap();
        assert_eq!(first, ["10.42.3.1", "fd42::1"].map(|a| a.parse::<IpAddr>().unwrap()));
        for _ in 0..5 {
            let next = allocator.allocate(&network, &blocks, &used).unwrap();
            assert_ne!(next, first, "freed addresses come last");
            used.extend(next);
        }
        assert_eq!(allocator.allocate(&network, &blocks, &used).unwrap(), first);
        used.extend(&first);
        let error = allocator.allocate(&network, &blocks, &used).unwrap_err().to_string();
        assert!(error.contains("10.42.3.0/29") && error.contains("exhausted"), "{error}");
    }
}
