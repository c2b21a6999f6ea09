//! The rules that match a pair of label sets, before they are decided by or compiled.

use crate::document::{Action, Mode, Rule, Tier};
use meshward_types::{AcceptFrom, Labels, PortSpec};

/// The rules that match a pair, and the ports that its destination opens.
pub(crate) struct Deciding<'a> {
    pub mode: Mode,
    pub rules: Vec<(Tier, &'a Rule)>,
    /// The ports that the destination's declarations open.
    pub opened: Vec<PortSpec>,
}

/// Returns `true` if a rule is observed and not enforced.
pub(crate) fn is_lifted(mode: Mode, tier: Tier, rule: &Rule) -> bool {
    rule.observe || (mode == Mode::Observe && tier == Tier::Rule && rule.action() == Action::Deny)
}

/// Returns the ports that declarations name for a workload with these labels; `None` if there is no
/// declaration.
pub(crate) fn declared(accepts: &[AcceptFrom], from: &Labels) -> Option<Vec<PortSpec>> {
    if accepts.is_empty() {
        return None;
    }
    let speaking = accepts.iter().filter(|accept| accept.from.matches(from));
    let mut ports: Vec<PortSpec> =
        speaking.flat_map(|accept| accept.ports().iter().copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}
