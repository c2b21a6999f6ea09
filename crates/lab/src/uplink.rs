//! Uplinks of sites: the NATs, firewalls and bad links between a site and the internet.

use std::{fmt, net::Ipv4Addr};

/// The nftables rules of [`Uplink::OneWay`], on the host: no other node's packets come in.
pub(crate) const ONE_WAY: &str = "table inet deaf {
chain in {
type filter hook input priority 0
iifname eth0 ip saddr != 198.18.1.2 drop
iifname eth0 meta nfproto ipv6 udp dport 51820-51900 drop
}
}
";
/// The nftables rules of [`Uplink::TcpOnly`], on the host, beside those of a firewall.
pub(crate) const NO_UDP: &str = "table inet blocked {
chain out {
type filter hook output priority 0
oifname eth0 meta l4proto udp drop
}
}
";
/// The nftables rules of [`Uplink::Lossy`], on the host.
pub(crate) const LOSSY: &str = "table inet lossy {
chain in {
type filter hook input priority 0
iifname eth0 numgen random mod 100 < 3 drop
}
chain out {
type filter hook output priority 0
oifname eth0 numgen random mod 100 < 3 drop
}
}
";

/// An uplink: everything between a site and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    /// A public address, and no filter.
    Open,
    /// A public address behind a stateful firewall: address- and port-dependent filtering.
    Firewall,
    /// A router with network address translation.
    Nat(NatProfile),
    /// Two NATs with [`NatProfile::EIM_APDF`], one behind the other, as with a carrier's NAT.
    DoubleNat,
    /// A firewall that passes only TCP connections from within.
    TcpOnly,
    /// A firewall that passes everything outwards, and inwards only what the coordinator sends.
    OneWay,
    /// A link that loses 3 % of all packets in each direction.
    Lossy,
    /// A link of 20 Mbit/s outwards, with a queue of 50 ms.
    Slow,
    /// A link with an MTU of 1280 bytes that drops longer packets and all fragments without an
    /// ICMP error.
    LowMtu,
}

/// The behaviour of a NAT in the terms of RFC 4787. Ports are not preserved where mapping depends
/// on the destination, and no NAT here hairpins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatProfile {
    /// The packets of an inner socket that leave from the same outer port (RFC 4787 §4.1).
    pub mapping: NatBehavior,
    /// The packets to an outer port that are let in (RFC 4787 §5).
    pub filtering: NatBehavior,
}

/// The part of a remote endpoint that a NAT's mapping or filtering depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatBehavior {
    /// Nothing: all remote endpoints are treated alike.
    EndpointIndependent,
    /// Their address and port.
    AddressAndPortDependent,
}

impl NatProfile {
    /// Endpoint-independent mapping and filtering ("full cone").
    pub const EIM_EIF: Self = Self {
        mapping: NatBehavior::EndpointIndependent,
        filtering: NatBehavior::EndpointIndependent,
    };
    /// Endpoint-independent mapping, address- and port-dependent filtering ("port-restricted
    /// cone").
    pub const EIM_APDF: Self = Self {
        mapping: NatBehavior::EndpointIndependent,
        filtering: NatBehavior::AddressAndPortDependent,
    };
    /// Address- and port-dependent mapping and filtering ("symmetric").
    pub const APDM_APDF: Self = Self {
        mapping: NatBehavior::AddressAndPortDependent,
        filtering: NatBehavior::AddressAndPortDependent,
    };

    /// Returns the nftables rules of a NAT with one `host` behind it. They filter nothing: the
    /// gateway also drops what is unsolicited, which forwarded ports pass by.
    pub(crate) fn rules(self, host: Ipv4Addr) -> String {
        // Linux gives each connection of a socket the socket's own port if it can, and with
        // `fully-random` another one each time.
        let masquerade = match self.mapping {
            NatBehavior::EndpointIndependent => "masquerade",
            NatBehavior::AddressAndPortDependent => "masquerade fully-random",
        };
        let forwarded = match self.filtering {
            NatBehavior::EndpointIndependent => format!(
                "chain in {{
type nat hook prerouting priority -100
iifname eth0 udp dport 51820-51900 dnat to {host}
}}
"
            ),
            NatBehavior::AddressAndPortDependent => String::new(),
        };
        format!(
            "table ip nat {{
chain out {{
type nat hook postrouting priority 100
oifname eth0 {masquerade}
}}
{forwarded}}}
"
        )
    }
}

impl Uplink {
    /// All uplinks, in the order of the table in docs/connectivity.md.
    pub const ALL: [Self; 11] = [
        Self::Open,
        Self::Firewall,
        Self::Nat(NatProfile::EIM_EIF),
        Self::Nat(NatProfile::EIM_APDF),
        Self::DoubleNat,
        Self::Nat(NatProfile::APDM_APDF),
        Self::TcpOnly,
        Self::OneWay,
        Self::Lossy,
        Self::Slow,
        Self::LowMtu,
    ];

    /// Returns the profiles of the NATs on the way, the outermost first.
    #[must_use]
    pub fn nats(&self) -> Vec<NatProfile> {
        match self {
            Self::Nat(profile) => vec![*profile],
            Self::DoubleNat => vec![NatProfile::EIM_APDF; 2],
            _ => Vec::new(),
        }
    }
}

/// The name in the table of docs/connectivity.md.
impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Firewall => f.write_str("firewall"),
            Self::Nat(profile) => write!(f, "nat-{profile}"),
            Self::DoubleNat => f.write_str("double-nat"),
            Self::TcpOnly => f.write_str("tcp-only"),
            Self::OneWay => f.write_str("one-way"),
            Self::Lossy => f.write_str("lossy"),
            Self::Slow => f.write_str("slow"),
            Self::LowMtu => f.write_str("low-mtu"),
        }
    }
}

/// The usual abbreviations, such as `eim-apdf`.
impl fmt::Display for NatProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |behavior| match behavior {
            NatBehavior::EndpointIndependent => "ei",
            NatBehavior::AddressAndPortDependent => "apd",
        };
        write!(f, "{}m-{}f", name(self.mapping), name(self.filtering))
    }
}
