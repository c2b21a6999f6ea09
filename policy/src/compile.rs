//! From rules to the ACL of a pair of label sets.

use crate::{
    decide::{Deciding, Tier, verdict},
    document::{Declarations, Policy, Rule},
};
use meshward_model::{AcceptFrom, Acl, AclEntry, Labels, PortRange, PortSpec, Protocol, Verdict};
use std::collections::BTreeSet;

/// The ACL between two label sets: exactly what [`Policy::decide`] says, for every protocol and port.
///
/// `accepts`: what `to` declares about who reaches it.
pub fn compile(policy: &Policy, from: &Labels, to: &Labels, accepts: &[AcceptFrom]) -> Acl {
    let matching = policy.tiers().filter(|(_, rule)| rule.from.matches(from) && rule.to.matches(to));
    compile_matching(policy, matching.collect(), declared(accepts, from))
}

/// The ports that declarations name for who has these labels; `None` if there is no declaration.
pub(crate) fn declared(accepts: &[AcceptFrom], from: &Labels) -> Option<Vec<PortSpec>> {
    if accepts.is_empty() {
        return None;
    }
    let speaking = accepts.iter().filter(|accept| accept.from.matches(from));
    let mut ports: Vec<PortSpec> = speaking.flat_map(|accept| accept.ports().iter().copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}

/// The same, from the guardrails and rules that are known to match the pair, and the ports that are declared for it.
pub(crate) fn compile_matching(
    policy: &Policy,
    rules: Vec<(Tier, &Rule)>,
    declared: Option<Vec<PortSpec>>,
) -> Acl {
    let opened = match &declared {
        Some(ports) if policy.declarations == Declarations::Open => ports.clone(),
        _ => Vec::new(),
    };
    let deciding = Deciding { mode: policy.mode, rules, opened };
    let (mut allowed, mut observed) = (Vec::new(), Vec::new());
    for protocol in Protocol::ALL {
        for ports in pieces(&deciding, protocol) {
            let entry = AclEntry { protocol, ports };
            match verdict(&deciding, protocol, ports.first) {
                Verdict::Allowed => allowed.push(entry),
                Verdict::Observed => observed.push(entry),
                Verdict::Denied => {}
            }
        }
    }
    let acl = Acl::new(allowed).with_observed(observed);
    let acl = match declared {
        Some(ports) => acl.within(&ports),
        None => acl,
    };
    match deciding.rules.iter().any(|(tier, _)| *tier == Tier::Forensics) {
        true => acl.with_forensics(),
        false => acl,
    }
}

/// Cuts the ports of a protocol where any rule's begin or end: within a piece every port has the same verdict.
fn pieces(deciding: &Deciding, protocol: Protocol) -> Vec<PortRange> {
    if !protocol.has_ports() {
        return vec![PortRange::ALL];
    }
    let specs = deciding.rules.iter().flat_map(|(_, rule)| rule.ports()).chain(&deciding.opened);
    let own = specs.filter(|spec: &&PortSpec| spec.protocol.is_none_or(|p| p == protocol));
    let mut starts = BTreeSet::from([0u32]);
    for spec in own {
        starts.insert(u32::from(spec.ports.first));
        starts.insert(u32::from(spec.ports.last) + 1);
    }
    let end = u32::from(u16::MAX) + 1;
    starts.remove(&end);
    let ends = starts.iter().copied().skip(1).chain([end]);
    starts
        .iter()
        .zip(ends)
        // Both lie below 65536: `starts` came from ports, and `end` is one past the last.
        .map(|(&first, end)| PortRange { first: first as u16, last: (end - 1) as u16 })
        .collect()
}
