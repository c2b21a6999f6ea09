//! The cryptography by itself, for comparison.

use crate::{packets::packet, report::nanoseconds};
use boringtun::noise::{Tunn, TunnResult};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::time::Duration;

/// Returns the nanoseconds in which boringtun seals and opens a packet, with nothing around it.
pub(crate) fn boringtun(size: usize, time: Duration) -> f64 {
    let key = |byte: u8| x25519_dalek::StaticSecret::from([byte; 32]);
    let public = |byte| x25519_dalek::PublicKey::from(&key(byte));
    let mut sender = Tunn::new(key(1), public(2), None, None, 1, None);
    let mut receiver = Tunn::new(key(2), public(1), None, None, 2, None);
    let (mut sealed, mut opened) = (vec![0; size + 200], vec![0; size + 200]);
    let packet = packet(17, 4000, size);
    let written = |result: TunnResult| match result {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("no message: {other:?}"),
    };
    let initiation = written(sender.format_handshake_initiation(&mut sealed, false));
    let response = written(receiver.decapsulate(None, &initiation, &mut sealed));
    let keepalive = written(sender.decapsulate(None, &response, &mut sealed));
    receiver.decapsulate(None, &keepalive, &mut opened);
    nanoseconds(time, 1, || {
        let TunnResult::WriteToNetwork(datagram) = sender.encapsulate(&packet, &mut sealed) else {
            panic!("nothing was sealed");
        };
        let TunnResult::WriteToTunnelV4(..) = receiver.decapsulate(None, datagram, &mut opened)
        else {
            panic!("nothing was opened");
        };
    })
}

/// Returns the nanoseconds in which ring seals and opens as many bytes.
pub(crate) fn aead(size: usize, time: Duration) -> f64 {
    let key =
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key of 32 bytes"));
    let mut buffer = vec![0; size];
    let mut number = 0u64;
    nanoseconds(time, 1, || {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        number += 1;
        buffer.truncate(size);
        let seal = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(seal, Aad::empty(), &mut buffer).expect("it can be sealed");
        let open = Nonce::assume_unique_for_key(nonce);
        key.open_in_place(open, Aad::empty(), &mut buffer).expect("it can be opened");
    })
}
