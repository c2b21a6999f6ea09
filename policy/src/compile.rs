//! From rules to the ACL of a pair of label sets.

use crate::document::{Action, Policy, Rule};
use meshward_model::{Acl, AclEntry, Labels, PortRange, PortSpec, Protocol};
use std::collections::BTreeSet;

/// The ACL between two label sets: exactly what [`Policy::decide`] allows, for every protocol and port.
pub fn compile(policy: &Policy, from: &Labels, to: &Labels) -> Acl {
    let speaks = |rule: &&Rule| rule.from.matches(from) && rule.to.matches(to);
    compile_matching(
        policy.guardrails.iter().filter(speaks).collect(),
        policy.rules.iter().filter(speaks).collect(),
    )
}

/// The same, from the guardrails and rules that are known to match the pair.
pub(crate) fn compile_matching(guardrails: Vec<&Rule>, rules: Vec<&Rule>) -> Acl {
    let layers = [
        Layer::of(&guardrails, Action::Deny),
        Layer::of(&guardrails, Action::Allow),
        Layer::of(&rules, Action::Deny),
        Layer::of(&rules, Action::Allow),
    ];
    let entries = Protocol::ALL.into_iter().flat_map(|protocol| {
        pieces(&layers, protocol)
            .into_iter()
            .filter(|piece| passes(&layers, protocol, piece.first))
            .map(|ports| AclEntry { protocol, ports })
            .collect::<Vec<_>>()
    });
    Acl::new(entries.collect())
}

/// The ports of all rules of one tier and action: of two layers, the earlier decides.
struct Layer {
    action: Action,
    specs: Vec<PortSpec>,
}

impl Layer {
    fn of(rules: &[&Rule], action: Action) -> Self {
        let own = rules.iter().filter(|rule| rule.action() == action);
        Self { action, specs: own.flat_map(|rule| rule.ports().iter().copied()).collect() }
    }
}

/// Cuts the ports of a protocol where any spec begins or ends: within a piece every port has the same verdict.
fn pieces(layers: &[Layer], protocol: Protocol) -> Vec<PortRange> {
    if !protocol.has_ports() {
        return vec![PortRange::ALL];
    }
    let specs = layers.iter().flat_map(|layer| &layer.specs);
    let own = specs.filter(|spec| spec.protocol.is_none_or(|p| p == protocol));
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

fn passes(layers: &[Layer], protocol: Protocol, port: u16) -> bool {
    layers
        .iter()
        .find(|layer| layer.specs.iter().any(|spec| spec.matches(protocol, port)))
        .is_some_and(|layer| layer.action == Action::Allow)
}
