//! The links by which two policies differ, and a snapshot of links.

use super::basis::Basis;
use crate::{Refusal, records::PolicyRecord, world::NetworkState};
use meshward_api_types::{Link, LinkChange, PolicyDifference};
use meshward_policy::{Bounds, LinkInputs, Policy, PolicyStep};
use meshward_types::{Acl, IdentityId, NetworkName, PortSpec};
use std::sync::Arc;

/// The largest number of links that are listed as opened or closed in one network. The others are
/// counted.
const MAX_LISTED: usize = 10_000;

/// The links that open and those that close. A link that does both is in both lists.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) opened: Vec<LinkChange>,
    pub(super) closed: Vec<LinkChange>,
    pub(super) more_opened: usize,
    pub(super) more_closed: usize,
}

pub(super) fn changes(inputs: &LinkInputs, step: &PolicyStep) -> Changes {
    let nothing = Acl::default();
    let acl = |acl: &Option<Arc<Acl>>| -> Acl { acl.as_deref().unwrap_or(&nothing).clone() };
    let mut all: Vec<_> = step
        .changes
        .iter()
        .filter_map(|change| Some((inputs.labels(change.from)?, inputs.labels(change.to)?, change)))
        .collect();
    all.sort_unstable_by_key(|(from, to, _)| (*from, *to));
    let mut found = Changes::default();
    for (from, to, change) in all {
        let (old, new) = (acl(&change.before), acl(&change.after));
        let listed = || LinkChange {
            from: from.clone(),
            to: to.clone(),
            before: old.to_string(),
            after: new.to_string(),
        };
        let note = |list: &mut Vec<LinkChange>, more: &mut usize| match list.len() < MAX_LISTED {
            true => list.push(listed()),
            false => *more += 1,
        };
        if !covers_all(&old, &new) {
            note(&mut found.opened, &mut found.more_opened);
        }
        if !covers_all(&new, &old) {
            note(&mut found.closed, &mut found.more_closed);
        }
    }
    found
}

/// Returns `true` if `outer` allows everything that `inner` allows.
fn covers_all(outer: &Acl, inner: &Acl) -> bool {
    inner.entries().iter().all(|entry| {
        outer.allows_all(PortSpec { protocol: Some(entry.protocol), ports: entry.ports })
    })
}

/// Returns the links by which two policies of a network differ, among its current workloads.
///
/// # Errors
/// [`Refusal::Missing`] if there is no such network, [`Refusal::Invalid`] if a policy is too large.
pub fn difference(
    basis: &Basis,
    name: &NetworkName,
    [before, after]: [Option<&PolicyRecord>; 2],
) -> Result<PolicyDifference, Refusal> {
    let inputs = &basis.find(name)?.inputs;
    let policy = |record: Option<&PolicyRecord>| match record {
        Some(record) => record.policy().map_err(Refusal::Conflict),
        None => Ok(Arc::new(Policy::deny_all(name.clone()))),
    };
    let step = inputs.between(policy(before)?, policy(after)?, &Bounds::usual());
    let step = step.map_err(|error| Refusal::Invalid(error.to_string()))?;
    let Changes { opened, closed, more_opened, more_closed } = changes(inputs, &step);
    Ok(PolicyDifference { network: name.clone(), opened, closed, more_opened, more_closed })
}

/// A snapshot of a network's links, shared with the world.
pub struct Snapshot {
    network: NetworkName,
    inputs: LinkInputs,
    pairs: Vec<SharedLink>,
}

/// A link, whose ACL is shared with the world.
struct SharedLink {
    from: IdentityId,
    to: IdentityId,
    acl: Arc<Acl>,
}

impl Snapshot {
    /// Takes a snapshot, at the cost of a reference count for each link.
    pub fn of(network: &NetworkState) -> Self {
        let links =
            network.links.all().map(|(from, to, acl)| SharedLink { from, to, acl: acl.clone() });
        Self {
            network: network.record.name.clone(),
            inputs: network.links.inputs().clone(),
            pairs: links.collect(),
        }
    }

    /// Returns the network.
    pub fn network(&self) -> &NetworkName {
        &self.network
    }

    /// Returns the links.
    pub fn links(&self) -> impl Iterator<Item = ((IdentityId, IdentityId), Link)> {
        self.pairs.iter().filter_map(|SharedLink { from, to, acl }| {
            Some(((*from, *to), Link { acl: Acl::clone(acl), ..self.pair(*from, *to)? }))
        })
    }

    /// Returns an empty link between two identities; `None` if one of them has no workload.
    pub fn pair(&self, from: IdentityId, to: IdentityId) -> Option<Link> {
        Some(Link {
            network: self.network.clone(),
            from: self.inputs.labels(from)?.clone(),
            to: self.inputs.labels(to)?.clone(),
            acl: Acl::default(),
            packets: 0,
            bytes: 0,
            denied: 0,
            observed: 0,
        })
    }
}
