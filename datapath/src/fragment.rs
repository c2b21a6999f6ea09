//! Fragments: only the first part of a packet has ports, so its verdict is kept for the parts that follow.

use crate::{
    filter::Counters,
    packet::{Fragment, Headers},
};
use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// Seconds for which the rest of a packet may follow (RFC 8200 §4.5 gives reassembly 60).
const LIFETIME: u32 = 30;
/// The most packets whose rest is awaited.
const LIMIT: usize = 16_384;

type Key = (IpAddr, IpAddr, u32);

/// The packets whose first fragment passed.
#[derive(Debug, Default)]
pub(crate) struct Fragments(HashMap<Key, Passed>);

#[derive(Debug)]
struct Passed {
    stamp: u64,
    deadline: u32,
    link: Arc<Counters>,
}

impl Fragments {
    /// Notes that a packet passed, if more of it is to follow.
    pub fn passed(&mut self, now: u32, headers: &Headers, stamp: u64, link: &Arc<Counters>) {
        let Fragment::First(id) = headers.fragment else { return };
        if self.0.len() >= LIMIT {
            self.sweep(now);
        }
        if self.0.len() < LIMIT {
            let key = (headers.source, headers.destination, id);
            self.0.insert(key, Passed { stamp, deadline: now + LIFETIME, link: link.clone() });
        }
    }

    /// The link that a later fragment belongs to, if its first one passed under the same rules.
    pub fn link_of(&self, now: u32, headers: &Headers, stamp: u64) -> Option<Arc<Counters>> {
        let Fragment::Later(id) = headers.fragment else { return None };
        let passed = self.0.get(&(headers.source, headers.destination, id))?;
        (passed.stamp == stamp && passed.deadline > now).then(|| passed.link.clone())
    }

    pub fn sweep(&mut self, now: u32) {
        self.0.retain(|_, passed| passed.deadline > now);
    }
}
