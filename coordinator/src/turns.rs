//! Whose turn it is to write: one at a time, those in a hurry before all others, each kind in the
//! order of asking.

use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::oneshot;

/// The turns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<Queues>>);

#[derive(Debug, Default)]
struct Queues {
    taken: bool,
    urgent: VecDeque<oneshot::Sender<Turn>>,
    others: VecDeque<oneshot::Sender<Turn>>,
}

/// A turn; the next begins when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Turns>);

impl Turns {
    /// Waits for a turn. An urgent one comes before all that are not, however long these have
    /// waited.
    pub(crate) async fn take(&self, urgent: bool) -> Turn {
        let waiting = {
            let mut queues = self.0.lock();
            if !queues.taken {
                queues.taken = true;
                return Turn(Some(self.clone()));
            }
            let (given, waiting) = oneshot::channel();
            let queue = if urgent { &mut queues.urgent } else { &mut queues.others };
            queue.push_back(given);
            waiting
        };
        waiting.await.expect("a turn is handed to everybody who waits for one")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut queues = turns.0.lock();
                let next = match queues.urgent.pop_front() {
                    Some(next) => Some(next),
                    None => queues.others.pop_front(),
                };
                queues.taken = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(Turn(Some(turns.clone()))) {
                Ok(()) => return,
                // Who waited has gone, and the turn that came back is this one.
                Err(mut back) => back.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::pin::pin;

    #[tokio::test]
    async fn who_is_in_a_hurry_comes_next_and_the_others_in_their_order() {
        let turns = Turns::default();
        let first = turns.take(false).await;
        let (mut second, mut third) = (pin!(turns.take(false)), pin!(turns.take(false)));
        let mut gone = Box::pin(turns.take(true));
        let mut urgent = pin!(turns.take(true));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        assert!((&mut gone).now_or_never().is_none() && (&mut urgent).now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!((&mut second).now_or_never().is_none(), "it has waited longest, and is not urgent");
        drop(urgent.now_or_never().expect("it is its turn"));
        assert!((&mut third).now_or_never().is_none());
        drop(second.now_or_never().expect("it is its turn"));
        drop(third.now_or_never().expect("it is its turn"));
        drop(turns.take(false).now_or_never().expect("nobody has it"));
    }

    #[tokio::test]
    async fn a_turn_that_was_given_to_somebody_who_has_gone_is_passed_on() {
        let turns = Turns::default();
        let first = turns.take(false).await;
        let mut second = Box::pin(turns.take(false));
        let mut third = pin!(turns.take(false));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(first);
        // It was given its turn, and goes without having looked.
        drop(second);
        assert!(third.now_or_never().is_some());
    }
}
