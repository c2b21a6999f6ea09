//! Ranges of ports, of which ACLs are made, and verdicts.

use crate::ports::{PortRange, PortSpec, Protocol};
use serde::{Deserialize, Serialize};

/// One range of ports of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AclEntry {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination ports; [`PortRange::ALL`] where the protocol has none.
    pub ports: PortRange,
}

/// The decision about a packet that would begin a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Allowed,
    /// It passes, and counts as one that would be denied.
    Observed,
    /// It is dropped.
    Denied,
}

/// Returns the ranges of ports of these specifications, sorted and merged.
pub fn entries_of(specs: &[PortSpec]) -> Vec<AclEntry> {
    let of_protocol = |protocol: Protocol| {
        let own = specs.iter().filter(move |spec| spec.protocol.is_none_or(|own| own == protocol));
        own.map(move |spec| AclEntry {
            protocol,
            ports: if protocol.has_ports() { spec.ports } else { PortRange::ALL },
        })
    };
    merged(Protocol::ALL.into_iter().flat_map(of_protocol).collect())
}

/// Sorts ranges and merges those that touch.
pub(crate) fn merged(mut entries: Vec<AclEntry>) -> Vec<AclEntry> {
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
    merged
}

/// Returns `true` if a port, which is ignored if `protocol` has none, lies in one of sorted ranges.
pub(crate) fn holds(entries: &[AclEntry], protocol: Protocol, port: u16) -> bool {
    let port = if protocol.has_ports() { port } else { 0 };
    let after = entries.partition_point(|e| (e.protocol, e.ports.first) <= (protocol, port));
    let entry = after.checked_sub(1).map(|at| entries[at]);
    entry.is_some_and(|entry| entry.protocol == protocol && entry.ports.contains(port))
}
