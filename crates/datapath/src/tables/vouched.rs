//! Vouches: workloads of which a peer, or this node, says what the coordinator has not said yet.

use super::state::{Tables, VouchedWorkload};
use crate::{
    in_band::vouch::{self, Vouch},
    index::{PeerIndex, WorkloadIndex},
};
use meshward_types::IdentityId;
use std::time::Instant;

impl Tables {
    /// Sets the identity that this node vouches for, for a workload of its own.
    pub(crate) fn set_vouched_identity(
        &mut self,
        workload: WorkloadIndex,
        identity: Option<IdentityId>,
    ) {
        if let Some(local) = self.local_mut(workload) {
            local.workload.vouched = identity;
            self.rules.begin_generation();
        }
    }

    /// Returns the vouches of this node.
    pub(crate) fn own_vouches(&self) -> Vec<Vouch> {
        let unconfirmed = self.locals.iter().flatten().filter(|local| local.admitted.is_none());
        unconfirmed
            .filter_map(|local| Some((local.workload.vouched?, &local.workload.addresses)))
            .flat_map(|(identity, addresses)| {
                addresses.iter().map(move |address| Vouch { identity, address: *address })
            })
            .collect()
    }

    /// Returns whether a peer may give a vouch: it runs other workloads of the identity, and the
    /// address is its own.
    pub(crate) fn may_vouch(&self, peer: PeerIndex, vouch: Vouch) -> bool {
        self.hosted.contains_key(&(peer, vouch.identity)) && self.peer_owns(peer, vouch.address)
    }

    /// Accepts a vouch of a peer, which may give it, for a workload of which the coordinator has
    /// not spoken.
    pub(crate) fn accept_vouch(&mut self, now: Instant, peer: PeerIndex, vouch: Vouch) {
        let Vouch { identity, address } = vouch;
        if self.addresses.get(&address).is_some() {
            return;
        }
        // The first peer that vouches is believed until its vouch expires.
        let by_another = self.vouched.get(&address).filter(|vouched| vouched.peer != peer);
        if by_another.is_some_and(|vouched| vouched.until > now) {
            return;
        }
        let vouched = VouchedWorkload { identity, peer, until: now + vouch::LIFETIME };
        let before = self.vouched.insert(address, vouched);
        if before.is_none_or(|before| before.identity != identity || before.peer != peer) {
            self.rules.begin_generation();
        }
    }

    /// Returns whether any vouch has expired.
    pub(crate) fn has_expired_vouches(&self, now: Instant) -> bool {
        self.vouched.values().any(|vouched| vouched.until <= now)
    }

    /// Forgets vouches that have expired.
    pub(crate) fn forget_expired_vouches(&mut self, now: Instant) {
        self.vouched.retain(|_, vouched| vouched.until > now);
    }
}
