//! From rules to the ACL of a pair of label sets.

use crate::{
    decide::{Deciding, Tier, is_lifted},
    document::{Action, Declarations, Mode, Policy, Rule},
};
use meshward_model::{AcceptFrom, Acl, AclEntry, Labels, PortRange, PortSpec, Protocol, Verdict};

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
///
/// One sweep over the ends of all port ranges: the cost grows with their number, and hardly faster.
pub(crate) fn compile_matching(
    policy: &Policy,
    rules: Vec<(Tier, &Rule)>,
    declared: Option<Vec<PortSpec>>,
) -> Acl {
    let opened = match &declared {
        Some(ports) if policy.declarations == Declarations::Open => ports.clone(),
        _ => Vec::new(),
    };
    let is_forensic = rules.iter().any(|(tier, _)| *tier == Tier::Forensics);
    let deciding = Deciding { mode: policy.mode, rules, opened };
    let speakers = speakers(&deciding);
    let (mut allowed, mut observed) = (Vec::new(), Vec::new());
    for protocol in Protocol::ALL {
        sweep(&speakers, protocol, |ports, counts| {
            let entry = AclEntry { protocol, ports };
            match counts.verdict(policy.mode) {
                Verdict::Allowed => allowed.push(entry),
                Verdict::Observed => observed.push(entry),
                Verdict::Denied => {}
            }
        });
    }
    let acl = Acl::new(allowed).with_observed(observed);
    let acl = match declared {
        Some(ports) => acl.within(&ports),
        None => acl,
    };
    if is_forensic { acl.with_forensics() } else { acl }
}

/// Who speaks of ports, in the order in which they decide: see [`Counts::verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Speaker {
    guardrail: bool,
    denies: bool,
    /// What it says is observed, not enforced.
    lifted: bool,
}

/// Every port that a rule speaks of, and those that the destination opens (`None`).
fn speakers<'a>(deciding: &'a Deciding<'a>) -> Vec<(Option<Speaker>, &'a PortSpec)> {
    let mut all = Vec::new();
    for (tier, rule) in &deciding.rules {
        if *tier == Tier::Forensics {
            continue;
        }
        let speaker = Speaker {
            guardrail: *tier == Tier::Guardrail,
            denies: rule.action() == Action::Deny,
            lifted: is_lifted(deciding.mode, *tier, rule),
        };
        all.extend(rule.ports().iter().map(|spec| (Some(speaker), spec)));
    }
    all.extend(deciding.opened.iter().map(|spec| (None, spec)));
    all
}

/// How many speak of a port: `[guardrail][denies][lifted]`, and how many open it.
#[derive(Debug, Default)]
struct Counts {
    speaking: [[[u32; 2]; 2]; 2],
    opening: u32,
}

impl Counts {
    fn count(&mut self, speaker: Option<Speaker>, begins: bool) {
        let count = match speaker {
            Some(Speaker { guardrail, denies, lifted }) => {
                &mut self.speaking[usize::from(guardrail)][usize::from(denies)][usize::from(lifted)]
            }
            None => &mut self.opening,
        };
        *count = if begins { *count + 1 } else { *count - 1 };
    }

    /// What those decide that count: `None` if none of them speaks.
    fn decision(&self, lifted_count: bool) -> Option<bool> {
        let any = |guardrail: usize, denies: usize| {
            let [firm, lifted] = self.speaking[guardrail][denies];
            firm > 0 || (lifted_count && lifted > 0)
        };
        for guardrail in [1, 0] {
            for denies in [1, 0] {
                if any(guardrail, denies) {
                    return Some(denies == 0);
                }
            }
        }
        (self.opening > 0).then_some(true)
    }

    fn verdict(&self, mode: Mode) -> Verdict {
        if self.decision(true) == Some(true) {
            return Verdict::Allowed;
        }
        match self.decision(false) {
            Some(true) => Verdict::Observed,
            None if mode == Mode::Observe => Verdict::Observed,
            _ => Verdict::Denied,
        }
    }
}

/// Visits the ports of a protocol in pieces, in which the same ones speak of every port.
fn sweep(
    speakers: &[(Option<Speaker>, &PortSpec)],
    protocol: Protocol,
    mut visit: impl FnMut(PortRange, &Counts),
) {
    let mut ends: Vec<(u32, bool, Option<Speaker>)> = Vec::new();
    for (speaker, spec) in speakers {
        if spec.protocol.is_some_and(|own| own != protocol) {
            continue;
        }
        let ports = if protocol.has_ports() { spec.ports } else { PortRange::ALL };
        ends.push((u32::from(ports.first), true, *speaker));
        ends.push((u32::from(ports.last) + 1, false, *speaker));
    }
    ends.sort_unstable_by_key(|(at, _, _)| *at);
    let end = u32::from(u16::MAX) + 1;
    let (mut counts, mut at, mut ends) = (Counts::default(), 0, ends.into_iter().peekable());
    while at < end {
        while let Some((_, begins, speaker)) = ends.next_if(|(place, _, _)| *place <= at) {
            counts.count(speaker, begins);
        }
        let next = ends.peek().map_or(end, |(place, _, _)| *place);
        // Both lie below 65536: they came from ports, or `next` is one past the last.
        visit(PortRange { first: at as u16, last: (next - 1) as u16 }, &counts);
        at = next;
    }
}
