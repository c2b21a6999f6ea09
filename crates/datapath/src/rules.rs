//! The rules of one endpoint: what is allowed now.

use crate::{
    owner::QuotaOwner,
    timeouts::{Seconds, Timeouts},
};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use meshward_control_proto::view::WorkloadSpec;
use meshward_types::{Acl, Conduct, IdentityId, OnDeny, Protocol, Verdict};

/// One end of a packet, as policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Its identity.
    pub identity: IdentityId,
    /// Whether it is quarantined by itself.
    pub quarantined: bool,
    /// Whether connections that its quarantine cuts are reset.
    pub reset: bool,
    /// Who is charged for what is kept of its packets.
    pub owner: QuotaOwner,
}

impl Party {
    /// A party of which only the identity is known.
    pub(crate) fn of_identity(identity: IdentityId, owner: QuotaOwner) -> Self {
        Self { identity, quarantined: false, reset: false, owner }
    }

    /// A workload as the coordinator describes it.
    pub(crate) fn of_workload(spec: &WorkloadSpec, owner: QuotaOwner) -> Self {
        let WorkloadSpec { identity, quarantined, reset, .. } = *spec;
        Self { identity, quarantined, reset, owner }
    }
}

/// The ports of a packet; 0 where the protocol has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) source: u16,
    pub(crate) destination: u16,
}

/// An ordered pair of identities.
pub(crate) type Pair = (IdentityId, IdentityId);

/// The rules of one endpoint: what is allowed now.
#[derive(Debug, Default)]
pub struct Rules {
    quarantined: HashMap<IdentityId, bool, RandomState>,
    acls: HashMap<Pair, Acl, RandomState>,
    generation: u64,
    timeouts: Seconds,
    conduct: Conduct,
    /// Whether any link was ever one of which senders of denied packets are told.
    link_rejects: bool,
    /// The identities whose quarantine resets the connections that it cuts.
    resetting: HashSet<IdentityId, RandomState>,
}

impl Rules {
    /// Sets whether an identity is known, and quarantined; `None` forgets it.
    pub fn set_identity(&mut self, id: IdentityId, quarantined: Option<bool>) {
        match quarantined {
            Some(quarantined) => self.quarantined.insert(id, quarantined),
            None => self.quarantined.remove(&id),
        };
        self.begin_generation();
    }

    /// Sets whether connections that the quarantine of an identity cuts are reset.
    pub fn set_resetting(&mut self, id: IdentityId, resets: bool) {
        match resets {
            true => self.resetting.insert(id),
            false => self.resetting.remove(&id),
        };
    }

    /// Sets what senders of denied packets are told, and for how long silent conversations are
    /// kept.
    pub fn set_conduct(&mut self, conduct: Conduct) {
        self.conduct = conduct;
        self.timeouts = Timeouts::of(&conduct).into();
    }

    /// Returns what senders of denied packets and ends of cut connections are told.
    pub(crate) fn conduct(&self) -> &Conduct {
        &self.conduct
    }

    /// Returns whether there may be senders of denied packets who are told.
    pub(crate) fn may_reject(&self) -> bool {
        let Conduct { on_deny, on_quarantine, .. } = self.conduct;
        self.link_rejects || on_deny == OnDeny::Reject || on_quarantine == OnDeny::Reject
    }

    /// Returns what the sender of a packet is told that was denied. `to`: who is at its
    /// destination, if anybody is known to be. `ports`: the source's and the destination's.
    pub(crate) fn on_deny(
        &self,
        from: Party,
        to: Option<Party>,
        protocol: Protocol,
        ports: Ports,
    ) -> OnDeny {
        if self.is_quarantined(from) {
            return self.conduct.on_quarantine;
        }
        let said = |from: Party, to: Party, port: u16| {
            self.acls.get(&(from.identity, to.identity))?.on_deny(protocol, port)
        };
        // It may be an answer of a flow that was begun from the other side.
        let said = to.and_then(|to| {
            said(from, to, ports.destination).or_else(|| said(to, from, ports.source))
        });
        said.unwrap_or(self.conduct.on_deny)
    }

    /// Returns whether connections of what is quarantined are reset when they are cut.
    pub(crate) fn resets(&self, party: Party) -> bool {
        (party.quarantined && party.reset) || self.resetting.contains(&party.identity)
    }

    /// Sets the ACL of a link; `None` removes the link.
    pub fn set_link(&mut self, from: IdentityId, to: IdentityId, acl: Option<Acl>) {
        self.link_rejects |= acl.as_ref().is_some_and(Acl::may_reject);
        match acl {
            Some(acl) => self.acls.insert((from, to), acl),
            None => self.acls.remove(&(from, to)),
        };
        self.begin_generation();
    }

    /// Sets for how long conversations are kept in which nothing is said: each from its next packet
    /// on, or from `Filter::retime` on.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts.into();
    }

    /// Has every flow checked again at its next packet.
    pub fn begin_generation(&mut self) {
        self.generation += 1;
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn timeouts(&self) -> &Seconds {
        &self.timeouts
    }

    pub(crate) fn is_quarantined(&self, party: Party) -> bool {
        party.quarantined || self.quarantined.get(&party.identity).copied().unwrap_or(false)
    }

    /// Returns what is to become of a packet that would begin a flow.
    pub(crate) fn verdict(&self, from: Party, to: Party, protocol: Protocol, port: u16) -> Verdict {
        let known = |party: Party| self.quarantined.contains_key(&party.identity);
        let acl = self.acls.get(&(from.identity, to.identity)).filter(|_| known(from) && known(to));
        let Some(acl) = acl else { return Verdict::Denied };
        match (self.is_quarantined(from), self.is_quarantined(to)) {
            (false, false) => acl.verdict(protocol, port),
            (false, true) if acl.allows_forensics(protocol, port) => Verdict::Allowed,
            _ => Verdict::Denied,
        }
    }
}
