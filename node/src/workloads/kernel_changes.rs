//! Changes of routes and rules in the kernel, which nobody waits for: one after the other, in the
//! order in which they were decided.

use tokio::sync::{mpsc, oneshot};

type Change = Box<dyn FnOnce() + Send>;

/// The queue of such changes. It is unbounded, as what fills it is: an update of the view, or a
/// workload that is detached.
pub(super) struct KernelChanges(mpsc::UnboundedSender<Change>);

impl KernelChanges {
    /// Starts the task that makes the changes; it ends with the queue.
    pub(super) fn start() -> Self {
        let (sender, mut queue) = mpsc::unbounded_channel::<Change>();
        tokio::spawn(async move {
            while let Some(change) = queue.recv().await {
                let _ = tokio::task::spawn_blocking(change).await;
            }
        });
        Self(sender)
    }

    /// Has a change made; returns at once.
    pub(super) fn enqueue(&self, change: impl FnOnce() + Send + 'static) {
        // The task ends with this sender.
        let _ = self.0.send(Box::new(change));
    }

    /// Waits until every change is made that was enqueued so far.
    pub(super) async fn done(&self) {
        let (done, is_done) = oneshot::channel();
        self.enqueue(move || {
            let _ = done.send(());
        });
        let _ = is_done.await;
    }
}
