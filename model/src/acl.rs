//! The ACL of a link: what one identity may send to another.

use crate::ports::{PortRange, PortSpec, Protocol};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One allowed range. All else is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AclEntry {
    /// The protocol that is allowed.
    pub protocol: Protocol,
    /// The destination ports; [`PortRange::ALL`] where the protocol has none.
    pub ports: PortRange,
}

/// What a link lets pass: sorted, merged ranges without overlap. Empty lets nothing pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Acl(Vec<AclEntry>);

impl Acl {
    /// Makes the normal form of `entries`: sorted, and touching ranges merged.
    pub fn new(mut entries: Vec<AclEntry>) -> Self {
        entries.sort_unstable();
        let mut merged: Vec<AclEntry> = Vec::with_capacity(entries.len());
        for entry in entries {
            match merged.last_mut() {
                Some(last)
                    if last.protocol == entry.protocol
                        && entry.ports.first <= last.ports.last.saturating_add(1) =>
                {
                    last.ports.last = last.ports.last.max(entry.ports.last);
                }
                _ => merged.push(entry),
            }
        }
        Self(merged)
    }

    /// The allowed ranges, sorted by protocol and port.
    pub fn entries(&self) -> &[AclEntry] {
        &self.0
    }

    /// Whether nothing may pass.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a packet to `port` may begin a flow; `port` is ignored where `protocol` has none.
    pub fn allows(&self, protocol: Protocol, port: u16) -> bool {
        let port = if protocol.has_ports() { port } else { 0 };
        let after = self.0.partition_point(|e| (e.protocol, e.ports.first) <= (protocol, port));
        after
            .checked_sub(1)
            .map(|at| self.0[at])
            .is_some_and(|entry| entry.protocol == protocol && entry.ports.contains(port))
    }

    /// Whether all of `spec` is allowed.
    pub fn allows_all(&self, spec: PortSpec) -> bool {
        let covers = |protocol: Protocol| {
            let ports = if protocol.has_ports() { spec.ports } else { PortRange::ALL };
            self.0
                .iter()
                .any(|e| e.protocol == protocol && e.ports.first <= ports.first && ports.last <= e.ports.last)
        };
        match spec.protocol {
            Some(protocol) => covers(protocol),
            None => Protocol::ALL.into_iter().all(covers),
        }
    }

    /// Whether anything of `spec` is allowed.
    pub fn allows_some(&self, spec: PortSpec) -> bool {
        self.0.iter().any(|e| {
            spec.protocol.is_none_or(|protocol| protocol == e.protocol)
                && (!e.protocol.has_ports()
                    || (e.ports.first <= spec.ports.last && spec.ports.first <= e.ports.last))
        })
    }
}

impl fmt::Display for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.allows_all(PortSpec::ANY) {
            return f.pad("any");
        }
        let name = |e: &AclEntry| match e.protocol {
            Protocol::Other => "other".to_owned(),
            protocol => PortSpec { protocol: Some(protocol), ports: e.ports }.to_string(),
        };
        f.pad(&self.0.iter().map(name).collect::<Vec<_>>().join(" "))
    }
}
