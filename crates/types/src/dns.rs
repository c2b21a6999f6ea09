//! Settings of name resolution in a network: the zone, and the servers for all other names.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

/// Returns the servers that somebody with these addresses can reach: those of the families that
/// they have an address of.
pub fn servers_for(addresses: &[IpAddr], servers: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let is_reached =
        |server: &IpAddr| addresses.iter().any(|own| own.is_ipv4() == server.is_ipv4());
    servers.into_iter().filter(is_reached).collect()
}

/// A domain name without the final dot, in lower case, such as `corp.example` (RFC 1123 §2.1, with
/// the underscore of RFC 8552).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Arc<str>);

/// The longest text of a domain name without its final dot (RFC 1035 §2.3.4).
const MAX_DOMAIN: usize = 253;

impl DomainName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() <= MAX_DOMAIN && name.split('.').all(is_label) {
            return Ok(Self(name.into()));
        }
        let text: String = text.chars().take(80).collect();
        Err(format!("`{text}` is no domain name: write one such as corp.example"))
    }
}

impl TryFrom<String> for DomainName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> String {
        name.0.to_string()
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The transport to a DNS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpstreamTransport {
    /// UDP, and TCP for answers that are too long (RFC 1035 §4.2).
    Plain,
    /// TLS (RFC 7858).
    Tls,
    /// HTTPS (RFC 8484).
    Https,
    /// QUIC (RFC 9250).
    Quic,
}

impl UpstreamTransport {
    /// Returns the port that servers have for it.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Plain => 53,
            Self::Tls | Self::Quic => 853,
            Self::Https => 443,
        }
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::Plain => "udp://",
            Self::Tls => "tls://",
            Self::Https => "https://",
            Self::Quic => "quic://",
        }
    }
}

/// A DNS server, by its address: `9.9.9.9`, `[2620:fe::fe]:53`, `tls://9.9.9.9#dns.quad9.net`,
/// `https://9.9.9.9/dns-query#dns.quad9.net`, `quic://94.140.14.140`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream {
    /// The transport.
    pub transport: UpstreamTransport,
    /// The server's address and port.
    pub address: SocketAddr,
    /// The name in the server's certificate; `None` if the certificate is for the address.
    pub server_name: Option<DomainName>,
    /// The path of requests over HTTPS; empty for other transports.
    pub path: Box<str>,
}

/// The path of requests over HTTPS, if none is given (the example of RFC 8484 §4.1).
const DEFAULT_PATH: &str = "/dns-query";
const MAX_PATH: usize = 256;

impl FromStr for Upstream {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        use UpstreamTransport::{Https, Plain, Quic, Tls};
        let refuse = |why: &str| {
            let text: String = text.chars().take(80).collect();
            format!(
                "`{text}` is no DNS server: {why}; write 10.8.0.53, tls://9.9.9.9#dns.quad9.net, \
                https://9.9.9.9/dns-query#dns.quad9.net or quic://94.140.14.140"
            )
        };
        let found = [Plain, Tls, Https, Quic].into_iter().find_map(|transport| {
            text.strip_prefix(transport.scheme()).map(|rest| (transport, rest))
        });
        let (transport, rest) = match found {
            Some(found) => found,
            None if text.contains("://") => return Err(refuse("its transport is not known")),
            None => (Plain, text),
        };
        let (rest, server_name) = match rest.split_once('#') {
            Some((rest, name)) => (
                rest,
                Some(name.parse::<DomainName>().map_err(|_| {
                    refuse("what follows `#` is not the name in the server's certificate")
                })?),
            ),
            None => (rest, None),
        };
        if server_name.is_some() && transport == Plain {
            return Err(refuse("a server without TLS shows no certificate"));
        }
        let (address, path) = match rest.split_once('/') {
            Some((address, path)) if transport == Https => (address, format!("/{path}")),
            Some(_) => return Err(refuse("only https:// has a path")),
            None if transport == Https => (rest, DEFAULT_PATH.to_owned()),
            None => (rest, String::new()),
        };
        if path.len() > MAX_PATH || path.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(refuse("its path is too long, or has spaces"));
        }
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        let address = address
            .parse::<SocketAddr>()
            .or_else(|_| {
                bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, transport.default_port()))
            })
            .map_err(|_| refuse("it is named by its IP address"))?;
        if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
            return Err(refuse("no server has this address"));
        }
        Ok(Self { transport, address, server_name, path: path.into() })
    }
}

