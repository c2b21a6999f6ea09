//! The reach of an asker: the workloads and ports that its links lead to.

use crate::entry::{Asker, NamedWorkload};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use meshward_types::{Acl, IdentityId, Protocol, Verdict};

/// The links between the identities of a network, and which of them are quarantined.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    links: HashMap<(IdentityId, IdentityId), Acl, RandomState>,
    quarantined: HashMap<IdentityId, (), RandomState>,
}

impl Reach {
    pub(crate) fn put_identity(&mut self, id: IdentityId, is_quarantined: bool) {
        match is_quarantined {
            true => self.quarantined.insert(id, ()),
            false => self.quarantined.remove(&id),
        };
    }

    pub(crate) fn remove_identity(&mut self, id: IdentityId) {
        self.quarantined.remove(&id);
    }

    pub(crate) fn put_link(&mut self, from: IdentityId, to: IdentityId, acl: Acl) {
        self.links.insert((from, to), acl);
    }

    pub(crate) fn remove_link(&mut self, from: IdentityId, to: IdentityId) {
        self.links.remove(&(from, to));
    }

    /// Returns whether an asker may send anything to a workload, or is that workload.
    pub(crate) fn reaches(&self, asker: Asker, workload: &NamedWorkload) -> bool {
        workload.addresses.contains(&asker.address)
            || self.link(asker, workload.identity).is_some_and(|acl| match self.is_cut(workload) {
                false => !acl.entries().is_empty() || !acl.observed().is_empty(),
                true => !acl.forensic().is_empty(),
            })
    }

    /// Returns whether an asker may begin a flow to this port of a workload.
    pub(crate) fn reaches_port(
        &self,
        asker: Asker,
        workload: &NamedWorkload,
        port: (Protocol, u16),
    ) -> bool {
        workload.addresses.contains(&asker.address)
            || self.link(asker, workload.identity).is_some_and(|acl| match self.is_cut(workload) {
                false => acl.verdict(port.0, port.1) != Verdict::Denied,
                true => acl.allows_forensics(port.0, port.1),
            })
    }

    /// Returns whether an asker may send anything to workloads of an identity.
    pub(crate) fn reaches_identity(&self, asker: Asker, identity: IdentityId) -> bool {
        !self.quarantined.contains_key(&identity)
            && self
                .link(asker, identity)
                .is_some_and(|acl| !acl.entries().is_empty() || !acl.observed().is_empty())
    }

    /// Returns whether an asker may begin a flow to this port of workloads of an identity.
    pub(crate) fn reaches_port_of(
        &self,
        asker: Asker,
        identity: IdentityId,
        port: (Protocol, u16),
    ) -> bool {
        !self.quarantined.contains_key(&identity)
            && self
                .link(asker, identity)
                .is_some_and(|acl| acl.verdict(port.0, port.1) != Verdict::Denied)
    }

    fn link(&self, asker: Asker, to: IdentityId) -> Option<&Acl> {
        self.links.get(&(asker.identity, to))
    }

    fn is_cut(&self, workload: &NamedWorkload) -> bool {
        workload.is_quarantined || self.quarantined.contains_key(&workload.identity)
    }
}
