//! The rules of one endpoint: what is allowed now.

use crate::{
    config::{Link, Quarantine, WorkloadConfig},
    learnt_names::{LearntNames, NameAge},
    owner::QuotaOwner,
    timeouts::{Seconds, Timeouts},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use meshward_types::{
    Acl, Conduct, IdentityId, OnDeny, OutsideTarget, Protocol, Verdict, dns::DomainName,
};
use std::{cell::OnceCell, net::IpAddr, sync::Arc};

/// One end of a packet, as policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// The identity of the workload.
    pub identity: IdentityId,
    /// The quarantine of the workload by itself, beside that of its identity.
    pub quarantine: Quarantine,
    /// The owner of the state that its packets create.
    pub owner: QuotaOwner,
}

impl Party {
    /// A party of which only the identity is known.
    pub(crate) fn of_identity(identity: IdentityId, owner: QuotaOwner) -> Self {
        Self { identity, quarantine: Quarantine::None, owner }
    }

    /// A workload as the coordinator describes it.
    pub(crate) fn of_workload(config: &WorkloadConfig, owner: QuotaOwner) -> Self {
        let WorkloadConfig { identity, quarantine, .. } = *config;
        Self { identity, quarantine, owner }
    }
}

/// The ports of a packet; 0 where the protocol has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) source: u16,
    pub(crate) destination: u16,
}

/// The destination of a packet that would begin a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) address: IpAddr,
    pub(crate) protocol: Protocol,
    /// The port; 0 where the protocol has none.
    pub(crate) port: u16,
    /// The names of the address that count.
    pub(crate) names: NameAge,
}

/// The rules of one endpoint: what is allowed now.
#[derive(Debug, Default)]
pub struct Rules {
    identities: HashMap<IdentityId, Quarantine, RandomState>,
    acls: HashMap<Link, Acl, RandomState>,
    generation: u64,
    timeouts: Seconds,
    conduct: Conduct,
    /// `true` if any link ever had an entry that rejects.
    link_rejects: bool,
    learnt_names: Arc<LearntNames>,
}

impl Rules {
    /// Adds an identity, or changes its quarantine.
    pub fn put_identity(&mut self, id: IdentityId, quarantine: Quarantine) {
        self.identities.insert(id, quarantine);
        self.begin_generation();
    }

    /// Removes an identity: all its links are closed.
    pub fn remove_identity(&mut self, id: IdentityId) {
        self.identities.remove(&id);
        self.begin_generation();
    }

    /// Sets the treatment of denied packets and of connections that are cut, and the silence
    /// timeouts.
    pub fn set_conduct(&mut self, conduct: Conduct) {
        self.conduct = conduct;
        self.timeouts = Timeouts::of(&conduct).into();
    }

    /// Returns the treatment of denied packets and of connections that are cut.
    pub(crate) fn conduct(&self) -> &Conduct {
        &self.conduct
    }

    /// Returns whether any denied packet may be rejected.
    pub(crate) fn may_reject(&self) -> bool {
        let Conduct { on_deny, on_quarantine, .. } = self.conduct;
        self.link_rejects || on_deny == OnDeny::Reject || on_quarantine == OnDeny::Reject
    }

    /// Returns the answer to a packet that was denied. `to`: the party at its destination, if there
    /// is one.
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
            self.acls.get(&link(from, to))?.on_deny(protocol, port)
        };
        // It may be an answer of a flow that was begun from the other side.
        let said = to.and_then(|to| {
            said(from, to, ports.destination).or_else(|| said(to, from, ports.source))
        });
        said.unwrap_or(self.conduct.on_deny)
    }

    /// Returns whether connections of what is quarantined are reset when they are cut.
    pub(crate) fn resets(&self, party: Party) -> bool {
        party.quarantine.resets()
            || self.identities.get(&party.identity).is_some_and(|quarantine| quarantine.resets())
    }

    /// Sets the ACL of a link.
    pub fn put_link(&mut self, link: Link, acl: Acl) {
        self.link_rejects |= acl.may_reject();
        self.acls.insert(link, acl);
        self.begin_generation();
    }

    /// Removes a link, which closes it.
    pub fn remove_link(&mut self, link: Link) {
        self.acls.remove(&link);
        self.begin_generation();
    }

    /// Sets the silence timeouts: of each flow from its next packet on, or from `Filter::retime`
    /// on.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts.into();
    }

    /// Begins a generation of rules: every flow is checked again at its next packet.
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
        party.quarantine.is_active()
            || self.identities.get(&party.identity).is_some_and(|quarantine| quarantine.is_active())
    }

    /// Returns the verdict on a packet that would begin a flow to an address of `to`, or behind it.
    pub(crate) fn verdict(&self, from: Party, to: Party, destination: Destination) -> Verdict {
        let Destination { address, protocol, port, names } = destination;
        let known = |party: Party| self.identities.contains_key(&party.identity);
        let acl = self.acls.get(&link(from, to)).filter(|_| known(from) && known(to));
        let Some(acl) = acl else { return Verdict::Denied };
        match (self.is_quarantined(from), self.is_quarantined(to)) {
            (false, false) => {
                acl.verdict_on(protocol, port, self.is_at(from.owner, address, names))
            }
            (false, true) if acl.allows_forensics(protocol, port) => Verdict::Allowed,
            _ => Verdict::Denied,
        }
    }
}

impl Rules {
    /// Returns a function that says whether an address is one of a target's for packets of an
    /// owner.
    pub(crate) fn is_at(
        &self,
        owner: QuotaOwner,
        address: IpAddr,
        age: NameAge,
    ) -> impl Fn(&OutsideTarget) -> bool {
        let names = OnceCell::new();
        move |target| match target {
            OutsideTarget::Cidr(_) => target.includes(address),
            OutsideTarget::Dns(pattern) => names
                .get_or_init(|| self.learnt_names.names_of(owner, address, age))
                .iter()
                .any(|name| pattern.matches(name)),
        }
    }

    /// Returns whether a rule about packets from one party to what is behind another, a gateway,
    /// names a domain name, and neither is quarantined.
    pub(crate) fn name_domain(&self, from: Party, to: Party, name: &DomainName) -> bool {
        let outside = self.acls.get(&link(from, to)).and_then(Acl::outside);
        let is_named =
            outside.is_some_and(|outside| outside.patterns().any(|pattern| pattern.matches(name)));
        is_named && !self.is_quarantined(from) && !self.is_quarantined(to)
    }

    /// Returns the names outside of the mesh that workloads have learnt.
    pub(crate) fn learnt_names(&self) -> &Arc<LearntNames> {
        &self.learnt_names
    }
}

fn link(from: Party, to: Party) -> Link {
    Link { from: from.identity, to: to.identity }
}
