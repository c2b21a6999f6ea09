//! A session: a key for each direction, good for three minutes. Sealing and opening happen in
//! place, and any number of threads may do both.

use crate::{
    Millis,
    handshake::{SessionKeys, Unauthentic},
    message::{DATA_HEADER, MessageType, RECEIVER_INDEX, TAG, read_u32, write_u32},
    replay::ReplayWindow,
    timers::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME},
};
use parking_lot::{Mutex, MutexGuard};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Offset of the counter in a data message.
const COUNTER: usize = 8;

/// The side of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The side that sent the initiation, and renews the session.
    Initiator,
    /// The side that sent the response.
    Responder,
}

/// The indices by which both sides name a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indices {
    /// The one that the peer writes into its messages.
    pub local: u32,
    /// The one that we write into ours.
    pub remote: u32,
}

/// A session: the keys that two peers share after a handshake.
pub struct Session {
    indices: Indices,
    sealing: LessSafeKey,
    opening: LessSafeKey,
    counter: AtomicU64,
    received: Mutex<ReplayWindow>,
    created: Millis,
    role: Role,
}

impl Session {
    /// The session that a handshake has made just now.
    ///
    /// # Errors
    /// Never in practice: keys of 32 bytes fit the cipher.
    pub fn new(
        keys: &SessionKeys,
        indices: Indices,
        now: Millis,
        role: Role,
    ) -> Result<Self, Unauthentic> {
        let key =
            |bytes: &[u8; 32]| UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| Unauthentic);
        Ok(Self {
            indices,
            sealing: LessSafeKey::new(key(&keys.send)?),
            opening: LessSafeKey::new(key(&keys.receive)?),
            counter: AtomicU64::new(0),
            received: Mutex::default(),
            created: now,
            role,
        })
    }

    /// Returns the index that the peer writes into its messages.
    #[inline]
    pub fn local_index(&self) -> u32 {
        self.indices.local
    }

    /// Returns the time of the handshake.
    pub fn created(&self) -> Millis {
        self.created
    }

    /// Returns this node's side of the session's handshake.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns whether the session may still be used, in either direction.
    #[inline]
    pub fn is_alive(&self, now: Millis) -> bool {
        !now.has_passed(REJECT_AFTER_TIME, self.created)
    }

    /// Returns whether a session that has just sealed something is to be renewed by us.
    #[inline]
    pub fn needs_rekey(&self, now: Millis) -> bool {
        self.counter.load(Relaxed) > REKEY_AFTER_MESSAGES
            || self.role == Role::Initiator && now.has_passed(REKEY_AFTER_TIME, self.created)
    }

    /// Reserves `count` counters for sealing. Returns the first, or `None` if the session has not
    /// so many left. None is ever given out twice, and none at the end or beyond.
    #[inline]
    pub fn reserve(&self, count: u64) -> Option<u64> {
        let next =
            |first: u64| first.checked_add(count).filter(|next| *next <= REJECT_AFTER_MESSAGES);
        self.counter.fetch_update(Relaxed, Relaxed, next).ok()
    }

    /// Makes a data message of `datagram`: the plaintext stands behind 16 bytes of room, with 16
    /// bytes of room behind it. `counter` was [reserved](Self::reserve) and is used once.
    ///
    /// # Panics
    /// Panics if `datagram` is shorter than the room around the plaintext, 32 bytes.
    #[inline]
    pub fn seal(&self, counter: u64, datagram: &mut [u8]) {
        write_u32(datagram, 0, MessageType::Data.number());
        write_u32(datagram, RECEIVER_INDEX, self.indices.remote);
        datagram[COUNTER..DATA_HEADER].copy_from_slice(&counter.to_le_bytes());
        let end = datagram.len() - TAG;
        let (text, tag) = datagram[DATA_HEADER..].split_at_mut(end - DATA_HEADER);
        let sealed = self.sealing.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text);
        // ring refuses only texts of 256 GiB and more.
        tag.copy_from_slice(sealed.expect("a datagram can be sealed").as_ref());
    }

    /// Locks the counters that were received, for opening several messages.
    #[inline]
    pub fn received(&self) -> MutexGuard<'_, ReplayWindow> {
        self.received.lock()
    }

    /// Opens a data message in place. Returns the range of its plaintext.
    ///
    /// # Errors
    /// Fails if the message does not authenticate, or its counter was used.
    #[inline]
    pub fn open(
        &self,
        window: &mut ReplayWindow,
        datagram: &mut [u8],
    ) -> Result<Range<usize>, Unauthentic> {
        let counter = u64::from(read_u32(datagram, COUNTER))
            | u64::from(read_u32(datagram, COUNTER + 4)) << 32;
        if counter >= REJECT_AFTER_MESSAGES || !window.is_fresh(counter) {
            return Err(Unauthentic);
        }
        let sealed = datagram.get_mut(DATA_HEADER..).ok_or(Unauthentic)?;
        let opened = self
            .opening
            .open_in_place(nonce(counter), Aad::empty(), sealed)
            .map_err(|_| Unauthentic)?;
        let text = DATA_HEADER..DATA_HEADER + opened.len();
        if !window.accept(counter) {
            return Err(Unauthentic);
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

/// The sessions with one peer (the kernel's `noise_keypairs`).
#[derive(Default)]
pub struct Sessions {
    current: Option<Arc<Session>>,
    /// The one before: messages of it may still be on their way.
    previous: Option<Arc<Session>>,
    /// Made by our response, and used for sending once the peer has used it.
    next: Option<Arc<Session>>,
}

impl Sessions {
    /// Returns the session to seal with, if there is one that is alive.
    #[inline]
    pub fn current(&self, now: Millis) -> Option<&Arc<Session>> {
        self.current.as_ref().filter(|session| session.is_alive(now))
    }

    /// Returns the session that the peer names by `index`, if it is alive.
    #[inline]
    pub fn by_local_index(&self, now: Millis, index: u32) -> Option<&Arc<Session>> {
        let all = [&self.current, &self.next, &self.previous];
        let found = all.into_iter().flatten().find(|session| session.local_index() == index);
        found.filter(|session| session.is_alive(now))
    }

    /// Returns whether a session waits for the peer to use it first.
    #[inline]
    pub fn is_next(&self, session: &Arc<Session>) -> bool {
        self.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session))
    }

    /// Adds the session that a handshake has made.
    pub fn install(&mut self, session: Session) {
        let session = Arc::new(session);
        match session.role() {
            Role::Initiator => {
                let next = self.next.take();
                self.previous = next.or_else(|| self.current.take());
                self.current = Some(session);
            }
            Role::Responder => {
                self.next = Some(session);
                self.previous = None;
            }
        }
    }

    /// Makes the next session the current one: the peer has used it.
    pub fn confirm_next(&mut self) {
        self.previous = self.current.take();
        self.current = self.next.take();
    }

    /// Returns whether any session is older than `age`.
    pub fn any_older_than(&self, now: Millis, age: Duration) -> bool {
        let all = [&self.current, &self.previous, &self.next];
        all.into_iter().flatten().any(|session| now.has_passed(age, session.created))
    }

    /// Forgets the sessions that are older than `age`, and their keys.
    pub fn forget_older_than(&mut self, now: Millis, age: Duration) {
        for session in [&mut self.current, &mut self.previous, &mut self.next] {
            session.take_if(|session| now.has_passed(age, session.created));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn session(counter: u64) -> Session {
        let keys = SessionKeys { send: [1; 32], receive: [2; 32] };
        let indices = Indices { local: 0, remote: 0 };
        let session = Session::new(&keys, indices, Millis(0), Role::Initiator).unwrap();
        session.counter.store(counter, Relaxed);
        session
    }

    #[test]
    fn no_counter_is_given_out_twice_or_beyond_the_end_by_any_number_of_threads() {
        let session = Arc::new(session(REJECT_AFTER_MESSAGES - 10_000));
        let takers = (1..=4u64).map(|count| {
            let session = session.clone();
            thread::spawn(move || {
                let mut counters = Vec::new();
                while let Some(first) = session.reserve(count) {
                    counters.extend(first..first + count);
                }
                counters
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
        assert!((0..1000).all(|_| session.reserve(1).is_none()));
        assert!(session.needs_rekey(Millis(0)));
        assert_eq!(session.counter.load(Relaxed), REJECT_AFTER_MESSAGES);
    }
}
