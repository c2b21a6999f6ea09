//! The ACL of a link: the packets that one identity may send to another.

use crate::{
    conduct::OnDeny,
    ports::{PortRange, PortSpec, Protocol},
};
use serde::{Deserialize, Serialize};
use std::fmt;

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

/// The decisions of a link: sorted, merged ranges that do not overlap. An empty ACL denies
/// everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Acl {
    allowed: Vec<AclEntry>,
    /// Ranges that pass only because the policy observes instead of denying; none of them is
    /// allowed.
    observed: Vec<AclEntry>,
    /// Ranges that pass to a quarantined workload, whatever is allowed otherwise.
    forensic: Vec<AclEntry>,
    /// Denied ranges whose rules say `on_deny: reject`.
    rejected: Vec<AclEntry>,
    dropped: Vec<AclEntry>,
    /// The answer to everything else that is denied; `None` for the network's default.
    otherwise: Option<OnDeny>,
}

impl Acl {
    /// Creates an ACL from allowed ranges: sorts them and merges those that touch.
    pub fn new(allowed: Vec<AclEntry>) -> Self {
        Self { allowed: merged(allowed), ..Self::default() }
    }

    /// Adds ranges that pass only because the policy observes them.
    #[must_use]
    pub fn with_observed(self, observed: Vec<AclEntry>) -> Self {
        Self { observed: merged(observed), ..self }
    }

    /// Adds ranges that pass while the destination is quarantined.
    #[must_use]
    pub fn with_forensics(self, forensic: Vec<AclEntry>) -> Self {
        Self { forensic: merged(forensic), ..self }
    }

    /// Sets the answers to denied packets: a reset or ICMP error for those in `rejected`, silence
    /// for those in `dropped`, `otherwise` for the rest.
    #[must_use]
    pub fn with_answers(
        self,
        rejected: Vec<AclEntry>,
        dropped: Vec<AclEntry>,
        otherwise: Option<OnDeny>,
    ) -> Self {
        Self { rejected: merged(rejected), dropped: merged(dropped), otherwise, ..self }
    }

    /// Returns the answer to a denied packet; `None` for the network's default.
    pub fn on_deny(&self, protocol: Protocol, port: u16) -> Option<OnDeny> {
        if holds(&self.dropped, protocol, port) {
            Some(OnDeny::Drop)
        } else if holds(&self.rejected, protocol, port) {
            Some(OnDeny::Reject)
        } else {
            self.otherwise
        }
    }

    /// Returns `true` if the sender of any packet that it denies may get an answer.
    pub fn may_reject(&self) -> bool {
        !self.rejected.is_empty() || self.otherwise == Some(OnDeny::Reject)
    }

    /// Returns the ranges that pass to a quarantined workload.
    pub fn forensic(&self) -> &[AclEntry] {
        &self.forensic
    }

    /// Returns `true` if a packet to `port` may begin a flow to a quarantined workload.
    pub fn allows_forensics(&self, protocol: Protocol, port: u16) -> bool {
        holds(&self.forensic, protocol, port)
    }

    /// Returns the part of this ACL that lies within `ports`.
    #[must_use]
    pub fn within(&self, ports: &[PortSpec]) -> Self {
        let cut = |entries: &[AclEntry]| {
            let pieces = entries.iter().flat_map(|entry| {
                ports.iter().filter_map(|spec| {
                    if spec.protocol.is_some_and(|protocol| protocol != entry.protocol) {
                        return None;
                    }
                    let own = if entry.protocol.has_ports() { spec.ports } else { PortRange::ALL };
                    let (first, last) =
                        (entry.ports.first.max(own.first), entry.ports.last.min(own.last));
                    (first <= last).then_some(AclEntry {
                        protocol: entry.protocol,
                        ports: PortRange { first, last },
                    })
                })
            });
            merged(pieces.collect())
        };
        Self { allowed: cut(&self.allowed), observed: cut(&self.observed), ..self.clone() }
    }

    /// Returns the allowed ranges, sorted by protocol and port.
    pub fn entries(&self) -> &[AclEntry] {
        &self.allowed
    }

    /// Returns the ranges that pass only because the policy observes them.
    pub fn observed(&self) -> &[AclEntry] {
        &self.observed
    }

    /// Returns the denied ranges whose senders get an answer.
    pub fn rejected(&self) -> &[AclEntry] {
        &self.rejected
    }

    /// Returns the denied ranges whose senders get no answer.
    pub fn dropped(&self) -> &[AclEntry] {
        &self.dropped
    }

    /// Returns the answer to everything else that is denied; `None` for the network's default.
    pub fn otherwise(&self) -> Option<OnDeny> {
        self.otherwise
    }

    /// Returns `true` if it is equivalent to having no ACL: nothing passes, and denied packets get
    /// the default answer.
    pub fn is_empty(&self) -> bool {
        self.is_closed()
            && self.rejected.is_empty()
            && self.dropped.is_empty()
            && self.otherwise.is_none()
    }

