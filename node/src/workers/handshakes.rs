//! The thread for handshakes and timers, and for how the work is spread over the workers.
//! Public-key cryptography takes a hundred microseconds and more, which no packet should wait for;
//! a flood of handshakes fills the queue of this thread, and the data goes on.

use super::{
    balance::{Usage, WorkerBalance},
    output::EndpointOutput,
    served::ServedEndpoint,
    shared::Shared,
    tasks::{LOAD, Task, TaskQueue},
};
use crate::clock;
use meshward_datapath::{Incoming, Now, WorkerScratch};
use std::{
    fs,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Time between telling endpoints of overload; it lasts for longer with them.
const OVERLOAD_INTERVAL: Duration = Duration::from_millis(100);
/// Time between ticks of the timers.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Time after which the work is spread anew.
const BALANCE_INTERVAL: Duration = Duration::from_secs(1);

/// The thread for handshakes and timers.
pub(super) struct HandshakeThread {
    shared: Arc<Shared>,
    queue: TaskQueue,
    tasks: Receiver<Task>,
    scratch: WorkerScratch,
    /// The last time at which endpoints were notified of overload.
    overload_noted: Option<Instant>,
    balance: WorkerBalance,
    last_balanced: Instant,
}

impl HandshakeThread {
    pub(super) fn new(shared: Arc<Shared>, queue: TaskQueue, tasks: Receiver<Task>) -> Self {
        let balance = WorkerBalance::new(shared.all());
        Self {
            shared,
            queue,
            tasks,
            scratch: WorkerScratch::default(),
            overload_noted: None,
            balance,
            last_balanced: clock::now(),
        }
    }

    /// Works until the workers are to end.
    pub(super) fn run(mut self) {
        let mut next_tick = clock::now();
        while !self.shared.ended.load(Relaxed) {
            match self.tasks.recv_timeout(next_tick.saturating_duration_since(clock::now())) {
                Ok(task) => self.run_task(task),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = now();
            if now.instant >= next_tick {
                next_tick = now.instant + TICK_INTERVAL;
                self.tick(now);
            }
        }
    }

    fn run_task(&mut self, task: Task) {
        let waiting = self.queue.note_taken();
        let now = now();
        if waiting >= LOAD {
            self.note_overload(now.instant);
        }
        match task {
            Task::Receive(message) => {
                let Some(served) = self.endpoint(message.endpoint) else { return };
                let mut output = EndpointOutput::new(&served, 0);
                output.set_received(message.from, message.to);
                let incoming = Incoming { from: message.from, message: message.bytes() };
                let scratch = &mut self.scratch;
                served.endpoint.receive_handshake(now, incoming, scratch, &mut output);
            }
            Task::BeginHandshakes(endpoint) => {
                let Some(served) = self.endpoint(endpoint) else { return };
                let mut output = EndpointOutput::new(&served, 0);
                served.endpoint.begin_handshakes(now, &mut output);
                served.endpoint.apply_flow_changes(now.instant, &mut self.scratch, &mut output);
            }
            Task::Wake => {}
        }
    }

    /// Tells all endpoints that more handshakes wait than are done, from time to time.
    fn note_overload(&mut self, now: Instant) {
        if self.overload_noted.is_some_and(|last| now < last + OVERLOAD_INTERVAL) {
            return;
        }
        self.overload_noted = Some(now);
        let endpoints = self.shared.endpoints.read();
        endpoints.iter().flatten().for_each(|served| served.endpoint.note_overload(now));
    }

    fn endpoint(&self, number: u32) -> Option<Arc<ServedEndpoint>> {
        self.shared.endpoints.read().get(number as usize)?.clone()
    }

    fn tick(&mut self, now: Now) {
        let endpoints: Vec<Arc<ServedEndpoint>> =
            self.shared.endpoints.read().iter().flatten().cloned().collect();
        for served in endpoints {
            let mut output = EndpointOutput::new(&served, 0);
            served.endpoint.begin_handshakes(now, &mut output);
            served.endpoint.tick(now, &mut self.scratch, &mut output);
        }
        let passed = now.instant - self.last_balanced;
        if passed >= BALANCE_INTERVAL {
            self.last_balanced = now.instant;
            self.balance(passed);
        }
    }

    fn balance(&mut self, passed: Duration) {
        let usage = self.shared.workers.iter().map(|poll| {
            let path = format!("/proc/self/task/{}/schedstat", poll.thread.load(Relaxed));
            Usage::parse(&fs::read_to_string(path).ok()?)
        });
        // A kernel that does not tell gets all workers.
        let next = match usage.collect::<Option<Vec<Usage>>>() {
            Some(usage) => self.balance.decide(passed, &usage),
            None => self.shared.all(),
        };
        self.shared.spread(next);
    }
}

fn now() -> Now {
    // A clock before 1970 gives timestamps that no peer takes; it is set sooner or later.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: clock::now(), unix }
}
