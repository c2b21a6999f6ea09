//! Path selection: the path of packets to a peer. A direct path is kept to while something
//! comes by it. One that was lost is avoided for a while, longer each time, as long as a relay is
//! good, so that packets do not change between the two every second.

use meshward_types::relay::is_relayed;
use meshward_wireguard::Millis;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Time for which a path counts as good after something has come by it.
pub(crate) const PATH_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a direct path that was lost is avoided; it doubles with each loss ...
const FIRST_AVOIDANCE: Duration = Duration::from_secs(2);
const MAX_AVOIDANCE: Duration = Duration::from_mins(5);
/// ... until a direct path has lasted for so long.
const AVOIDANCE_RESET: Duration = Duration::from_mins(10);

/// The reason for which a direct path was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathLossReason {
    /// No packet arrived on it any more.
    Silence,
    /// A handshake was answered only through a relay.
    Handshake,
}

/// A direct path that was lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LostDirectPath {
    pub(crate) address: SocketAddr,
    pub(crate) at: Millis,
    pub(crate) avoided_until: Millis,
    pub(crate) reason: PathLossReason,
    /// Losses in a row.
    losses: u32,
}

/// The last times at which something authentic came from a peer, in [`Millis`]; 0: never.
#[derive(Debug, Default)]
pub(crate) struct LastHeard {
    any: AtomicU64,
    direct: AtomicU64,
    relayed: AtomicU64,
}

impl LastHeard {
    /// Notes a message that says nothing of the path on which it came.
    pub(crate) fn note(&self, now: Millis) {
        self.any.store(now.0, Relaxed);
    }

    /// Notes the path on which a message came.
    pub(crate) fn note_path(&self, now: Millis, from: &SocketAddr) {
        let path = if is_relayed(from) { &self.relayed } else { &self.direct };
        path.store(now.0, Relaxed);
    }

    /// Returns the time at which anything was received last.
    pub(crate) fn any(&self) -> Millis {
        Millis(self.any.load(Relaxed))
    }

    /// Returns the time at which something was received on a direct path last.
    pub(crate) fn direct(&self) -> Millis {
        Millis(self.direct.load(Relaxed))
    }

    fn was_ever_direct(&self) -> bool {
        self.direct.load(Relaxed) != 0
    }

    fn direct_is_good(&self, now: Millis) -> bool {
        is_recent(now, self.direct.load(Relaxed))
    }

    fn relay_is_good(&self, now: Millis) -> bool {
        is_recent(now, self.relayed.load(Relaxed))
    }

    /// Copies the times of the same peer.
    pub(crate) fn copy_from(&self, other: &Self) {
        for (own, other) in [
            (&self.any, &other.any),
            (&self.direct, &other.direct),
            (&self.relayed, &other.relayed),
        ] {
            own.store(other.load(Relaxed), Relaxed);
        }
    }
}

fn is_recent(now: Millis, heard: u64) -> bool {
    heard != 0 && !now.has_passed(PATH_TIMEOUT, Millis(heard))
}

/// The result of selecting a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathChange {
    /// The path is the same.
    None,
    /// The path is another one.
    Moved,
    /// The path is direct, and was relayed before: the peer is to learn of it soon.
    BecameDirect,
}

/// The path to a peer.
#[derive(Debug, Default)]
pub(crate) struct PathSelection {
    address: Option<SocketAddr>,
    direct_since: Option<Millis>,
    lost: Option<LostDirectPath>,
}

impl PathSelection {
    pub(crate) fn new(address: Option<SocketAddr>) -> Self {
        Self { address, ..Self::default() }
    }

    /// Returns the address that packets go to; `None`: no address is known.
    #[inline]
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Replaces a guess by another.
    pub(crate) fn guess(&mut self, address: Option<SocketAddr>) {
        self.address = address;
    }

    pub(crate) fn is_relayed(&self) -> bool {
        self.address.is_some_and(|address| is_relayed(&address))
    }

    fn is_direct(&self) -> bool {
        self.address.is_some_and(|address| !is_relayed(&address))
    }

    /// Returns the direct path that was lost, while packets are relayed.
    pub(crate) fn lost(&self) -> Option<LostDirectPath> {
        self.lost.filter(|_| self.is_relayed())
    }

    /// Returns whether a direct path is avoided: it was lost, and the relay is good.
    pub(crate) fn avoids(&self, now: Millis, heard: &LastHeard, address: &SocketAddr) -> bool {
        let lost =
            self.lost.is_some_and(|lost| lost.address == *address && now < lost.avoided_until);
        self.is_relayed() && heard.relay_is_good(now) && lost
    }

    /// Returns whether packets may follow a peer to an address that something has come from: not to
    /// a relay while a direct path is good, nor to a path that is avoided.
    pub(crate) fn may_follow(&self, now: Millis, heard: &LastHeard, from: &SocketAddr) -> bool {
        let stays_direct = is_relayed(from) && self.is_direct() && heard.direct_is_good(now);
        !self.avoids(now, heard, from) && !stays_direct
    }

    /// Sends packets to `to` from now on. `reason`: why a direct path is given up for a relay, if
    /// one is.
    pub(crate) fn change(
        &mut self,
        now: Millis,
        heard: &LastHeard,
        to: SocketAddr,
        reason: PathLossReason,
    ) -> PathChange {
        if self.address == Some(to) {
            return PathChange::None;
        }
        let was_relayed = self.is_relayed();
        match self.address.filter(|before| !is_relayed(before)) {
            // A path on which nothing was ever heard was only a guess.
            Some(before) if is_relayed(&to) && heard.was_ever_direct() => {
                self.lose_direct(now, before, reason);
            }
            None if !is_relayed(&to) => self.direct_since = Some(now),
            _ => {}
        }
        self.address = Some(to);
        if was_relayed && !is_relayed(&to) { PathChange::BecameDirect } else { PathChange::Moved }
    }

    fn lose_direct(&mut self, now: Millis, address: SocketAddr, reason: PathLossReason) {
        let lasted = self.direct_since.take().map_or(Duration::ZERO, |since| now.since(since));
        let before = if lasted >= AVOIDANCE_RESET { None } else { self.lost };
        let before = before.map_or(0, |lost| lost.losses);
        let avoidance = (FIRST_AVOIDANCE * (1 << before.min(16))).min(MAX_AVOIDANCE);
        let (avoided_until, losses) = (now + avoidance, before + 1);
        self.lost = Some(LostDirectPath { address, at: now, avoided_until, reason, losses });
    }
}
