//! Opening data messages where they stand. Messages of one session in a row are opened under one
//! lock of its replay window.

use super::Received;
use crate::{
    drop_reason::DropReason,
    ecn::{self, Ecn},
    gather::Span,
    headers::Headers,
    icmp_error,
    in_band::{
        self,
        name_message::NameMessage,
        path_probe::{self, PathProbe},
        vouch::Vouch,
    },
    index::PeerIndex,
    offload::Offload,
    packet_batch::PacketBatch,
    sink::Sink,
    transport::peer::{Peer, ReceivedContent, ReceivedRun},
};
use meshward_wireguard::message::{MessageType, RECEIVER_INDEX, read_u32};
use std::net::SocketAddr;

/// The contents of a run of messages.
#[derive(Default)]
struct Opened {
    any: bool,
    /// Bytes of packets; `None` while there were only path probes.
    bytes: Option<u64>,
}

/// The plaintext of a message.
struct Plaintext {
    peer: PeerIndex,
    /// The ECN field of the outer header.
    ecn: Ecn,
    span: Span,
}

impl PacketBatch<'_> {
    /// Opens the first datagrams that belong to one session. Returns where the next one stands.
    pub(super) fn decrypt_run(
        &mut self,
        received: &Received,
        buffer: &mut [u8],
        sink: &mut impl Sink,
    ) -> usize {
        let index = read_u32(&buffer[received.range.start..], RECEIVER_INDEX);
        let session = self
            .peers
            .by_session(index)
            .and_then(|peer| Some((peer, peer.receive_session(self.millis, index)?)));
        let Some((peer, session)) = session else {
            self.state.drops.count(DropReason::UnknownPeer, 1);
            return received.first().end;
        };
        let peer = peer.clone();
        let (mut rest, mut opened) = (received.clone(), Opened::default());
        let mut window = session.received();
        while !rest.range.is_empty() {
            let datagram = rest.first();
            let message = &mut buffer[datagram.clone()];
            if MessageType::of(message) != Some(MessageType::Data)
                || read_u32(message, RECEIVER_INDEX) != index
            {
                break;
            }
            rest.range.start = datagram.end;
            let Ok(text) = session.open(&mut window, message) else {
                self.state.drops.count(DropReason::BadCrypto, 1);
                continue;
            };
            opened.any = true;
            let text = datagram.start + text.start..datagram.start + text.end;
            if let Some(probe) = PathProbe::decode(&buffer[text.clone()]) {
                self.handle_path_probe(&peer, received.from, probe, sink);
                continue;
            }
            let bytes = self.accept_plaintext(
                Plaintext { peer: peer.index, ecn: received.ecn, span: text },
                buffer,
                sink,
            );
            *opened.bytes.get_or_insert(0) += bytes;
        }
        drop(window);
        if opened.any {
            let content =
                opened.bytes.map_or(ReceivedContent::PathProbes, ReceivedContent::Packets);
            let run = ReceivedRun { session: &session, from: received.from, content };
            self.after_receive(&peer, &run, sink);
        }
        rest.range.start
    }

    fn after_receive(&mut self, peer: &Peer, run: &ReceivedRun<'_>, sink: &mut impl Sink) {
        sink.authenticated(run.from);
        let after = peer.note_received(self.millis, run);
        if after.handshake_is_due {
            self.state.request_handshake(peer, sink);
        }
        if after.session_is_confirmed {
            self.forget_send_path();
            for packet in peer.take_staged(&self.state.transport.staged) {
                self.send_staged(peer.index, packet, sink);
            }
        }
    }

    /// Answers a path challenge on its own path, or applies the proof of a response.
    fn handle_path_probe(
        &mut self,
        peer: &Peer,
        from: SocketAddr,
        probe: PathProbe,
        sink: &mut impl Sink,
    ) {
        match probe {
            PathProbe::Challenge(number) => {
                let response = PathProbe::Response(number);
                let sealed =
                    peer.seal(self.millis, path_probe::LENGTH, |packet| response.encode(packet));
                if let Some(sealed) = sealed {
                    sink.to_network(from, Ecn::NotCapable, &sealed, sealed.len());
                }
            }
            PathProbe::Response(number) => {
                let proof = {
                    let mut handshake = peer.handshake.lock();
                    handshake.prober.note_ping_response(self.now, number);
                    handshake.accept_path_response(number)
                };
                if let Some(proof) = proof {
                    peer.apply_proof(self.millis, proof);
                    self.forget_send_path();
                }
            }
        }
    }

    /// Accepts the content of a message of a peer. Returns how many bytes of packets it is.
    fn accept_plaintext(
        &mut self,
        plaintext: Plaintext,
        buffer: &mut [u8],
        sink: &mut impl Sink,
    ) -> u64 {
        let text = plaintext.span.clone();
        if text.is_empty() {
            return 0;
        }
        if let Some(device) = self.tables.device_at(plaintext.peer) {
            // Packets of a device are authorized like those of any workload of this node.
            let bytes = text.len() as u64;
            self.egress(device, Offload::None, &mut buffer[text], sink);
            return bytes;
        }
        let accepted = self.accept_from_node(plaintext, buffer, sink);
        accepted.unwrap_or_else(|reason| {
            self.state.drops.count(reason, 1);
            0
        })
    }

    fn accept_from_node(
        &mut self,
        Plaintext { peer, ecn: outer_ecn, span: text }: Plaintext,
        buffer: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<u64, DropReason> {
        let packet = &mut buffer[text.clone()];
        if let Some((kind, body)) = in_band::read(packet) {
            self.accept_control(peer, (kind, body), sink)?;
            return Ok(text.len() as u64);
        }
        let mut headers = Headers::parse(packet)?;
        icmp_error::truncate(packet, &mut headers);
        if !ecn::decapsulate(outer_ecn, &mut packet[..headers.length]) {
            return Err(DropReason::Congestion);
        }
        let span = text.start..text.start + headers.length;
        self.scratch.coalescer.push(buffer, peer, span, &headers);
        Ok(headers.length as u64)
    }

    /// Accepts in-band control: its kind and body.
    #[cold]
    fn accept_control(
        &mut self,
        peer: PeerIndex,
        (kind, body): ([u8; 4], &[u8]),
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        if let Some(vouch) = Vouch::read(kind, body) {
            if !self.tables.may_vouch(peer, vouch) {
                return Err(DropReason::SpoofedByPeer);
            }
            self.keep_vouch(peer, vouch);
            return Ok(());
        }
        let message = NameMessage::read(kind, body).ok_or(DropReason::Malformed)?;
        sink.name_message(peer, message);
        Ok(())
    }
}
