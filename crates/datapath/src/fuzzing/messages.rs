//! Datagrams from anybody, and sealed messages from a peer, against two endpoints that share a
//! session. It is made once: for most inputs no public key is needed.

use super::{End, probe};
use crate::{drop_reason::DropReason, index::PeerIndex, keys};
use meshward_fuzzing::{Bytes, blocks};
use meshward_wireguard::{
    cookie::MacKeys,
    message::{MessageType, OVERHEAD},
};
use std::{cell::RefCell, net::SocketAddr, time::Instant};

/// Maximum number of steps of an input.
const STEPS: usize = 16;

struct Pair {
    now: Instant,
    /// The endpoints of a member and its peer.
    ends: [End; 2],
    /// An endpoint that has had no handshake yet.
    cold: End,
    /// The keys of the MACs of messages to the peer.
    macs: MacKeys,
}

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let mut ends = [End::new(now, 0), End::new(now, 1)];
        let first = probe(ends[0].address, ends[1].address);
        ends[0].send(now, &first);
        for at in [1, 0, 1] {
            for datagram in std::mem::take(&mut ends[1 - at].out.datagrams) {
                ends[at].receive(now, &datagram);
            }
        }
        let macs = MacKeys::of(&keys::to_wireguard(ends[1].endpoint.public_key()));
        Self { now, ends, cold: End::new(now, 2), macs }
    }

    /// Returns the datagrams that the member sends when it seals this content, whatever it is.
    fn sealed(&mut self, content: &[u8]) -> Vec<Vec<u8>> {
        let End { endpoint, scratch, out, .. } = &mut self.ends[0];
        let mut batch = endpoint.begin_batch(scratch, self.now);
        batch.send_control(PeerIndex(0), content, out);
        batch.finish(out);
        std::mem::take(&mut out.datagrams)
    }

    /// Has both endpoints receive a datagram from a stranger: it delivers nothing, and is answered
    /// by no more bytes than it has.
    fn receive_from_stranger(&mut self, from: SocketAddr, datagram: &[u8], under_load: bool) {
        for end in [&mut self.ends[1], &mut self.cold] {
            end.receive_from(self.now, from, datagram, under_load);
            assert_eq!(end.out.delivered, 0, "there is no rule");
            let sent: usize = std::mem::take(&mut end.out.datagrams).iter().map(Vec::len).sum();
            assert!(sent <= datagram.len(), "{} bytes are answered by {sent}", datagram.len());
        }
    }

    /// Returns how many packets the peer has opened and then dropped, since there is no rule for
    /// them.
    fn opened(&self) -> u64 {
        let drops = self.ends[1].endpoint.stats(self.now).drops;
        let all: u64 = drops.iter().map(|(_, count)| count).sum();
        all - drops.of(DropReason::BadCrypto)
            - drops.of(DropReason::UnknownPeer)
            - drops.of(DropReason::HandshakeLimit)
    }
}

/// Steps: a byte for the kind, a byte for the source and the load, and a block of content.
pub(super) fn tunnel(data: &[u8]) {
    PAIR.with_borrow_mut(|pair| {
        let mut own = pair.take().unwrap_or_else(Pair::new);
        let mut bytes = Bytes(data);
        for _ in 0..STEPS {
            if bytes.is_empty() {
                break;
            }
            step(&mut own, &mut bytes);
        }
        // Whatever came, the session goes on.
        let before = own.opened();
        for datagram in own.sealed(&probe(own.ends[0].address, own.ends[1].address)) {
            own.ends[1].receive(own.now, &datagram);
        }
        assert!(own.opened() > before, "a sealed message was not opened");
        own.ends[1].out.datagrams.clear();
        // After a panic it is made anew.
        *pair = Some(own);
    });
}

fn step(pair: &mut Pair, bytes: &mut Bytes<'_>) {
    let (kind, how) = (bytes.byte() % 7, bytes.byte());
    let from = SocketAddr::from(([192, 0, 2, how & 7], 51820 + u16::from(how >> 4)));
    let (content, under_load) = (bytes.block(), how & 8 != 0);
    match kind {
        0 => pair.receive_from_stranger(from, content, under_load),
        1 => {
            let message = signed(pair, MessageType::Initiation, 148, content);
            pair.receive_from_stranger(from, &message, under_load);
        }
        2 => {
            let message = signed(pair, MessageType::Response, 92, content);
            pair.receive_from_stranger(from, &message, under_load);
        }
        3 => {
            let reply = shaped(MessageType::CookieReply, 64, content);
            pair.receive_from_stranger(from, &reply, under_load);
        }
        4 | 5 => {
            for datagram in pair.sealed(content) {
                assert!(datagram.len() >= OVERHEAD);
                pair.ends[1].receive_from(pair.now, from, &datagram, under_load);
                assert_eq!(pair.ends[1].out.delivered, 0, "there is no rule");
                pair.ends[1].out.datagrams.clear();
                if kind == 5 {
                    let before = pair.opened();
                    pair.receive_from_stranger(from, &datagram, under_load);
                    assert_eq!(pair.opened(), before, "it is opened once");
                }
            }
        }
        _ => {
            // Somebody on the way changes what is sealed.
            for mut datagram in pair.sealed(content) {
                let at = content.first().map_or(0, |byte| usize::from(*byte)) % datagram.len();
                datagram[at] ^= how | 1;
                let before = pair.opened();
                pair.receive_from_stranger(from, &datagram, under_load);
                assert_eq!(pair.opened(), before, "it was changed on its way");
            }
        }
    }
}

/// Returns a message of a kind, with this content as far as it goes.
fn shaped(kind: MessageType, length: usize, content: &[u8]) -> Vec<u8> {
    let mut message = vec![0; length];
    message[..4].copy_from_slice(&kind.number().to_le_bytes());
    message[4..].iter_mut().zip(content).for_each(|(own, byte)| *own = *byte);
    message
}

/// Returns a message of a kind, signed by a sender that knows the endpoint's public key.
fn signed(pair: &Pair, kind: MessageType, length: usize, content: &[u8]) -> Vec<u8> {
    let mut message = shaped(kind, length, content);
    pair.macs.sign(&mut message, None);
    message
}

pub(super) fn samples() -> Vec<Vec<u8>> {
    let packet = probe([10, 42, 0, 1].into(), [10, 42, 1, 1].into());
    let step = |kind: u8, how: u8, content: &[u8]| [&[kind, how][..], &blocks([content])].concat();
    let initiation = [&7u32.to_le_bytes()[..], &[9; 108]].concat();
    vec![
        step(0, 0, &shaped(MessageType::Initiation, 148, &initiation)),
        step(0, 0, &shaped(MessageType::Data, 64, &[0; 60])),
        [step(1, 0, &initiation), step(1, 8, &initiation)].concat(),
        [step(2, 0, &[1, 0, 0, 0, 1]), step(3, 0, &[0; 60])].concat(),
        [step(4, 0, &packet), step(5, 3, &packet), step(6, 1, &packet)].concat(),
        step(4, 0, b"vouch"),
    ]
}
