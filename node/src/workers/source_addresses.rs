//! Source addresses: from which address of this host a peer is answered. It is the one that the
//! peer sends to, as with the kernel's WireGuard: a firewall on the path, or a NAT, knows no other.

use foldhash::fast::RandomState;
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

/// Addresses of peers that are remembered at the most; others are answered as the kernel chooses.
const MAX_KNOWN: usize = 1 << 16;

/// This host's addresses by those of peers that have proved themselves there.
#[derive(Default)]
pub(super) struct SourceAddresses(RwLock<HashMap<SocketAddr, IpAddr, RandomState>>);

impl SourceAddresses {
    /// The address from which a peer's address is answered, if it is known.
    pub(super) fn get(&self, to: &SocketAddr) -> Option<IpAddr> {
        self.0.read().get(to).copied()
    }

    /// Notes to which address of this host a peer has sent something authentic.
    pub(super) fn note(&self, from: SocketAddr, to: IpAddr) {
        if self.get(&from) == Some(to) {
            return;
        }
        let mut known = self.0.write();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(from, to);
    }

    /// Forgets an address of a peer: answers to it could not be sent.
    pub(super) fn remove(&self, to: &SocketAddr) {
        self.0.write().remove(to);
    }

    /// Forgets all: the addresses of this host have changed.
    pub(super) fn forget(&self) {
        self.0.write().clear();
    }
}
