//! The ACL of a link: the packets that one identity may send to another.

use crate::{
    acl_entry::{AclEntry, Verdict, holds, merged},
    conduct::OnDeny,
    outside::{Effect, Outside, OutsideTarget},
    ports::{PortRange, PortSpec, Protocol},
};
use serde::{Deserialize, Serialize};
use std::fmt;

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
    /// The rules about what is behind the destination, an egress gateway, if any of them names
    /// addresses there. Then they decide, and not the ranges, which are those of all addresses.
    outside: Option<Box<Outside>>,
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

    /// Adds the rules about what is behind the destination, an egress gateway.
    #[must_use]
    pub fn with_outside(self, outside: Option<Outside>) -> Self {
        Self { outside: outside.map(Box::new), ..self }
    }

    /// Returns the rules about what is behind the destination, if any of them names addresses
    /// there.
    pub fn outside(&self) -> Option<&Outside> {
        self.outside.as_deref()
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
            && self.outside.is_none()
            && self.rejected.is_empty()
            && self.dropped.is_empty()
            && self.otherwise.is_none()
    }

    /// Returns `true` if nothing may pass.
    pub fn is_closed(&self) -> bool {
        self.allowed.is_empty()
            && self.observed.is_empty()
            && self.forensic.is_empty()
            && !self.outside().is_some_and(Outside::is_open)
    }

    /// Decides about a packet to an address behind the destination. `is_at`: `true` if the address
    /// is one of a target's.
    pub fn verdict_on(
        &self,
        protocol: Protocol,
        port: u16,
        is_at: impl Fn(&OutsideTarget) -> bool,
    ) -> Verdict {
        match &self.outside {
            Some(outside) => outside.verdict(protocol, port, is_at),
            None => self.verdict(protocol, port),
        }
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
        let outside = self.outside.iter().flat_map(|outside| &outside.rules);
        let outside = outside.filter(|rule| !rule.targets.is_empty()).map(|rule| {
            let ports: Vec<String> = rule.ports.iter().map(name).collect();
            let ports = if everything(&rule.ports) { "any".to_owned() } else { ports.join(" ") };
            let mark = match rule.effect {
                Effect::Allow => "",
                Effect::Deny => "not ",
                Effect::Observe => "observed ",
            };
            let targets: Vec<String> = rule.targets.iter().map(ToString::to_string).collect();
            format!("{ports} ({mark}to {})", targets.join(", "))
        });
        let all = allowed
            .chain(observed)
            .chain(forensic)
            .chain(rejected)
            .chain(dropped)
            .chain(outside)
            .chain(told);
        f.pad(&all.collect::<Vec<_>>().join(" "))
    }
}
