//! A session: a key for each direction, good for three minutes. Sealing and opening happen in
//! place, and any number of threads may do both.

use super::{
    Millis,
    message::{DATA_HEADER, MessageType, TAG, number, set_number},
    noise::{Keys, Refused},
    replay::Window,
};
use parking_lot::{Mutex, MutexGuard};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// After how many messages a session is renewed, and after how many it ends (paper §6.1).
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// What two endpoints share after a handshake.
pub(crate) struct Session {
    /// What the peer puts into its messages.
    pub local_index: u32,
    /// What we put into ours.
    remote_index: u32,
    sealing: LessSafeKey,
    opening: LessSafeKey,
    counter: AtomicU64,
    received: Mutex<Window>,
    pub born: Millis,
    /// Whether we began the handshake: then we are the one to renew it.
    pub initiator: bool,
}

impl Session {
    pub fn new(
        keys: &Keys,
        local_index: u32,
        remote_index: u32,
        born: Millis,
        initiator: bool,
    ) -> Result<Self, Refused> {
        let key =
            |bytes: &[u8; 32]| UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| Refused);
        Ok(Self {
            local_index,
            remote_index,
            sealing: LessSafeKey::new(key(&keys.send)?),
            opening: LessSafeKey::new(key(&keys.receive)?),
            counter: AtomicU64::new(0),
            received: Mutex::default(),
            born,
            initiator,
        })
    }

    /// Takes `count` counters for sealing, and gives the first; `None` when the session has not so
    /// many left. None is ever given out twice, and none at the end or beyond.
    pub fn reserve(&self, count: u64) -> Option<u64> {
        let next =
            |first: u64| first.checked_add(count).filter(|next| *next <= REJECT_AFTER_MESSAGES);
        self.counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    /// Whether so many messages were sealed that the session is to be renewed.
    pub fn is_worn(&self) -> bool {
        self.counter.load(Ordering::Relaxed) > REKEY_AFTER_MESSAGES
    }

    /// Makes a data message of `datagram`: the plaintext stands behind 16 bytes of room, with 16
    /// bytes of room behind it. `counter` was [reserved](Self::reserve) and is used once.
    pub fn seal(&self, counter: u64, datagram: &mut [u8]) {
        set_number(datagram, 0, MessageType::Data.number());
        set_number(datagram, 4, self.remote_index);
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        let end = datagram.len() - TAG;
        let (text, tag) = datagram[DATA_HEADER..].split_at_mut(end - DATA_HEADER);
        let sealed = self.sealing.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text);
        // ring refuses only texts of 256 GiB and more.
        tag.copy_from_slice(sealed.expect("a datagram can be sealed").as_ref());
    }

    /// The counters that were received, for opening several messages.
    pub fn received(&self) -> MutexGuard<'_, Window> {
        self.received.lock()
    }

    /// Opens a data message in place: where its plaintext then stands. A message whose counter was
    /// used does not open.
    pub fn open(&self, window: &mut Window, datagram: &mut [u8]) -> Result<Range<usize>, Refused> {
        let counter = u64::from(number(datagram, 8)) | u64::from(number(datagram, 12)) << 32;
        if counter >= REJECT_AFTER_MESSAGES || !window.may_take(counter) {
            return Err(Refused);
        }
        let sealed = &mut datagram[DATA_HEADER..];
        let opened = self
            .opening
            .open_in_place(nonce(counter), Aad::empty(), sealed)
            .map_err(|_| Refused)?;
        let text = DATA_HEADER..DATA_HEADER + opened.len();
        if !window.take(counter) {
            return Err(Refused);
        }
        Ok(text)
    }
}

/// Four zero bytes, then the counter (paper §5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    fn session(counter: u64) -> Session {
        let keys = Keys { send: [1; 32], receive: [2; 32] };
        let session = Session::new(&keys, 0, 0, Millis(0), true).unwrap();
        session.counter.store(counter, Ordering::Relaxed);
        session
    }

    #[test]
    fn no_counter_is_given_out_twice_or_beyond_the_end_by_any_number_of_threads() {
        let session = Arc::new(session(REJECT_AFTER_MESSAGES - 10_000));
        let takers = (1..=4u64).map(|count| {
            let session = session.clone();
            thread::spawn(move || {
                let mut taken = Vec::new();
                while let Some(first) = session.reserve(count) {
                    taken.extend(first..first + count);
                }
                taken
            })
        });
        let all = takers.collect::<Vec<_>>().into_iter().flat_map(|taker| taker.join().unwrap());
        let mut all: Vec<u64> = all.collect();
        let given = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), given, "each once");
        assert_eq!(all.last(), Some(&(REJECT_AFTER_MESSAGES - 1)), "up to the last");
    }

    #[test]
    fn a_session_at_its_end_stays_there_however_often_it_is_asked() {
        let session = session(REJECT_AFTER_MESSAGES - 1);
        assert_eq!([session.reserve(2), session.reserve(u64::MAX)], [None, None]);
        assert!(session.reserve(1).is_some());
        assert!((0..1000).all(|_| session.reserve(1).is_none()) && session.is_worn());
        assert_eq!(session.counter.load(Ordering::Relaxed), REJECT_AFTER_MESSAGES);
    }
}
