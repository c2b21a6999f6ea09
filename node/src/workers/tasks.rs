//! Tasks for the thread for handshakes and timers, in a bounded queue.

use meshward_datapath::MAX_HANDSHAKE_MESSAGE;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// Tasks that wait at the most (the kernel's `MAX_QUEUED_INCOMING_HANDSHAKES`).
const MAX_WAITING: usize = 4096;
/// Waiting tasks from which on there is load: then a handshake takes a cookie (an eighth, as in the
/// kernel).
pub(super) const LOAD: usize = MAX_WAITING / 8;

/// A handshake message of a peer, or a response of a STUN server.
pub(super) struct QueuedMessage {
    /// The number of the endpoint.
    pub(super) endpoint: u32,
    pub(super) from: SocketAddr,
    /// The address of this host that it came to.
    pub(super) to: Option<IpAddr>,
    length: u8,
    bytes: [u8; MAX_HANDSHAKE_MESSAGE],
}

impl QueuedMessage {
    /// The message, if it is not too long for one.
    pub(super) fn new(
        endpoint: u32,
        from: SocketAddr,
        to: Option<IpAddr>,
        message: &[u8],
    ) -> Option<Self> {
        let mut bytes = [0; MAX_HANDSHAKE_MESSAGE];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Self { endpoint, from, to, length: message.len() as u8, bytes })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// A task of the thread for handshakes and timers.
pub(super) enum Task {
    /// Receive a message.
    Receive(QueuedMessage),
    /// Begin the handshakes of the endpoint with this number, and apply changes to its flows.
    BeginHandshakes(u32),
    /// Look whether the threads are to end.
    Wake,
}

/// The queue of tasks.
#[derive(Clone)]
pub(super) struct TaskQueue {
    tasks: SyncSender<Task>,
    waiting: Arc<AtomicUsize>,
}

/// Makes the queue, and its other end.
pub(super) fn queue() -> (TaskQueue, Receiver<Task>) {
    let (tasks, received) = sync_channel(MAX_WAITING);
    (TaskQueue { tasks, waiting: Arc::default() }, received)
}

impl TaskQueue {
    /// Queues a message. Returns false if too many tasks wait.
    pub(super) fn receive(&self, message: QueuedMessage) -> bool {
        self.push(Task::Receive(message))
    }

    /// Has the handshakes of an endpoint begun. If too many tasks wait, the next tick does it.
    pub(super) fn request_handshakes(&self, endpoint: u32) {
        self.push(Task::BeginHandshakes(endpoint));
    }

    /// Has the thread look whether the threads are to end.
    pub(super) fn wake(&self) {
        self.push(Task::Wake);
    }

    /// Notes that a task was taken out. Returns how many have waited with it.
    pub(super) fn note_taken(&self) -> usize {
        self.waiting.fetch_sub(1, Relaxed)
    }

    fn push(&self, task: Task) -> bool {
        // Counted first, so that the count never falls below what waits.
        self.waiting.fetch_add(1, Relaxed);
        let queued = self.tasks.try_send(task).is_ok();
        if !queued {
            self.waiting.fetch_sub(1, Relaxed);
        }
        queued
    }
}
