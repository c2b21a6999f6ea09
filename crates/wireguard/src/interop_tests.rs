//! Every message against another implementation, boringtun's, in both directions.

use crate::{
    Millis, PublicKey, SecretKey,
    cookie::{CookieIssuer, MacKeys},
    handshake::{Initiator, Responder},
    message::{
        COOKIE_REPLY_LENGTH, INITIATION_LENGTH, OVERHEAD, RECEIVER_INDEX, RESPONSE_LENGTH,
        SENDER_INDEX, initiation, read_u32, response,
    },
    session::{Indices, Role, Session},
    timestamp::TimestampSource,
};
use boringtun::noise::{Tunn, TunnResult, rate_limiter::RateLimiter};
use std::{net::IpAddr, sync::Arc, time::Duration};

const PACKET: [u8; 28] =
    [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8, 0, 0];
const LOCAL_INDEX: u32 = 0x0007_0001;

struct Bench {
    own: SecretKey,
    theirs: Tunn,
    their_key: PublicKey,
    timestamps: TimestampSource,
}

impl Bench {
    /// `limit`: how many handshakes a second boringtun answers without a cookie.
    fn new(limit: u64) -> Self {
        let (own, other) = (SecretKey::from_bytes([1; 32]), [2; 32]);
        let their_key = SecretKey::from_bytes(other).public();
        let own_public = x25519_dalek::PublicKey::from(own.public().0);
        let limiter = RateLimiter::new(&x25519_dalek::PublicKey::from(their_key.0), limit);
        let secret = x25519_dalek::StaticSecret::from(other);
        let theirs = Tunn::new(secret, own_public, None, None, 3, Some(Arc::new(limiter)));
        Self { own, theirs, their_key, timestamps: TimestampSource::default() }
    }

    fn initiate(&self, cookie: Option<&[u8; 16]>) -> (Initiator, [u8; INITIATION_LENGTH]) {
        let mut message = initiation(LOCAL_INDEX);
        let timestamp = self.timestamps.next(None, Duration::from_secs(1_700_000_000));
        let begun = Initiator::begin(&self.own, &self.their_key, timestamp.into(), &mut message);
        MacKeys::of(&self.their_key).sign(&mut message, cookie);
        (begun.unwrap(), message)
    }

    fn hand_over(&mut self, message: &[u8]) -> Vec<u8> {
        let (from, mut room) = (IpAddr::from([192, 0, 2, 2]), [0; 200]);
        match self.theirs.decapsulate(Some(from), message, &mut room) {
            TunnResult::WriteToNetwork(answer) => answer.to_vec(),
            TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
            TunnResult::Done => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn their_initiation(&mut self) -> Vec<u8> {
        let mut room = [0; 200];
        match self.theirs.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn finish(&self, mut initiator: Initiator, response: &[u8]) -> Session {
        assert_eq!((response[0], response.len()), (2, RESPONSE_LENGTH));
        assert!(MacKeys::of(&self.own.public()).verify(response));
        let forged = [&response[..20], &[0; 20], &response[40..]].concat();
        assert!(initiator.finish(&forged).is_err());
        let keys = initiator.finish(response).unwrap();
        let indices = Indices { local: LOCAL_INDEX, remote: read_u32(response, SENDER_INDEX) };
        Session::new(&keys, indices, Millis(1), Role::Initiator).unwrap()
    }

    fn data_goes_both_ways(&mut self, session: &Session) {
        let mut datagram = [&[0; 16][..], &PACKET, &[0; 16]].concat();
        session.seal(session.reserve(1).unwrap(), &mut datagram);
        assert_eq!(self.hand_over(&datagram), PACKET);
        let mut room = [0; 200];
        let TunnResult::WriteToNetwork(datagram) = self.theirs.encapsulate(&PACKET, &mut room)
        else {
            panic!("nothing was sealed");
        };
        assert_eq!((datagram[0], read_u32(datagram, RECEIVER_INDEX)), (4, LOCAL_INDEX));
        let text = session.open(&mut session.received(), datagram).unwrap();
        assert_eq!(datagram[text], PACKET);
    }
}

#[test]
fn boringtun_answers_our_initiation() {
    let mut bench = Bench::new(1000);
    let (initiator, initiation) = bench.initiate(None);
    let response = bench.hand_over(&initiation);
    let session = bench.finish(initiator, &response);
    bench.data_goes_both_ways(&session);
}

#[test]
fn we_answer_an_initiation_of_boringtun() {
    let mut bench = Bench::new(1000);
    let initiation = bench.their_initiation();
    assert!(MacKeys::of(&bench.own.public()).verify(&initiation));
    let responder = Responder::read(&bench.own, &initiation).unwrap();
    assert_eq!(responder.peer, bench.their_key);
    let remote = read_u32(&initiation, SENDER_INDEX);
    let mut message = response(LOCAL_INDEX, remote);
    let keys = responder.finish(&mut message).unwrap();
    MacKeys::of(&bench.their_key).sign(&mut message, None);
    let indices = Indices { local: LOCAL_INDEX, remote };
    let session = Session::new(&keys, indices, Millis(1), Role::Responder).unwrap();
    // The answer to the response is a keepalive, which confirms the session.
    let mut keepalive = bench.hand_over(&message);
    assert_eq!(keepalive.len(), OVERHEAD);
    assert!(session.open(&mut session.received(), &mut keepalive).unwrap().is_empty());
    bench.data_goes_both_ways(&session);
}

#[test]
fn we_show_the_cookie_of_boringtun() {
    let mut bench = Bench::new(0);
    let (_, message) = bench.initiate(None);
    let mac1 = message[INITIATION_LENGTH - 32..INITIATION_LENGTH - 16].try_into().unwrap();
    let reply = bench.hand_over(&message);
    assert_eq!((reply[0], reply.len()), (3, COOKIE_REPLY_LENGTH));
    let cookie = MacKeys::of(&bench.their_key).open_reply(&reply, &mac1).unwrap();
    let (initiator, again) = bench.initiate(Some(&cookie));
    let response = bench.hand_over(&again);
    let session = bench.finish(initiator, &response);
    bench.data_goes_both_ways(&session);
}

#[test]
fn boringtun_shows_our_cookie() {
    let mut bench = Bench::new(1000);
    let (mut issuer, keys) = (CookieIssuer::default(), MacKeys::of(&bench.own.public()));
    let from = "192.0.2.2:51820".parse().unwrap();
    let first = bench.their_initiation();
    assert!(!issuer.verify(Millis(1), from, &first));
    let reply = issuer.reply(&keys, Millis(1), from, &first);
    bench.hand_over(&reply);
    let second = bench.their_initiation();
    assert!(keys.verify(&second) && issuer.verify(Millis(2), from, &second));
}