    /// Returns `true` if nothing may pass.
    pub fn is_closed(&self) -> bool {
        self.allowed.is_empty() && self.observed.is_empty() && self.forensic.is_empty()
    }

    /// Decides about a packet to `port`, which is ignored if `protocol` has no ports.
    pub fn verdict(&self, protocol: Protocol, port: u16) -> Verdict {
        if holds(&self.allowed, protocol, port) {
            Verdict::Allowed
        } else if holds(&self.observed, protocol, port) {
            Verdict::Observed
        } else {
            Verdict::Denied
        }
    }

    /// Returns `true` if a packet to `port` is allowed to begin a flow; a range that is only
    /// observed is not allowed.
    pub fn allows(&self, protocol: Protocol, port: u16) -> bool {
        holds(&self.allowed, protocol, port)
    }

    /// Returns `true` if all of `spec` is allowed.
    pub fn allows_all(&self, spec: PortSpec) -> bool {
        let covers = |protocol: Protocol| {
            let ports = if protocol.has_ports() { spec.ports } else { PortRange::ALL };
            self.allowed.iter().any(|e| {
                e.protocol == protocol && e.ports.first <= ports.first && ports.last <= e.ports.last
            })
        };
        match spec.protocol {
            Some(protocol) => covers(protocol),
            None => Protocol::ALL.into_iter().all(covers),
        }
    }

    /// Returns `true` if the sender of every packet of `spec` would get an answer, were it denied.
    /// `usual` is the network's default.
    pub fn rejects_all(&self, spec: PortSpec, usual: OnDeny) -> bool {
        let protocols =
            Protocol::ALL.into_iter().filter(|own| spec.protocol.is_none_or(|p| p == *own));
        let rejects = |protocol: Protocol| {
            let ports = if protocol.has_ports() { spec.ports } else { PortRange::ALL };
            let overlaps = |entry: &&AclEntry| {
                entry.protocol == protocol
                    && entry.ports.first <= ports.last
                    && ports.first <= entry.ports.last
            };
            if self.dropped.iter().any(|entry| overlaps(&entry)) {
                return false;
            }
            let covers = |e: &AclEntry| e.ports.first <= ports.first && ports.last <= e.ports.last;
            self.otherwise.unwrap_or(usual) == OnDeny::Reject
                || self.rejected.iter().filter(overlaps).any(covers)
        };
        protocols.into_iter().all(rejects)
    }

    /// Returns `true` if any part of `spec` is allowed.
    pub fn allows_some(&self, spec: PortSpec) -> bool {
        self.allowed.iter().any(|e| {
            spec.protocol.is_none_or(|protocol| protocol == e.protocol)
                && (!e.protocol.has_ports()
                    || (e.ports.first <= spec.ports.last && spec.ports.first <= e.ports.last))
        })
    }
}

fn merged(mut entries: Vec<AclEntry>) -> Vec<AclEntry> {
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

fn holds(entries: &[AclEntry], protocol: Protocol, port: u16) -> bool {
    let port = if protocol.has_ports() { port } else { 0 };
    let after = entries.partition_point(|e| (e.protocol, e.ports.first) <= (protocol, port));
    let entry = after.checked_sub(1).map(|at| entries[at]);
    entry.is_some_and(|entry| entry.protocol == protocol && entry.ports.contains(port))
}

impl fmt::Display for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told =
            self.otherwise.filter(|_| !self.allows_all(PortSpec::ANY)).map(
                |on_deny| match on_deny {
                    OnDeny::Drop => "(else dropped)".to_owned(),
                    OnDeny::Reject => "(else rejected)".to_owned(),
                },
            );
        if self.allows_all(PortSpec::ANY) && self.forensic.is_empty() {
            return f.pad("any");
        }
        let name = |e: &AclEntry| match e.protocol {
            Protocol::Other => "other".to_owned(),
            protocol => PortSpec { protocol: Some(protocol), ports: e.ports }.to_string(),
        };
        let everything = |entries: &[AclEntry]| {
            Protocol::ALL
                .into_iter()
                .all(|protocol| entries.contains(&AclEntry { protocol, ports: PortRange::ALL }))
        };
        let allowed = self.allowed.iter().map(name);
        let marked = |entries: &[AclEntry], mark: &str| {
            if everything(entries) {
                vec![format!("any ({mark})")]
            } else {
                entries.iter().map(|entry| format!("{} ({mark})", name(entry))).collect()
            }
        };
        let (observed, forensic) =
            (marked(&self.observed, "observed"), marked(&self.forensic, "forensics"));
        let (rejected, dropped) =
            (marked(&self.rejected, "rejected"), marked(&self.dropped, "dropped"));
        let all =
            allowed.chain(observed).chain(forensic).chain(rejected).chain(dropped).chain(told);
        f.pad(&all.collect::<Vec<_>>().join(" "))
    }
}
