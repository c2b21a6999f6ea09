//! The thread for what is slow: handshakes, timers, and how the work is spread over the workers.
//! Public-key cryptography takes a hundred microseconds and more, which no packet should wait for;
//! a flood of handshakes fills a queue here, and the data goes on.

use super::{
    ServedEndpoint, Shared,
    balance::{Balance, Usage},
    outlet::Outlet,
};
use crate::clock;
use meshward_datapath::{MAX_HANDSHAKE_MESSAGE, Now, WorkerScratch};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The most messages that wait (the kernel's MAX_QUEUED_INCOMING_HANDSHAKES).
const MOST_WAITING: usize = 4096;
/// From how many on there is load: then a handshake takes a cookie (an eighth, as in the kernel).
const LOAD: usize = MOST_WAITING / 8;
/// How often endpoints are told of it, at the most; it lasts for longer with them.
const BETWEEN_LOADS: Duration = Duration::from_millis(100);
/// How often timers run.
const TICK: Duration = Duration::from_millis(250);
/// How often the work is spread anew.
const BALANCE: Duration = Duration::from_secs(1);

/// What the thread has to do.
pub enum Task {
    /// `to`: the address of this host that it came to.
    Message {
        endpoint: u32,
        from: SocketAddr,
        to: Option<IpAddr>,
        length: u8,
        bytes: [u8; MAX_HANDSHAKE_MESSAGE],
    },
    Wanted(u32),
    Wake,
}

/// The way to the thread.
#[derive(Clone)]
pub struct Queue {
    tasks: SyncSender<Task>,
    waiting: Arc<AtomicUsize>,
}

/// Makes the queue, and its other end.
pub fn queue() -> (Queue, Receiver<Task>) {
    let (tasks, received) = sync_channel(MOST_WAITING);
    (Queue { tasks, waiting: Arc::default() }, received)
}

impl Queue {
    /// Keeps a message; `false` if too many wait.
    pub fn message(
        &self,
        endpoint: u32,
        from: SocketAddr,
        to: Option<IpAddr>,
        message: &[u8],
    ) -> bool {
        let mut bytes = [0; MAX_HANDSHAKE_MESSAGE];
        let Some(place) = bytes.get_mut(..message.len()) else { return false };
        place.copy_from_slice(message);
        self.push(Task::Message { endpoint, from, to, length: message.len() as u8, bytes })
    }

    /// Says that an endpoint has handshakes to begin. If too many tasks wait, the next tick does it.
    pub fn wanted(&self, endpoint: u32) {
        self.push(Task::Wanted(endpoint));
    }

    /// Has the thread look whether the workers are to end.
    pub fn wake(&self) {
        self.push(Task::Wake);
    }

    fn push(&self, task: Task) -> bool {
        // Counted first, so that the count never falls below what waits.
        self.waiting.fetch_add(1, Relaxed);
        let taken = self.tasks.try_send(task).is_ok();
        if !taken {
            self.waiting.fetch_sub(1, Relaxed);
        }
        taken
    }
}

/// The thread's own state.
pub struct Handshakes {
    shared: Arc<Shared>,
    queue: Queue,
    tasks: Receiver<Task>,
    scratch: WorkerScratch,
    /// When endpoints were told of load.
    loaded: Option<Instant>,
    balance: Balance,
    balanced: Instant,
}

impl Handshakes {
    pub fn new(shared: Arc<Shared>, queue: Queue, tasks: Receiver<Task>) -> Self {
        let balance = Balance::new(shared.all());
        Self {
            shared,
            queue,
            tasks,
            scratch: WorkerScratch::default(),
            loaded: None,
            balance,
            balanced: clock::now(),
        }
    }

    /// Works until the workers are to end.
    pub fn run(mut self) {
        let mut next_tick = clock::now();
        while !self.shared.ended.load(Relaxed) {
            match self.tasks.recv_timeout(next_tick.saturating_duration_since(clock::now())) {
                Ok(task) => self.take(task),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = now();
            if now.instant >= next_tick {
                next_tick = now.instant + TICK;
                self.tick(now);
            }
        }
    }

    fn take(&mut self, task: Task) {
        let waiting = self.queue.waiting.fetch_sub(1, Relaxed);
        let now = now();
        if waiting >= LOAD && self.loaded.is_none_or(|last| now.instant >= last + BETWEEN_LOADS) {
            self.loaded = Some(now.instant);
            let endpoints = self.shared.endpoints.read();
            endpoints
                .iter()
                .flatten()
                .for_each(|served| served.endpoint.note_overload(now.instant));
        }
        match task {
            Task::Message { endpoint, from, to, length, bytes } => {
                let Some(served) = self.endpoint(endpoint) else { return };
                let mut outlet = Outlet::new(&served, 0);
                outlet.hear(from, to);
                let message = &bytes[..usize::from(length)];
                served.endpoint.receive_handshake(
                    now,
                    from,
                    message,
                    &mut self.scratch,
                    &mut outlet,
                );
            }
            Task::Wanted(endpoint) => {
                let Some(served) = self.endpoint(endpoint) else { return };
                let mut outlet = Outlet::new(&served, 0);
                served.endpoint.begin_handshakes(now, &mut outlet);
                served.endpoint.apply_flow_changes(now.instant, &mut self.scratch, &mut outlet);
            }
            Task::Wake => {}
        }
    }

    fn endpoint(&self, number: u32) -> Option<Arc<ServedEndpoint>> {
        self.shared.endpoints.read().get(number as usize)?.clone()
    }

    fn tick(&mut self, now: Now) {
        let endpoints: Vec<Arc<ServedEndpoint>> =
            self.shared.endpoints.read().iter().flatten().cloned().collect();
        for served in endpoints {
            let mut outlet = Outlet::new(&served, 0);
            served.endpoint.begin_handshakes(now, &mut outlet);
            served.endpoint.tick(now, &mut self.scratch, &mut outlet);
        }
        let passed = now.instant - self.balanced;
        if passed >= BALANCE {
            self.balanced = now.instant;
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
