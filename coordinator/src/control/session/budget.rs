//! The budget of one node: the workloads that it may have, and the changes that it may make.

use super::link::NodeLink;
use crate::{limits::change_rate, sessions::Session};
use anyhow::Result;
use meshward_control_proto::{FromCoordinator, WorkloadReport};
use meshward_control_state::budget::{NodeBudget, Usage};
use meshward_runtime::sources::Bucket;
use meshward_types::WorkloadId;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// The minimum time between two warnings to a node that it is over a budget.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The meter of one node's budget.
pub(super) struct BudgetMeter {
    budget: NodeBudget,
    /// The share that the node's workloads use.
    usage: Usage,
    /// The changes that the node may still make.
    changes: Bucket,
    /// The end of the pause of a node that has changed too much: until then its messages wait.
    pub(super) paused_until: Option<Instant>,
    /// The time of the last warning to the node.
    warned_at: Option<Instant>,
}

impl BudgetMeter {
    /// Creates the meter of a node that has used nothing yet.
    pub(super) fn new(budget: NodeBudget) -> Self {
        let changes = Bucket::full(change_rate(&budget), std::time::Instant::now());
        Self { budget, usage: Usage::default(), changes, paused_until: None, warned_at: None }
    }

    /// Counts a workload.
    ///
    /// # Errors
    /// The limit that the node would exceed with it, in words.
    pub(super) fn add(&mut self, report: &WorkloadReport) -> Result<(), String> {
        self.usage.add(report, &self.budget)
    }

    /// Stops counting a workload.
    pub(super) fn remove(&mut self, id: &WorkloadId) {
        self.usage.remove(id);
    }

    /// Counts messages that change something. A node that sends too many is warned, and its next
    /// ones wait for a while.
    ///
    /// # Errors
    /// Fails if the warning cannot be sent.
    pub(super) async fn charge(
        &mut self,
        messages: usize,
        link: &mut NodeLink,
        session: &Session,
    ) -> Result<()> {
        let rate = change_rate(&self.budget);
        let wait = self.changes.owe(rate, messages as f64, std::time::Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        self.paused_until = Some(Instant::now() + wait);
        let limit = format!(
            "the node makes more than {} changes a second (`nodes.changes_per_second` in the \
            coordinator's configuration): further ones have to wait",
            rate.per_second
        );
        session.note_over_budget(&limit);
        self.warn(limit, link).await
    }

    /// Warns a node that it is over a budget, unless it was warned a moment ago.
    async fn warn(&mut self, limit: String, link: &mut NodeLink) -> Result<()> {
        if self.warned_at.is_some_and(|at| at.elapsed() < WARNING_INTERVAL) {
            return Ok(());
        }
        self.warned_at = Some(Instant::now());
        warn!(node = %link.node, "over a budget: {limit}");
        link.send(&FromCoordinator::OverBudget { budget: limit }).await
    }

    /// Refuses a workload with which the node would exceed `limit`.
    ///
    /// # Errors
    /// Fails if the refusal cannot be sent.
    pub(super) async fn refuse(
        &mut self,
        workload: WorkloadId,
        limit: String,
        link: &mut NodeLink,
    ) -> Result<()> {
        self.warn(limit.clone(), link).await?;
        link.send(&FromCoordinator::Refused { workload, reason: limit }).await
    }
}
