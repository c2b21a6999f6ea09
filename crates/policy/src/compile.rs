//! The compiler from rules to the ACL of a pair of label sets.

use crate::{
    document::{Action, Declarations, Mode, Policy, Rule, Tier},
    matching::{Deciding, declared, is_lifted},
};
use meshward_types::{
    AcceptFrom, Acl, AclEntry, Labels, OnDeny, OutsideTarget, PortRange, PortSpec, Protocol,
    Verdict, entries_of,
    outside::{Effect, Outside, OutsideRule, Precedence},
};

/// Compiles the ACL between two label sets: exactly what [`Policy::decide`] says, for every
/// protocol and port.
///
/// `accepts` are the declarations of `to`.
pub fn compile(policy: &Policy, from: &Labels, to: &Labels, accepts: &[AcceptFrom]) -> Acl {
    let matching =
        policy.tiers().filter(|(_, rule)| rule.from.matches(from) && rule.to.matches(to));
    compile_matching(policy, matching.collect(), declared(accepts, from))
}

/// Compiles the decisions between two label sets about one address or name outside of the mesh, or
/// about everything else.
pub fn compile_for(
    policy: &Policy,
    from: &Labels,
    to: &Labels,
    accepts: &[AcceptFrom],
    outside: Option<&OutsideTarget>,
) -> Acl {
    let outside = outside.filter(|_| accepts.is_empty());
    let matching = policy.tiers().filter(|(_, rule)| {
        rule.from.matches(from) && rule.to.matches(to) && rule.speaks_of(outside)
    });
    compile_alike(policy, matching.collect(), declared(accepts, from))
}

/// Compiles an ACL from the guardrails and rules that match the pair, and the ports that are
/// declared for it.
///
/// Sweeps once over the ends of all port ranges: the cost grows little faster than their number.
pub(crate) fn compile_matching(
    policy: &Policy,
    mut rules: Vec<(Tier, &Rule)>,
    declared: Option<Vec<PortSpec>>,
) -> Acl {
    // What a gateway declares, it declares for all addresses behind it.
    let names_addresses = rules.iter().any(|(_, rule)| !rule.target.outside().is_empty());
    let outside = (names_addresses && declared.is_none()).then(|| outside(policy, &rules));
    rules.retain(|(_, rule)| rule.speaks_of(None));
    compile_alike(policy, rules, declared).with_outside(outside)
}

/// Returns the rules about what is behind a gateway: those that name addresses there, and those
/// that hold for all of them.
fn outside(policy: &Policy, rules: &[(Tier, &Rule)]) -> Outside {
    let rules = rules.iter().filter_map(|(tier, rule)| {
        let precedence = match tier {
            Tier::Guardrail => Precedence::Guardrail,
            Tier::Rule => Precedence::Rule,
            Tier::LetIn | Tier::LetInByAdmin | Tier::Forensics { .. } => return None,
        };
        let effect = match rule.action() {
            Action::Allow => Effect::Allow,
            Action::Deny if is_lifted(policy.mode, *tier, rule) => Effect::Observe,
            Action::Deny => Effect::Deny,
        };
        let ports = entries_of(rule.ports());
        let targets = rule.target.outside().to_vec();
        Some(OutsideRule { targets, precedence, effect, ports, on_deny: rule.on_deny })
    });
    Outside { rules: rules.collect(), observes: policy.mode == Mode::Observe }
}

/// Compiles an ACL from guardrails and rules of which all count, whatever addresses they name.
pub(crate) fn compile_alike(
    policy: &Policy,
    rules: Vec<(Tier, &Rule)>,
    declared: Option<Vec<PortSpec>>,
) -> Acl {
    let opened = match &declared {
        Some(ports) if policy.declarations == Declarations::Open => ports.clone(),
        _ => Vec::new(),
    };
    let deciding = Deciding { mode: policy.mode, rules, opened };
    let speakers = speakers(&deciding);
    let (mut allowed, mut observed, mut forensic) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rejected, mut dropped) = (Vec::new(), Vec::new());
    for protocol in Protocol::ALL {
        sweep(&speakers, protocol, |ports, counts| {
            let entry = AclEntry { protocol, ports };
            if counts.lets_in() {
                forensic.push(entry);
            }
            match counts.verdict(policy.mode) {
                Verdict::Allowed => allowed.push(entry),
                Verdict::Observed => observed.push(entry),
                Verdict::Denied => match counts.answer() {
                    Some(OnDeny::Reject) => rejected.push(entry),
                    Some(OnDeny::Drop) => dropped.push(entry),
                    None => {}
                },
            }
        });
    }
    let acl = Acl::new(allowed).with_observed(observed);
    let acl = match declared {
        Some(ports) => acl.within(&ports),
        None => acl,
    };
    acl.with_forensics(forensic).with_answers(rejected, dropped, otherwise(&deciding))
}

/// Returns the answer that allowing rules give to everything between the two that nothing allows:
/// silent dropping, if one of the rules says so.
fn otherwise(deciding: &Deciding) -> Option<OnDeny> {
    let spoken = deciding.rules.iter().filter(|(tier, rule)| {
        matches!(tier, Tier::Guardrail | Tier::Rule) && rule.action() == Action::Allow
    });
    spoken.filter_map(|(_, rule)| rule.on_deny).min()
}

