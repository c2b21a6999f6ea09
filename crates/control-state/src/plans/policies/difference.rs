//! The links by which two policies differ, and those of one moment.

use super::basis::Basis;
use crate::{Refusal, records::PolicyRecord, world::NetworkState};
use meshward_api_types::{Link, LinkChange, PolicyDifference};
use meshward_policy::{Bounds, LinkInputs, Policy, PolicyStep};
use meshward_types::{Acl, IdentityId, NetworkName, PortSpec};
use std::sync::Arc;

/// The most links that are listed as opened or closed in one network; how many there are besides is
/// said.
const MAX_LISTED: usize = 10_000;

/// The links that open and those that close; one that does both stands in both.
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

/// Whether everything that `inner` allows is allowed by `outer`.
fn covers_all(outer: &Acl, inner: &Acl) -> bool {
    inner.entries().iter().all(|entry| {
        outer.allows_all(PortSpec { protocol: Some(entry.protocol), ports: entry.ports })
    })
}

/// The links between two policies of a network, among the workloads of now.
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

/// The links of a network, to be worked on beside it.
pub struct Snapshot {
    network: NetworkName,
    inputs: LinkInputs,
    pairs: Vec<(IdentityId, IdentityId, Arc<Acl>)>,
}

impl Snapshot {
    /// Of now: some counters for each link.
    pub fn of(network: &NetworkState) -> Self {
        let links = network.links.all().map(|(from, to, acl)| (from, to, acl.clone()));
        Self {
            network: network.record.name.clone(),
            inputs: network.links.inputs().clone(),
            pairs: links.collect(),
        }
    }

    /// The network.
    pub fn network(&self) -> &NetworkName {
        &self.network
    }

    /// The links.
    pub fn links(&self) -> impl Iterator<Item = ((IdentityId, IdentityId), Link)> {
        self.pairs.iter().filter_map(|(from, to, acl)| {
            Some(((*from, *to), Link { acl: Acl::clone(acl), ..self.pair(*from, *to)? }))
        })
    }

    /// A pair of identities that are there, without a link.
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
