//! IP address management: each node gets a block of each network's prefixes.

use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

/// Returns the prefix length of a node's block if the operator sets none: /24 and /64 where the
/// prefix is wide enough, otherwise blocks for 16 (IPv4) or 256 (IPv6) nodes.
pub fn default_block(prefix: IpNet) -> u8 {
    let length = prefix.prefix_len();
    match prefix {
        IpNet::V4(_) => (length + 4).clamp(24, 30),
        IpNet::V6(_) if length <= 56 => 64,
        IpNet::V6(_) => (length + 8).min(124),
    }
}

/// Refuses prefixes and block lengths that cannot be used.
///
/// # Errors
/// The reason, in words.
pub fn check(prefix: IpNet, block: u8) -> Result<(), String> {
    if prefix != prefix.trunc() {
        return Err(format!("{prefix} has host bits set; the network is {}", prefix.trunc()));
    }
    let most = if matches!(prefix, IpNet::V4(_)) { 30 } else { 124 };
    if block < prefix.prefix_len() || block > most {
        let least = prefix.prefix_len();
        return Err(format!(
            "a node's block of {prefix} must be from /{least} to /{most}, not /{block}"
        ));
    }
    let unusable = match prefix {
        IpNet::V4(net) => {
            let a = net.addr();
            a.is_loopback()
                || a.is_multicast()
                || a.is_link_local()
                || a.octets()[0] == 0
                || a.octets()[0] >= 240
        }
        IpNet::V6(net) => {
            let a = net.addr();
            a.is_loopback() || a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified()
        }
    };
    if unusable {
        return Err(format!(
            "{prefix} is no range for workloads: use a private one like 10.42.0.0/16 or fd42::/48"
        ));
    }
    Ok(())
}

/// Returns `true` if two prefixes share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Returns the lowest block of `prefix` that is not assigned; `None` if all are.
pub fn free_block(prefix: IpNet, length: u8, assigned: &BTreeSet<IpNet>) -> Option<IpNet> {
    let mut blocks = prefix.subnets(length).ok()?;
    blocks.find(|block| !assigned.contains(block))
}

/// Returns the highest block of `prefix` that is not assigned; `None` if all are, or if it is the
/// only one left for nodes.
pub fn service_block(prefix: IpNet, length: u8, assigned: &BTreeSet<IpNet>) -> Option<IpNet> {
    let count = 1u128.checked_shl(u32::from(length.checked_sub(prefix.prefix_len())?))?;
    // Assigned blocks are skipped one by one, and there are no more of them than this.
    let most = assigned.len() as u128 + 2;
    let mut free = (0..count)
        .rev()
        .take(usize::try_from(most).unwrap_or(usize::MAX))
        .filter_map(|number| nth_block(prefix, length, number))
        .filter(|block| !assigned.contains(block));
    let block = free.next()?;
    let has_nodes = assigned.iter().any(|own| prefix.contains(own));
    (has_nodes || free.next().is_some()).then_some(block)
}

/// Returns a block of a prefix by its number, counted from 0.
fn nth_block(prefix: IpNet, length: u8, number: u128) -> Option<IpNet> {
    let shift = u32::from(prefix.max_prefix_len() - length);
    let address = match prefix {
        IpNet::V4(net) => {
            let offset = u32::try_from(number.checked_shl(shift)?).ok()?;
            Ipv4Addr::from_bits(net.network().to_bits() | offset).into()
        }
        IpNet::V6(net) => {
            Ipv6Addr::from_bits(net.network().to_bits() | number.checked_shl(shift)?).into()
        }
    };
    IpNet::new(address, length).ok()
}

/// Returns the address at which nodes answer DNS, in the first service block of an address family:
/// host number 53, written in the family's way, or the first usable address of a small block.
pub fn resolver_address(block: IpNet) -> IpAddr {
    let number = match block {
        IpNet::V4(_) if block.prefix_len() <= 26 => 53,
        IpNet::V6(_) if block.prefix_len() <= 120 => 0x53,
        _ => 1,
    };
    nth_address(block, number)
}

/// Returns the numbers of the usable addresses of a block, the first 4 billion of them: not 0, which
/// names the block (RFC 950 §2.1) or a router (RFC 4291 §2.6.1), nor IPv4's broadcast address.
pub fn host_numbers(block: IpNet) -> RangeInclusive<u32> {
    let bits = u32::from(block.max_prefix_len() - block.prefix_len());
    let last = 1u32.checked_shl(bits).map_or(u32::MAX, |count| count - 1);
    match block {
        IpNet::V4(_) => 1..=last.saturating_sub(1),
        IpNet::V6(_) => 1..=last,
    }
}

/// Returns an address of a block by its number.
pub fn nth_address(block: IpNet, number: u32) -> IpAddr {
    match block {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | number).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | u128::from(number)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_given_out_lowest_first_until_none_is_left() {
        let mut assigned = BTreeSet::new();
        for expected in ["10.42.0.0/25", "10.42.0.128/25"] {
            let block = free_block(net("10.42.0.0/24"), 25, &assigned).unwrap();
            assert_eq!(block, net(expected));
            assigned.insert(block);
        }
        assert_eq!(free_block(net("10.42.0.0/24"), 25, &assigned), None);
    }

    #[test]
    fn services_get_the_highest_free_block_and_leave_one_to_nodes() {
        let mut assigned = BTreeSet::new();
        for expected in [Some("10.42.0.192/26"), Some("10.42.0.128/26"), Some("10.42.0.64/26")] {
            let block = service_block(net("10.42.0.0/24"), 26, &assigned);
            assert_eq!(block, expected.map(net));
            assigned.extend(block);
        }
        assert_eq!(service_block(net("10.42.0.0/24"), 24, &BTreeSet::new()), None);
        for (prefix, length, block) in [
            ("fd00::/8", 64, "fdff:ffff:ffff:ffff::/64"),
            ("::/0", 124, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"),
            ("10.0.0.0/8", 30, "10.255.255.252/30"),
        ] {
            let found = service_block(net(prefix), length, &BTreeSet::new());
            assert_eq!(found, Some(net(block)), "{prefix}");
        }
    }

    #[test]
    fn the_resolver_has_number_53_where_the_block_is_wide_enough() {
        for (block, address) in [
            ("10.42.255.0/24", "10.42.255.53"),
            ("10.42.255.192/26", "10.42.255.245"),
            ("10.42.0.240/28", "10.42.0.241"),
            ("fd42:0:0:ffff::/64", "fd42:0:0:ffff::53"),
            ("fd42::ff00/124", "fd42::ff01"),
        ] {
            assert_eq!(resolver_address(net(block)).to_string(), address, "{block}");
        }
    }

    #[test]
    fn default_blocks_fit_their_prefix() {
        for (prefix, block) in [
            ("10.0.0.0/8", 24),
            ("10.42.0.0/16", 24),
            ("10.42.0.0/24", 28),
            ("fd42::/48", 64),
            ("fd42::/64", 72),
        ] {
            assert_eq!(default_block(net(prefix)), block, "{prefix}");
            check(net(prefix), block).unwrap();
        }
    }

    #[test]
    fn unusable_prefixes_are_refused() {
        for (prefix, block) in [
            ("127.0.0.0/8", 24),
            ("224.0.0.0/8", 24),
            ("fe80::/64", 80),
            ("10.42.0.1/16", 24),
            ("10.42.0.0/16", 8),
        ] {
            assert!(check(net(prefix), block).is_err(), "{prefix}/{block}");
        }
    }
}
