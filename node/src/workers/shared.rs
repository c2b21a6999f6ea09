//! The state that the threads share: the endpoints, and the number of active workers.

use super::{
    poll::{Poll, Source, Token},
    served::ServedEndpoint,
};
use meshward_datapath::WorkloadIndex;
use parking_lot::{Mutex, RwLock};
use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    sync::{Arc, atomic::AtomicBool},
};

/// The state that the threads share.
pub(super) struct Shared {
    pub(super) workers: Vec<Poll>,
    pub(super) endpoints: RwLock<Vec<Option<Arc<ServedEndpoint>>>>,
    /// The number of workers that sockets and interfaces are spread over. Locked while one is
    /// added, removed or moved.
    pub(super) active: Mutex<NonZeroUsize>,
    pub(super) ended: AtomicBool,
}

impl Shared {
    /// Returns the number of workers.
    pub(super) fn all(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.workers.len()).unwrap_or(NonZeroUsize::MIN)
    }

    /// Returns the epoll that reads the socket or interface with a number while `active` workers
    /// are active.
    pub(super) fn poll(&self, number: usize, active: NonZeroUsize) -> &Poll {
        &self.workers[number % active]
    }

    /// Spreads everything over so many workers. Packets that two workers then read at the same
    /// moment may change places.
    pub(super) fn spread(&self, next: NonZeroUsize) {
        let mut active = self.active.lock();
        if *active == next {
            return;
        }
        let before = std::mem::replace(&mut *active, next);
        for served in self.endpoints.read().iter().flatten() {
            let (number, interfaces) = (served.number, served.interfaces.read());
            let sockets = served.sockets.iter().enumerate();
            let sockets = sockets.map(|(at, socket)| (at, socket.as_fd(), Source::Socket(at)));
            let interfaces =
                interfaces.iter().enumerate().filter_map(|(at, tun)| Some((at, tun.as_ref()?)));
            let interfaces = interfaces.map(|(at, tun)| {
                (at, tun.fd.as_fd(), Source::Interface(WorkloadIndex::of_position(at)))
            });
            for (at, descriptor, source) in sockets.chain(interfaces) {
                if at % before == at % next {
                    continue;
                }
                // Taken up before it is let go, so that it is always read by somebody.
                let token = Token { endpoint: number, source };
                if let Err(error) = self.poll(at, next).watch(&descriptor, token) {
                    tracing::error!("a socket or an interface cannot be polled: {error}");
                    continue;
                }
                let _ = self.poll(at, before).epoll.delete(descriptor);
            }
        }
    }
}
