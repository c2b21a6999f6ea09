//! The report batcher: all reports of nodes that wait are one plan, one transaction and one
//! revision, so that a thousand starts of workloads a second cost some dozen of them.

use meshward_control_state::{
    Refusal,
    plans::workloads::{RejectedReport, Report},
};
use meshward_types::NodeName;
use tokio::sync::{mpsc, oneshot};

/// The most batches that wait; then sessions wait with theirs.
const WAITING: usize = 1024;
/// The most reports in one transaction.
const TOGETHER: usize = 4096;

/// The reports of one node that are to be written together.
pub struct Batch {
    /// The node.
    pub node: NodeName,
    /// What it reports.
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

/// The other end: what writes the reports.
pub struct BatchReceiver(mpsc::Receiver<Batch>);

impl ReportBatcher {
    /// Makes a batcher, and its other end.
    pub fn new() -> (Self, BatchReceiver) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), BatchReceiver(receiver))
    }

    /// Has reports written in their order: when this returns, they are stored, but for those that
    /// are refused.
    ///
    /// # Errors
    /// If none of them was written.
    pub async fn report(
        &self,
        node: &NodeName,
        reports: Vec<Report>,
    ) -> Result<Vec<RejectedReport>, Refusal> {
        let ended = || Refusal::Failed("the coordinator ends".into());
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
        while count < TOGETHER {
            let Ok(batch) = self.0.try_recv() else { break };
            count += batch.reports.len();
            batches.push(batch);
        }
        Some(batches)
    }
}