/// A source of a decision about ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    /// A rule or a guardrail.
    Rule {
        guardrail: bool,
        denies: bool,
        /// `true` if it is observed, not enforced.
        lifted: bool,
        /// The answer to packets that it denies.
        on_deny: Option<OnDeny>,
    },
    /// The destination's declaration.
    Opens,
    /// An exception of a quarantine.
    LetsIn { over_guardrails: bool },
}

/// Returns every range of ports with its source.
fn speakers<'a>(deciding: &'a Deciding<'a>) -> Vec<(Speaker, &'a PortSpec)> {
    let any = |wanted: Tier| deciding.rules.iter().any(|(tier, _)| *tier == wanted);
    let (by_admin, quarantined) = (any(Tier::LetInByAdmin), any(Tier::LetIn));
    let mut all = Vec::new();
    for (tier, rule) in &deciding.rules {
        let speaker = match *tier {
            Tier::LetIn => continue,
            Tier::LetInByAdmin => Speaker::LetsIn { over_guardrails: false },
            Tier::Forensics { .. } if !by_admin && !quarantined => continue,
            Tier::Forensics { over_guardrails } => Speaker::LetsIn { over_guardrails },
            Tier::Guardrail | Tier::Rule => Speaker::Rule {
                guardrail: *tier == Tier::Guardrail,
                denies: rule.action() == Action::Deny,
                lifted: is_lifted(deciding.mode, *tier, rule),
                on_deny: rule.on_deny,
            },
        };
        all.extend(rule.ports().iter().map(|spec| (speaker, spec)));
    }
    all.extend(deciding.opened.iter().map(|spec| (Speaker::Opens, spec)));
    all
}

/// The number of sources that apply to a port, `[guardrail][denies][lifted]`; of those denying it
/// with an answer, `[guardrail][rejects]`; of those opening it; and of exceptions,
/// `[over_guardrails]`.
#[derive(Debug, Default)]
struct Counts {
    speaking: [[[u32; 2]; 2]; 2],
    answering: [[u32; 2]; 2],
    opening: u32,
    letting_in: [u32; 2],
}

impl Counts {
    fn count(&mut self, speaker: Speaker, begins: bool) {
        if let Speaker::Rule { guardrail, denies: true, lifted: false, on_deny: Some(on_deny) } =
            speaker
        {
            let count =
                &mut self.answering[usize::from(guardrail)][usize::from(on_deny == OnDeny::Reject)];
            *count = if begins { *count + 1 } else { *count - 1 };
        }
        let count = match speaker {
            Speaker::Rule { guardrail, denies, lifted, .. } => {
                &mut self.speaking[usize::from(guardrail)][usize::from(denies)][usize::from(lifted)]
            }
            Speaker::Opens => &mut self.opening,
            Speaker::LetsIn { over_guardrails } => {
                &mut self.letting_in[usize::from(over_guardrails)]
            }
        };
        *count = if begins { *count + 1 } else { *count - 1 };
    }

    /// Returns `true` if a quarantined workload may be reached. Only exceptions over the guardrails
    /// apply to what those deny.
    fn lets_in(&self) -> bool {
        let [plain, over] = self.letting_in;
        let [firmly_denied, _] = self.speaking[1][1];
        over > 0 || (plain > 0 && firmly_denied == 0)
    }

    /// Returns the decision of the sources that count; `None` if none applies.
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

    /// Returns the answer of the sources that deny; one that drops silently decides for all of
    /// them.
    fn answer(&self) -> Option<OnDeny> {
        let [_, by_guardrail] = self.speaking[1];
        match self.answering[usize::from(by_guardrail[0] > 0)] {
            [0, 0] => None,
            [0, _] => Some(OnDeny::Reject),
            _ => Some(OnDeny::Drop),
        }
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

/// A port at which a rule begins or ceases to speak.
struct Edge {
    port: u32,
    begins: bool,
    speaker: Speaker,
}

/// Visits the ports of a protocol in ranges to which the same sources apply.
fn sweep(
    speakers: &[(Speaker, &PortSpec)],
    protocol: Protocol,
    mut visit: impl FnMut(PortRange, &Counts),
) {
    let mut edges: Vec<Edge> = Vec::new();
    for (speaker, spec) in speakers {
        if spec.protocol.is_some_and(|own| own != protocol) {
            continue;
        }
        let ports = if protocol.has_ports() { spec.ports } else { PortRange::ALL };
        let speaker = *speaker;
        edges.push(Edge { port: u32::from(ports.first), begins: true, speaker });
        edges.push(Edge { port: u32::from(ports.last) + 1, begins: false, speaker });
    }
    edges.sort_unstable_by_key(|edge| edge.port);
    let end = u32::from(u16::MAX) + 1;
    let (mut counts, mut at, mut edges) = (Counts::default(), 0, edges.into_iter().peekable());
    while at < end {
        while let Some(edge) = edges.next_if(|edge| edge.port <= at) {
            counts.count(edge.speaker, edge.begins);
        }
        let next = edges.peek().map_or(end, |edge| edge.port);
        // Both are below 65536: they come from ports, or `next` is one past the last.
        visit(PortRange { first: at as u16, last: (next - 1) as u16 }, &counts);
        at = next;
    }
}
