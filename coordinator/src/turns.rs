//! Turns to write: one at a time, urgent ones before all others, each kind in the order of asking.

use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::oneshot;

/// A fair lock with two priorities.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<Queues>>);

#[derive(Debug, Default)]
struct Queues {
    is_taken: bool,
    urgent: VecDeque<oneshot::Sender<Turn>>,
    others: VecDeque<oneshot::Sender<Turn>>,
}

/// A turn. The next one begins when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Turns>);

/// The priority of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Granted before all normal turns, however long these have waited.
    Urgent,
    /// Granted in the order of the requests.
    Normal,
}

impl Turns {
    /// Waits for a turn.
    pub(crate) async fn acquire(&self, priority: Priority) -> Turn {
        let waiting = {
            let mut queues = self.0.lock();
            if !queues.is_taken {
                queues.is_taken = true;
                return Turn(Some(self.clone()));
            }
            let (granted, waiting) = oneshot::channel();
            let queue = match priority {
                Priority::Urgent => &mut queues.urgent,
                Priority::Normal => &mut queues.others,
            };
            queue.push_back(granted);
            waiting
        };
        waiting.await.expect("every waiter is granted a turn")
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
                queues.is_taken = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(Turn(Some(turns.clone()))) {
                Ok(()) => return,
                // The waiter has gone, and the turn that came back is this one.
                Err(mut back) => back.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Priority::{Normal, Urgent},
        *,
    };
    use futures::FutureExt;
    use std::pin::pin;

    #[tokio::test]
    async fn urgent_turns_come_next_and_the_others_in_their_order() {
        let turns = Turns::default();
        let first = turns.acquire(Normal).await;
        let (mut second, mut third) = (pin!(turns.acquire(Normal)), pin!(turns.acquire(Normal)));
        let mut gone = Box::pin(turns.acquire(Urgent));
        let mut urgent = pin!(turns.acquire(Urgent));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        assert!((&mut gone).now_or_never().is_none() && (&mut urgent).now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!((&mut second).now_or_never().is_none(), "it has waited longest, and is not urgent");
        drop(urgent.now_or_never().expect("it is its turn"));
        assert!((&mut third).now_or_never().is_none());
        drop(second.now_or_never().expect("it is its turn"));
        drop(third.now_or_never().expect("it is its turn"));
        drop(turns.acquire(Normal).now_or_never().expect("the lock is free"));
    }

    #[tokio::test]
    async fn a_turn_that_was_granted_to_a_dropped_waiter_is_passed_on() {
        let turns = Turns::default();
        let first = turns.acquire(Normal).await;
        let mut second = Box::pin(turns.acquire(Normal));
        let mut third = pin!(turns.acquire(Normal));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(first);
        // It was granted its turn, and is dropped before it was polled.
        drop(second);
        assert!(third.now_or_never().is_some());
    }
}
