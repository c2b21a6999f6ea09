//! Messages of the endpoint itself to its peers, inside of their sessions.

use super::peer::{Peer, SendPath};
use meshward_wireguard::{
    Millis,
    message::{DATA_HEADER, OVERHEAD},
};
use std::net::SocketAddr;

/// A function that sends a message to an address.
pub(crate) type SendMessage<'a> = &'a mut dyn FnMut(SocketAddr, &[u8]);

impl Peer {
    /// Seals a packet of `length` bytes that `write` fills. `None`: there is no session.
    pub(crate) fn seal(
        &self,
        now: Millis,
        length: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Option<Vec<u8>> {
        let SendPath { session, .. } = self.send_path(now)?;
        let counter = session.reserve(1)?;
        let mut datagram = vec![0; length + OVERHEAD];
        write(&mut datagram[DATA_HEADER..DATA_HEADER + length]);
        session.seal(counter, &mut datagram);
        Some(datagram)
    }

    /// Sends a keepalive, if there is a session.
    pub(crate) fn send_keepalive(&self, now: Millis, send: SendMessage) {
        let Some(SendPath { session, address }) = self.send_path(now) else { return };
        let Some(counter) = session.reserve(1) else { return };
        let mut datagram = [0; OVERHEAD];
        session.seal(counter, &mut datagram);
        self.note_sent(now);
        send(address, &datagram);
    }
}
