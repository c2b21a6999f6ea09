//! A worker's epoll, and the tokens of its events.

use meshward_datapath::WorkloadIndex;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};
use std::{os::fd::AsFd, sync::atomic::AtomicI32};

/// A source of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Socket(usize),
    Interface(WorkloadIndex),
}

/// The meaning of an epoll's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    /// The number of the endpoint.
    pub(super) endpoint: u32,
    pub(super) source: Source,
}

impl Token {
    /// The token of the descriptor that wakes a worker.
    pub(super) const WAKE: u64 = u64::MAX;
    /// Set for an interface.
    pub(super) const INTERFACE: u64 = 1 << 31;

    pub(super) fn encode(self) -> u64 {
        let source = match self.source {
            Source::Socket(number) => number as u64,
            Source::Interface(index) => u64::from(index.0) | Self::INTERFACE,
        };
        u64::from(self.endpoint) << 32 | source
    }

    pub(super) fn decode(data: u64) -> Self {
        let number = (data & (Self::INTERFACE - 1)) as usize;
        let interface = data & Self::INTERFACE != 0;
        let source = if interface {
            Source::Interface(WorkloadIndex::of_position(number))
        } else {
            Source::Socket(number)
        };
        Self { endpoint: (data >> 32) as u32, source }
    }
}

/// A worker's epoll and wake-up descriptor.
pub(super) struct Poll {
    pub(super) epoll: Epoll,
    pub(super) wake: EventFd,
    /// The worker's thread id.
    pub(super) thread: AtomicI32,
}

impl Poll {
    pub(super) fn new() -> nix::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, Token::WAKE))?;
        Ok(Self { epoll, wake, thread: AtomicI32::new(0) })
    }

    pub(super) fn watch(&self, descriptor: &impl AsFd, token: Token) -> Result<(), Errno> {
        self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_number() {
        for source in [
            Source::Socket(0),
            Source::Socket(63),
            Source::Interface(WorkloadIndex(0)),
            Source::Interface(WorkloadIndex(70_000)),
        ] {
            let token = Token { endpoint: 3, source };
            assert_eq!(Token::decode(token.encode()), token);
            assert_ne!(token.encode(), Token::WAKE);
        }
    }
}
