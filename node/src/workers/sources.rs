//! From which address of this host a peer is answered: the one that it speaks to, as with the
//! kernel's WireGuard. A firewall on the way, or a NAT, knows no other.

use foldhash::fast::RandomState;
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

/// The most peers' addresses that are known; who is not among them is answered as the kernel
/// chooses.
const MOST: usize = 1 << 16;

/// This host's addresses by those of peers that have proved themselves there.
#[derive(Default)]
pub struct Sources(RwLock<HashMap<SocketAddr, IpAddr, RandomState>>);

impl Sources {
    /// The address from which another is answered, if it has spoken to one.
    pub fn get(&self, to: &SocketAddr) -> Option<IpAddr> {
        self.0.read().get(to).copied()
    }

    /// Notes to which address a peer has spoken.
    pub fn note(&self, from: SocketAddr, to: IpAddr) {
        if self.get(&from) == Some(to) {
            return;
        }
        let mut known = self.0.write();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(from, to);
    }

    /// Forgets what does not work any more.
    pub fn remove(&self, to: &SocketAddr) {
        self.0.write().remove(to);
    }

    /// Forgets all: the addresses of this host are others.
    pub fn forget(&self) {
        self.0.write().clear();
    }
}
