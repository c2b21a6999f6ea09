//! IP address management: each node gets a block of each network's prefixes.

use ipnet::IpNet;
use std::collections::BTreeSet;

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