impl TryFrom<String> for Upstream {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> String {
        upstream.to_string()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, address, server_name, path } = self;
        let is_plain = *transport == UpstreamTransport::Plain;
        let scheme = if is_plain { "" } else { transport.scheme() };
        let address = match address.port() == transport.default_port() {
            true => address.ip().to_string(),
            false => address.to_string(),
        };
        let path = if **path == *DEFAULT_PATH { "" } else { path };
        let name = server_name.as_ref().map(|name| format!("#{name}")).unwrap_or_default();
        f.pad(&format!("{scheme}{address}{path}{name}"))
    }
}

/// The settings of name resolution in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSettings {
    /// The zone of workloads' and services' names, which the node answers from its view:
    /// `NAME.NETWORK.ZONE`.
    pub zone: DomainName,
    /// Split zones: the servers for names that end with a suffix.
    pub zones: BTreeMap<DomainName, Vec<Upstream>>,
    /// The servers for all other names; those of the host if it is empty.
    pub upstreams: Vec<Upstream>,
    /// `true` if queries to any address, port 53, are answered as if they came to the resolver
    /// address.
    pub intercept: bool,
}

impl DnsSettings {
    /// The zone, unless another one is set.
    pub const ZONE: &str = "mesh";
}

impl Default for DnsSettings {
    fn default() -> Self {
        let zone = DomainName(Self::ZONE.into());
        Self { zone, zones: BTreeMap::new(), upstreams: vec![], intercept: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_name_is_read_in_lower_case_without_its_final_dot() {
        for (text, name) in [("mesh", "mesh"), ("Corp.Example.", "corp.example"), ("_a.b", "_a.b")]
        {
            assert_eq!(text.parse::<DomainName>().unwrap().as_str(), name);
        }
        let long = vec!["a".repeat(63); 4].join(".");
        for text in ["", ".", "a..b", "-a", "a-.b", "a b", "ä", &long, &"a".repeat(64)] {
            assert!(text.parse::<DomainName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_is_read_and_printed_alike() {
        for text in [
            "10.8.0.53",
            "10.8.0.53:5353",
            "2620:fe::fe",
            "[2620:fe::fe]:5353",
            "tls://9.9.9.9#dns.quad9.net",
            "tls://1.1.1.1",
            "https://9.9.9.9#dns.quad9.net",
            "https://9.9.9.9:8443/q?a=b#dns.quad9.net",
            "quic://94.140.14.140",
        ] {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), text);
        }
        let read = |text: &str| text.parse::<Upstream>().unwrap();
        assert_eq!(read("udp://10.8.0.53"), read("10.8.0.53:53"));
        assert_eq!(read("tls://[2620:fe::fe]"), read("tls://2620:fe::fe"));
        assert_eq!(read("https://9.9.9.9/dns-query"), read("https://9.9.9.9"));
    }

    #[test]
    fn a_server_that_cannot_be_one_is_refused_and_the_error_says_what_to_write() {
        for (text, why) in [
            ("dns.quad9.net", "named by its IP address"),
            ("ftp://9.9.9.9", "transport is not known"),
            ("9.9.9.9#dns.quad9.net", "shows no certificate"),
            ("tls://9.9.9.9#a..b", "name in the server's certificate"),
            ("tls://9.9.9.9/x", "only https:// has a path"),
            ("0.0.0.0", "no server has this address"),
            ("https://9.9.9.9/a b", "has spaces"),
        ] {
            let said = text.parse::<Upstream>().unwrap_err();
            assert!(said.contains(why) && said.contains("write 10.8.0.53"), "{said}");
        }
    }
}
