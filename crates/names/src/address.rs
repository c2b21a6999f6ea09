//! Names of addresses: `in-addr.arpa` (RFC 1035 §3.5) and `ip6.arpa` (RFC 3596 §2.5).

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// A name below `in-addr.arpa` or `ip6.arpa`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReverseName {
    /// The addresses that the name stands for.
    pub(crate) net: IpNet,
    /// `true` if labels stand before it that are no part of an address.
    pub(crate) is_below: bool,
}

impl ReverseName {
    /// Reads a name; `None` if it is none of an address.
    pub(crate) fn read(name: &Name) -> Option<Self> {
        let last = name.iter().next_back()?;
        if !last.eq_ignore_ascii_case(b"arpa") {
            return None;
        }
        if let Ok(net) = name.parse_arpa_name() {
            return Some(Self { net, is_below: false });
        }
        let mut rest = name.base_name();
        while rest.num_labels() >= 2 {
            if let Ok(net) = rest.parse_arpa_name() {
                return Some(Self { net, is_below: true });
            }
            rest = rest.base_name();
        }
        None
    }

    /// Returns the name of the zone of a prefix that this name is in: the prefix itself, or, if it
    /// does not end at a label, the part of it around the name.
    pub(crate) fn zone_in(&self, prefix: IpNet) -> Name {
        let bits = if prefix.addr().is_ipv4() { 8 } else { 4 };
        let length = prefix.prefix_len().div_ceil(bits) * bits;
        let name = Name::from(self.net.addr());
        // Two labels are `in-addr.arpa` or `ip6.arpa`.
        name.trim_to(usize::from(length / bits) + 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    fn read(name: &str) -> Option<ReverseName> {
        ReverseName::read(&Name::from_str(name).unwrap())
    }

    #[test]
    fn names_of_addresses_and_of_prefixes_are_read() {
        let of = |net: &str, is_below| Some(ReverseName { net: net.parse().unwrap(), is_below });
        assert_eq!(read("7.1.20.10.in-addr.arpa."), of("10.20.1.7/32", false));
        assert_eq!(read("20.10.IN-ADDR.arpa."), of("10.20.0.0/16", false));
        assert_eq!(read("lb._dns-sd._udp.0.20.10.in-addr.arpa."), of("10.20.0.0/24", true));
        assert_eq!(read("2.4.d.f.ip6.arpa."), of("fd42::/16", false));
        assert_eq!(read("arpa."), None);
        assert_eq!(read("10.example."), None);
    }

    #[test]
    fn the_zone_of_a_prefix_ends_at_a_label() {
        let name = read("7.9.20.10.in-addr.arpa.").unwrap();
        let zone = |prefix: &str| name.zone_in(prefix.parse().unwrap()).to_ascii();
        assert_eq!(zone("10.20.0.0/16"), "20.10.in-addr.arpa.");
        assert_eq!(zone("10.20.8.0/21"), "9.20.10.in-addr.arpa.");
    }
}
