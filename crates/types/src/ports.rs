//! Protocols and ports, as rules and packets have them.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The classes of traffic that policy distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP (IP protocol 6).
    Tcp,
    /// UDP (17).
    Udp,
    /// SCTP (132).
    Sctp,
    /// ICMP (1) for IPv4 and `ICMPv6` (58) for IPv6: one class, so that a rule means the same in
    /// both address families.
    Icmp,
    /// Every other IP protocol; only `any` matches it.
    Other,
}

impl Protocol {
    /// Every class, in the order of ACL entries.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp, Self::Other];

    /// Returns the class of an IP protocol number (IANA "Assigned Internet Protocol Numbers").
    pub fn from_ip(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            1 | 58 => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// Returns `true` if the protocol has ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        })
    }
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port, at least `first`.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// Returns `true` if `port` is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// The traffic that a rule allows or denies: `tcp/8080`, `udp/5000-5999`, `tcp`, `icmp`, `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSpec {
    /// The protocol; `None` for `any`.
    pub protocol: Option<Protocol>,
    /// The destination ports; [`PortRange::ALL`] if the protocol has none.
    pub ports: PortRange,
}

/// The error for text that names no protocol and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not a port: {why}; write tcp/8080, udp/5000-5999, tcp, sctp/3868, icmp or any"
)]
pub struct BadPort {
    given: String,
    why: String,
}

impl PortSpec {
    /// Every protocol and port.
    pub const ANY: Self = Self { protocol: None, ports: PortRange::ALL };

    /// Returns `true` if the spec matches a packet of `protocol` to `port`.
    pub fn matches(self, protocol: Protocol, port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
            && (!protocol.has_ports() || self.ports.contains(port))
    }
}

impl FromStr for PortSpec {
    type Err = BadPort;
    fn from_str(text: &str) -> Result<Self, BadPort> {
        let bad = |why: String| BadPort { given: text.chars().take(80).collect(), why };
        let (name, ports) = match text.split_once('/') {
            Some((name, ports)) => (name, Some(ports)),
            None => (text, None),
        };
        let protocol = match name {
            "any" => None,
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            "sctp" => Some(Protocol::Sctp),
            "icmp" => Some(Protocol::Icmp),
            _ => return Err(bad(format!("no protocol is called `{name}`"))),
        };
        let Some(ports) = ports else {
            return Ok(Self { protocol, ports: PortRange::ALL });
        };
        if !protocol.is_some_and(Protocol::has_ports) {
            return Err(bad(format!("{name} has no ports")));
        }
        let number = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| bad(format!("`{text}` is not a number from 0 to 65535")))
        };
        let (first, last) = match ports.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(ports)?, number(ports)?),
        };
        if first > last {
            return Err(bad(format!("the range {first}-{last} runs backwards")));
        }
        Ok(Self { protocol, ports: PortRange { first, last } })
    }
}

impl TryFrom<String> for PortSpec {
    type Error = BadPort;
    fn try_from(text: String) -> Result<Self, BadPort> {
        text.parse()
    }
}

impl From<PortSpec> for String {
    fn from(spec: PortSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(protocol) = self.protocol else { return f.pad("any") };
        let text = match self.ports {
            PortRange::ALL => protocol.to_string(),
            PortRange { first, last } if first == last => format!("{protocol}/{first}"),
            PortRange { first, last } => format!("{protocol}/{first}-{last}"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_printed_alike() {
        for text in ["any", "tcp", "tcp/8080", "udp/5000-5999", "sctp/3868", "icmp"] {
            assert_eq!(text.parse::<PortSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_port_says_why() {
        for (text, why) in [
            ("tpc/80", "no protocol"),
            ("icmp/8", "has no ports"),
            ("tcp/70000", "0 to 65535"),
            ("tcp/9-1", "backwards"),
            ("any/1", "has no ports"),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
