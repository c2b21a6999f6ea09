//! Limits on what one node may take of the coordinator, and on what is kept of the past.
//! docs/configuration.md lists those that an operator can change. Limits on strangers stand in
//! `meshward_relay::limits`.

use meshward_runtime::sources::Rate;
use serde::{Deserialize, Serialize};

/// What one node may take: the `[nodes]` table. A node that wants more hears which of these stands
/// against it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeBudget {
    /// Workloads.
    pub workloads: usize,
    /// Addresses and prefixes of these, all together.
    pub addresses: usize,
    /// Sets of labels among these: each is an identity to policy.
    pub label_sets: usize,
    /// What it says of its workloads, in KiB.
    pub reported_kib: usize,
    /// Messages that change something, a second; twenty times as many at once. Those beyond wait.
    pub changes_per_second: f64,
    /// Sessions that it may begin, a minute.
    pub sessions_per_minute: f64,
    /// Bytes of its messages that wait to be worked on, in KiB.
    pub waiting_kib: usize,
}

impl Default for NodeBudget {
    fn default() -> Self {
        Self {
            workloads: 4096,
            addresses: 16_384,
            label_sets: 1024,
            reported_kib: 4096,
            changes_per_second: 200.0,
            sessions_per_minute: 60.0,
            waiting_kib: 2048,
        }
    }
}

impl NodeBudget {
    /// The rate of its changes.
    pub fn changes(&self) -> Rate {
        Rate { burst: self.changes_per_second * 20.0, per_second: self.changes_per_second }
    }

    /// The rate of its sessions.
    pub fn sessions(&self) -> Rate {
        Rate { burst: self.sessions_per_minute, per_second: self.sessions_per_minute / 60.0 }
    }
}

/// What is kept of the past: the `[retention]` table. Lines of the audit log that a kept state of a
/// policy or quarantine needs stay with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Lines of the audit log.
    pub audit_lines: u32,
    /// Days for which lines of the audit log are kept, and states of what was deleted.
    pub audit_days: u32,
    /// States of one policy or quarantine.
    pub history_states: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { audit_lines: 1_000_000, audit_days: 400, history_states: 1000 }
    }
}
