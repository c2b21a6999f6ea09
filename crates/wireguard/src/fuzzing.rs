//! Properties of any bytes that a stranger or a peer may send; see the crate `meshward-fuzzing`.

use crate::{
    Millis, SecretKey,
    cookie::{CookieIssuer, MacKeys},
    handshake::{Initiator, Responder, SessionKeys},
    load_gate::{Incoming, Interface, LoadGate},
    message::{INITIATION_LENGTH, MessageType, OVERHEAD, RESPONSE_LENGTH, initiation, response},
    session::{Indices, Role, Session},
    timestamp::TimestampSource,
};
use meshward_fuzzing::{Bytes, blocks};
use std::{net::SocketAddr, time::Duration};

meshward_fuzzing::targets! {
    wireguard: wireguard, samples;
}

struct Own(MacKeys);

impl Interface for Own {
    fn verify_mac1(&self, message: &[u8]) -> Option<&MacKeys> {
        self.0.verify(message).then_some(&self.0)
    }
    fn has_index(&self, index: u32) -> bool {
        index.is_multiple_of(2)
    }
    fn try_response(&self, index: u32) -> bool {
        index.is_multiple_of(4)
    }
}

fn secrets() -> [SecretKey; 2] {
    [SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32])]
}

/// A byte that says under which conditions a message comes, and the message in a block: none is
/// accepted that was not made with the keys, and none has an answer that is longer than itself.
fn wireguard(data: &[u8]) {
    let mut bytes = Bytes(data);
    let [own, _] = secrets();
    let (gate, interface) = (LoadGate::default(), Own(MacKeys::of(&own.public())));
    let mut now = Millis(1);
    while !bytes.is_empty() {
        let (how, message) = (bytes.byte(), bytes.block());
        now = now + Duration::from_millis(u64::from(how >> 4));
        let from = SocketAddr::from(([192, 0, 2, how & 3], 51820));
        if how & 8 != 0 {
            gate.begin_load(now);
        }
        let mut signed = message.to_vec();
        if how & 4 != 0 && message.len() >= 32 {
            interface.0.sign(&mut signed, None);
        }
        let reply = |answer: &[u8]| assert!(answer.len() <= signed.len());
        let admitted = gate.admit(now, Incoming { from, message: &signed }, &interface, reply);
        if admitted.is_ok() && MessageType::of(&signed) == Some(MessageType::Initiation) {
            assert!(Responder::read(&own, &signed).is_err(), "an initiation was forged");
        }
        assert!(interface.0.open_reply(message, &[7; 16]).is_none(), "a cookie was forged");
        open(message);
    }
}

/// Hands bytes to a session, and to an initiator.
fn open(message: &[u8]) {
    let [own, other] = secrets();
    let keys = SessionKeys { send: [3; 32], receive: [4; 32] };
    let indices = Indices { local: 1, remote: 2 };
    let Ok(session) = Session::new(&keys, indices, Millis(1), Role::Initiator) else { return };
    let mut window = session.received();
    assert!(session.open(&mut window, &mut message.to_vec()).is_err(), "a message was forged");
    if message.len() == RESPONSE_LENGTH {
        let timestamp = TimestampSource::default().next(None, Duration::from_secs(1));
        let mut first = initiation(1);
        let begun = Initiator::begin(&own, &other.public(), timestamp.into(), &mut first);
        assert!(begun.is_ok_and(|mut begun| begun.finish(message).is_err()), "a forged response");
    }
}

/// Messages whose fields stand where they should, and whose MACs and tags are wrong.
fn samples() -> Vec<Vec<u8>> {
    let [own, _] = secrets();
    let keys = MacKeys::of(&own.public());
    let from = SocketAddr::from(([192, 0, 2, 1], 51820));
    let first: [u8; INITIATION_LENGTH] = initiation(2);
    let reply = CookieIssuer::default().reply(&keys, Millis(1), from, &first);
    let mut data = vec![0; OVERHEAD + 16];
    data[0] = 4;
    let all: [&[u8]; 4] = [&first, &response(1, 4), &reply, &data];
    let samples = all.iter().flat_map(|message| {
        [0u8, 4, 8, 12].map(|how| [&[how][..], &blocks([*message])[..]].concat())
    });
    let mut samples: Vec<Vec<u8>> = samples.collect();
    samples.push(samples.concat());
    samples
}
