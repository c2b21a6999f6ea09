//! The deltas of a policy that is replaced: links, triggers, and what nodes know because of links.

use super::{deltas::DeltaBuilder, node_set::NodeSet, resources::put};
use meshward_control_proto::{Change, Resource, ResourceKey};
use meshward_policy::{LinkChange, Policy, PolicyStep, Rule};
use meshward_types::IdentityId;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// The nodes that met an identity before a change.
struct MetBefore {
    identity: IdentityId,
    all: NodeSet,
    /// The nodes that knew all of its workloads.
    widely: NodeSet,
}

impl DeltaBuilder<'_> {
    /// Sets the network's policy. `step` is the effect on the links, if it has been computed;
    /// `resets`: see [`PolicyRecord`](crate::records::PolicyRecord).
    pub(super) fn set_policy(
        &mut self,
        policy: Arc<Policy>,
        step: Option<Arc<PolicyStep>>,
        resets: u64,
    ) {
        self.make_urgent();
        let triggers: Vec<_> = self.resources().triggers().collect();
        let settings = |policy: &Policy, resets: u64| {
            (!policy.admission.is_empty(), policy.conduct(resets), policy.dns.clone())
        };
        let old = self.network.links.policy().clone();
        let settings_changed = settings(&old, self.network.resets) != settings(&policy, resets);
        self.network.resets = resets;
        self.network.names_node = policy.speaks_of_nodes();
        let is_current = |step: &Arc<PolicyStep>| {
            self.network.links.are_inputs_of(step) && step.policy().let_in == policy.let_in
        };
        let step = match step.filter(is_current) {
            Some(step) => step,
            None => Arc::new(self.network.links.step(policy)),
        };
        let ends: BTreeSet<IdentityId> =
            step.changes.iter().flat_map(|change| [change.from, change.to]).collect();
        let named = self.narrowed_by(&old).into_iter().chain(self.narrowed_by(step.policy()));
        let before = self.meeting_each(ends.into_iter().chain(named).collect());
        self.network.links.apply_step(&step);
        if old.services != self.network.links.policy().services {
            self.network.services.set_policy(&self.network.links.policy().services);
        }
        if self.is_muted() {
            return;
        }
        if settings_changed {
            self.network_changed();
        }
        self.push_triggers(&triggers);
        self.push_links(&step);
        for met in &before {
            self.push_subscribers(met);
        }
        self.services_changed(&old, &step);
        self.narrowing_changed();
    }

    /// Appends the differences between the triggers and those of before.
    fn push_triggers(&mut self, before: &[(ResourceKey, Resource)]) {
        let now: Vec<_> = self.resources().triggers().collect();
        let gone = before.iter().filter(|(key, _)| !now.iter().any(|(own, _)| own == key));
        let gone = gone.map(|(key, _)| Change::Drop(key.clone()));
        let new = now.iter().filter(|resource| !before.contains(resource)).cloned().map(put);
        let changes = gone.chain(new).collect();
        self.deltas.push(self.network.members().clone(), changes);
    }

    /// Appends the changes of links for the nodes that run one of their ends.
    fn push_links(&mut self, step: &PolicyStep) {
        let name = self.name();
        let mut by_end: HashMap<IdentityId, Vec<Change>> = HashMap::new();
        for LinkChange { from, to, after, .. } in &step.changes {
            let (from, to) = (*from, *to);
            let change = match after {
                Some(acl) => put(self.resources().link(from, to, acl)),
                None => Change::Drop(ResourceKey::Link(name.clone(), from, to)),
            };
            by_end.entry(from).or_default().push(change.clone());
            if from != to {
                by_end.entry(to).or_default().push(change);
            }
        }
        for (end, changes) in by_end {
            let hosts = self.network.host_set(end);
            self.deltas.push(hosts, changes);
        }
    }

    /// Returns the identities whose nodes a policy with services concerns beyond the links that
    /// change: rules about services decide how much nodes know of them.
    fn narrowed_by(&self, policy: &Policy) -> BTreeSet<IdentityId> {
        let named = policy.tiers().filter(|(_, rule)| rule.target.service().is_some());
        let selected = named
            .flat_map(|(_, Rule { from, to, .. })| [from, to])
            .flat_map(|selector| self.network.links.select(selector));
        selected.collect()
    }

    /// Returns the nodes that meet identities.
    fn meeting_each(&self, identities: BTreeSet<IdentityId>) -> Vec<MetBefore> {
        let met = |identity| MetBefore {
            identity,
            all: self.network.subscribers(identity),
            widely: self.network.wide_subscribers(identity),
        };
        identities.into_iter().map(met).collect()
    }

    /// Appends the changes for nodes that now meet an identity, or no longer do, or to another
    /// extent.
    fn push_subscribers(&mut self, before: &MetBefore) {
        let MetBefore { identity, .. } = *before;
        let hosts = self.network.host_set(identity);
        let all = self.network.subscribers(identity);
        let widely = self.network.wide_subscribers(identity);
        let gained = &widely - &before.widely;
        if !gained.is_empty() {
            let section = self.resources().section(identity, None);
            self.deltas.push(&gained - &hosts, section);
            for node in (&gained & &hosts).iter() {
                let section = self.resources().section(identity, Some(node));
                self.deltas.push_to(node, section);
            }
        }
        let forget = Change::Forget(self.name(), identity);
        let spec: Vec<Change> = self.resources().identity(identity).into_iter().map(put).collect();
        self.deltas.push(&(&(&all - &before.all) - &widely) - &hosts, spec.clone());
        let lost = &before.widely - &widely;
        let reduced = std::iter::once(forget.clone()).chain(spec).collect();
        self.deltas.push(&(&lost & &all) - &hosts, reduced);
        self.deltas.push(&(&before.all - &all) - &hosts, vec![forget]);
        for node in (&lost & &hosts).iter() {
            let dropped = self.resources().drop_others(identity, node);
            self.deltas.push_to(node, dropped);
        }
    }
}
