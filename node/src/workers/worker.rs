//! A worker: a thread with a poll loop that reads from its sockets and interfaces and takes packets
//! through the endpoints.

use super::{
    output::EndpointOutput,
    poll::{Source, Token},
    served::ServedEndpoint,
    shared::Shared,
};
use crate::{
    clock,
    sys::{self, Inbox, ReceivedMessages},
};
use meshward_datapath::{
    Ecn, Offload, Received, VIRTIO_HEADER_LENGTH, WorkerScratch, WorkloadIndex,
};
use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollTimeout},
    unistd,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Packets, and bytes, of one packet batch from an interface at the most: a batch holds up changes.
const MAX_BATCH_PACKETS: usize = 64;
const MAX_BATCH_BYTES: usize = 128 << 10;
/// Calls that read one socket in a row at the most, before the others have their turn.
const MAX_SOCKET_READS: usize = 8;
/// The scheduler's slice of a worker where threads share a core: short, so that a receiver can
/// empty its socket before the next burst.
const TURN: Duration = Duration::from_micros(100);
/// Room for a super-packet of the longest kind with its virtio header.
const BUFFER: usize = (64 << 10) + VIRTIO_HEADER_LENGTH;

/// A worker.
pub(super) struct Worker {
    shared: Arc<Shared>,
    number: usize,
    scratch: WorkerScratch,
    buffer: Vec<u8>,
    inbox: Inbox,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self {
            shared,
            number,
            scratch: WorkerScratch::default(),
            buffer: vec![0; BUFFER],
            inbox: Inbox::new(),
        }
    }

    /// Works until the workers are to end.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let poll = &shared.workers[self.number];
        poll.thread.store(nix::unistd::gettid().as_raw(), Relaxed);
        // Without it the worker's turns are longer, and so are the bursts that it makes.
        let _ = sys::ask_for_short_turns(TURN);
        let mut events = [EpollEvent::empty(); 64];
        while !shared.ended.load(Relaxed) {
            let ready = match poll.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!("a worker cannot poll: {error}");
                    return;
                }
            };
            let endpoints = shared.endpoints.read();
            for event in &events[..ready] {
                if event.data() == Token::WAKE {
                    continue;
                }
                let Token { endpoint, source } = Token::decode(event.data());
                let Some(Some(served)) = endpoints.get(endpoint as usize) else { continue };
                match source {
                    Source::Socket(socket) => self.read_socket(served, socket),
                    Source::Interface(index) => self.read_interface(served, index),
                }
            }
        }
    }

    fn read_socket(&mut self, served: &ServedEndpoint, socket: usize) {
        for _ in 0..MAX_SOCKET_READS {
            let ReceivedMessages { count, may_have_more } =
                match self.inbox.receive(&served.sockets[socket]) {
                    Ok(received) => received,
                    Err(Errno::EAGAIN) => return,
                    // An ICMP error about something that was sent; the next call goes on.
                    Err(_) => continue,
                };
            self.scratch.set_coalesce_options(served.coalesce_options());
            let mut output = EndpointOutput::new(served, self.number);
            let mut batch = served.endpoint.begin_batch(&mut self.scratch, clock::now());
            for number in 0..count {
                let Some(message) = self.inbox.message(number) else { continue };
                let range = message.start..message.start + message.length;
                let size = message.segment.unwrap_or(message.length);
                let mark = Ecn::of_class(message.class);
                output.set_received(message.from, message.to);
                batch.ingress(
                    Received { from: message.from, ecn: mark, range, size },
                    self.inbox.buffer(),
                    &mut output,
                );
            }
            batch.deliver(self.inbox.buffer(), &mut output);
            batch.finish(&mut output);
            if !may_have_more {
                return;
            }
        }
    }

    fn read_interface(&mut self, served: &ServedEndpoint, index: WorkloadIndex) {
        let mut output = EndpointOutput::new(served, self.number);
        let mut batch = served.endpoint.begin_batch(&mut self.scratch, clock::now());
        let mut bytes = 0;
        for _ in 0..MAX_BATCH_PACKETS {
            let Some(tun) = output.interface(index) else { break };
            match unistd::read(&tun.fd, &mut self.buffer) {
                Ok(length) => {
                    bytes += length;
                    let Some((header, packet)) = self.buffer[..length].split_first_chunk_mut()
                    else {
                        continue;
                    };
                    let Some(offload) = Offload::decode(header) else { continue };
                    batch.egress(index, offload, packet, &mut output);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    // The namespace is gone, and with it the interface: polling it on would never
                    // rest.
                    let _ = self.shared.workers[self.number].epoll.delete(&tun.fd);
                    break;
                }
            }
            if bytes >= MAX_BATCH_BYTES {
                break;
            }
        }
        batch.finish(&mut output);
    }
}
