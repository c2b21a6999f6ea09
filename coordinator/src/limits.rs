//! Rates of nodes, and limits on what is kept of the past. docs/configuration.md lists those that
//! an operator can change. Limits on strangers stand in `meshward_relay::limits`, those on the
//! records of one node in `meshward_control_state::budget`.

use meshward_control_state::budget::NodeBudget;
use meshward_runtime::sources::Rate;
use serde::{Deserialize, Serialize};

/// Returns the rate at which a node may change things.
pub fn change_rate(budget: &NodeBudget) -> Rate {
    Rate { burst: budget.changes_per_second * 20.0, per_second: budget.changes_per_second }
}

/// Returns the rate at which a node may begin sessions.
pub fn session_rate(budget: &NodeBudget) -> Rate {
    let per_minute = budget.sessions_per_minute;
    Rate { burst: per_minute, per_second: per_minute / 60.0 }
}

/// Limits on what is kept of the past: the `[retention]` table. Lines of the audit log that a kept
/// state of a policy or quarantine needs stay with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The number of lines of the audit log.
    pub audit_lines: u32,
    /// The days for which lines of the audit log, and states of what was deleted, are kept.
    pub audit_days: u32,
    /// The number of states of one policy or quarantine.
    pub history_states: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { audit_lines: 1_000_000, audit_days: 400, history_states: 1000 }
    }
}
