//! The report batcher: all reports of nodes that wait are one plan, one transaction and one
//! revision, so that a thousand starts of workloads a second cost some dozen of them.

use meshward_control_state::{
    Refusal,
    plans::workloads::{RejectedReport, Report},
};
use meshward_types::NodeName;
use tokio::sync::{mpsc, oneshot};

/// The maximum number of batches that wait; then sessions wait with theirs.
const MAX_WAITING: usize = 1024;
/// The number of reports from which on a transaction gets no further batch.
const MAX_REPORTS: usize = 4096;

/// The reports of one node that are to be written together.
pub struct Batch {
    /// The node.
    pub node: NodeName,
    /// The reports, in their order.
    pub reports: Vec<Report>,
    answer: oneshot::Sender<Result<Vec<RejectedReport>, Refusal>>,
}

impl Batch {
    /// Answers the session that waits. If it has ended meanwhile, nobody wants the answer.
    pub fn answer(self, answer: Result<Vec<RejectedReport>, Refusal>) {
        let _ = self.answer.send(answer);
    }
}

/// The batcher: sessions hand it their reports.
pub struct ReportBatcher(mpsc::Sender<Batch>);

/// The receiving end, for the task that writes the reports.
pub struct BatchReceiver(mpsc::Receiver<Batch>);

impl ReportBatcher {
    /// Creates a batcher, and its receiving end.
    pub fn new() -> (Self, BatchReceiver) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Self(sender), BatchReceiver(receiver))
    }

    /// Writes reports in their order: when this returns, they are stored, but for those that are
    /// refused.
    ///
    /// # Errors
    /// The refusal of all of them, if nothing was written.
    pub async fn report(
        &self,
        node: &NodeName,
        reports: Vec<Report>,
    ) -> Result<Vec<RejectedReport>, Refusal> {
        let ended = || Refusal::Failed("the coordinator is shutting down".into());
        let (answer, answered) = oneshot::channel();
        let batch = Batch { node: node.clone(), reports, answer };
        self.0.send(batch).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl BatchReceiver {
    /// Waits for a batch, and returns it with all others that wait, as far as they go together.
    /// `None`: there will be no more.
    pub async fn next(&mut self) -> Option<Vec<Batch>> {
        let first = self.0.recv().await?;
        let (mut count, mut batches) = (first.reports.len(), vec![first]);
        while count < MAX_REPORTS {
            let Ok(batch) = self.0.try_recv() else { break };
            count += batch.reports.len();
            batches.push(batch);
        }
        Some(batches)
    }
}
