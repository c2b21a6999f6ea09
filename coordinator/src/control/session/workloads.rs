//! Reports of a node's workloads: starts and stops, written in their order.

use super::{budget::BudgetMeter, link::NodeLink, retry::retry_at};
use anyhow::Result;
use meshward_control_proto::{FromCoordinator, WorkloadReport};
use meshward_control_state::plans::workloads::{RejectedReport, Report};
use tokio::time::Instant;
use tracing::warn;

/// The maximum number of reports that wait for room on the disk.
const MAX_UNWRITTEN: usize = 8192;

/// The reports of one node's workloads.
#[derive(Default)]
pub(super) struct WorkloadReports {
    /// Reports for which the disk had no room.
    unwritten: Vec<Report>,
    /// The time at which these are to be written again.
    pub(super) retry_at: Option<Instant>,
}

impl WorkloadReports {
    /// Writes reports, after those that could not be written before. The node gets the reason for
    /// each workload that is refused.
    ///
    /// # Errors
    /// Fails if the reports cannot be written for a reason other than a full disk, or if too many
    /// wait for space.
    pub(super) async fn write(&mut self, reports: Vec<Report>, link: &mut NodeLink) -> Result<()> {
        self.unwritten.extend(reports);
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let written = link.mesh.report_batcher.report(&link.node, self.unwritten.clone()).await;
        let refused = match written {
            Ok(refused) => refused,
            Err(refusal) => {
                anyhow::ensure!(
                    self.unwritten.len() <= MAX_UNWRITTEN,
                    "too many reports of workloads wait for room on the disk"
                );
                self.retry_at = Some(retry_at(refusal)?);
                return Ok(());
            }
        };
        self.unwritten.clear();
        for RejectedReport { workload, reason } in refused {
            warn!(node = %link.node, %workload, "refused: {reason}");
            link.send(&FromCoordinator::Refused { workload, reason }).await?;
        }
        Ok(())
    }

    /// Writes again the reports for which there was no room.
    ///
    /// # Errors
    /// Fails as [`Self::write`] does.
    pub(super) async fn retry(&mut self, link: &mut NodeLink) -> Result<()> {
        self.retry_at = None;
        self.write(vec![], link).await
    }
}

/// A start with which the node would be over a budget.
pub(super) struct OverBudget {
    /// The start.
    pub(super) started: Box<WorkloadReport>,
    /// The limit that it would exceed, in words.
    pub(super) limit: String,
}

/// Counts a report.
///
/// # Errors
/// [`OverBudget`], if it is a start that the budget does not allow.
pub(super) fn count(report: Report, budget: &mut BudgetMeter) -> Result<Report, OverBudget> {
    match report {
        Report::Started(started) => match budget.add(&started) {
            Ok(()) => Ok(Report::Started(started)),
            Err(limit) => Err(OverBudget { started, limit }),
        },
        Report::Stopped(id) => {
            budget.remove(&id);
            Ok(Report::Stopped(id))
        }
        other @ (Report::All(_) | Report::Health(..)) => Ok(other),
    }
}
