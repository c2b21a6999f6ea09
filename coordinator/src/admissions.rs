//! What nodes say of their workloads, taken together: all reports that wait are one plan, one
//! transaction and one revision, so that a thousand starts a second cost some dozen of them.

use crate::mesh::{Author, Mesh};
use meshward_control_state::{
    Refusal,
    plans::workloads::{self, Refused, Report},
};
use meshward_types::NodeName;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// The most batches that wait; then sessions wait with theirs.
const WAITING: usize = 1024;
/// The most reports in one transaction.
const TOGETHER: usize = 4096;

struct Batch {
    node: NodeName,
    reports: Vec<Report>,
    answer: oneshot::Sender<Result<Refused, Refusal>>,
}

/// The way to be admitted.
pub struct Admissions(mpsc::Sender<Batch>);

/// The other end.
pub struct Desk(mpsc::Receiver<Batch>);

/// Makes the way, and its other end.
pub fn admissions() -> (Admissions, Desk) {
    let (to_desk, batches) = mpsc::channel(WAITING);
    (Admissions(to_desk), Desk(batches))
}

impl Admissions {
    /// Takes reports in their order: when this returns, they are stored, but for those that are
    /// refused.
    ///
    /// # Errors
    /// If none of them was taken.
    pub async fn report(&self, node: &NodeName, reports: Vec<Report>) -> Result<Refused, Refusal> {
        let ended = || Refusal::Failed("the coordinator ends".into());
        let (answer, answered) = oneshot::channel();
        let batch = Batch { node: node.clone(), reports, answer };
        self.0.send(batch).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl Desk {
    /// Works for ever.
    pub async fn work(mut self, mesh: Arc<Mesh>) {
        while let Some(first) = self.0.recv().await {
            let (mut count, mut batches) = (first.reports.len(), vec![first]);
            while count < TOGETHER {
                let Ok(batch) = self.0.try_recv() else { break };
                count += batch.reports.len();
                batches.push(batch);
            }
            let author = match &batches[..] {
                [only] => Author::node(&only.node),
                _ => Author::named("nodes"),
            };
            let reports: Vec<(&NodeName, &[Report])> =
                batches.iter().map(|batch| (&batch.node, &batch.reports[..])).collect();
            let done = mesh.change(&author, |world| Ok(workloads::take(world, &reports))).await;
            let answers: Vec<_> = match done {
                Ok(done) => done.outcome,
                Err(refusal) => batches.iter().map(|_| Err(refusal.clone())).collect(),
            };
            for (batch, answer) in batches.into_iter().zip(answers) {
                // A session that has ended meanwhile wants no answer.
                let _ = batch.answer.send(answer);
            }
        }
    }
}
