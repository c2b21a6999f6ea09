//! Applying changes of the node's view.

use super::{
    api::Endpoint,
    resets::{RESET_ALL, RESET_QUARANTINED, RETIME},
};
use crate::{keys, tables::state::Tables};
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec},
};
use meshward_types::{IdentityId, NodeName};
use std::time::Instant;

impl Endpoint {
    /// Applies changes of the node's view that belong to this network. When this returns they are
    /// enforced.
    pub fn apply(&self, now: Instant, changes: &[Change]) {
        let mut tables = self.state.tables.write();
        // What was known before a restart is no change.
        let is_first = tables.mtu == 0;
        let mut flow_changes = 0;
        for change in changes {
            flow_changes |= self.apply_change(now, &mut tables, change, is_first);
        }
        tables.rules.begin_generation();
        if !is_first {
            self.plan_resets(&tables, flow_changes);
        }
    }

    /// Applies one change. Returns what is to be done to flows.
    fn apply_change(
        &self,
        now: Instant,
        tables: &mut Tables,
        change: &Change,
        is_first: bool,
    ) -> u8 {
        match change {
            Change::Put(ResourceKey::Network(_), Resource::Network(spec)) => {
                return apply_network(tables, spec, is_first);
            }
            Change::Put(ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
                return apply_identity(tables, *id, spec);
            }
            Change::Drop(ResourceKey::Identity(_, id)) => {
                tables.rules.set_identity(*id, None);
                tables.rules.set_resetting(*id, false);
            }
            Change::Put(ResourceKey::Link(_, from, to), Resource::Link(acl)) => {
                tables.rules.set_link(*from, *to, Some(acl.clone()));
            }
            Change::Drop(ResourceKey::Link(_, from, to)) => tables.rules.set_link(*from, *to, None),
            Change::Put(ResourceKey::Peer(_, node), Resource::Peer(spec)) => {
                self.apply_peer(now, tables, node, spec);
            }
            Change::Drop(ResourceKey::Peer(_, node)) => {
                self.state.transport.remove(tables.remove_peer(node));
            }
            Change::Put(ResourceKey::Workload(_, id), Resource::Workload(spec)) => {
                tables.put_workload(id, Some(spec.clone()));
                return if spec.quarantined && spec.reset { RESET_QUARANTINED } else { 0 };
            }
            Change::Drop(ResourceKey::Workload(_, id)) => tables.put_workload(id, None),
            // A view says item by item what an identity takes with it.
            _ => {}
        }
        0
    }

    fn apply_peer(&self, now: Instant, tables: &mut Tables, node: &NodeName, spec: &PeerSpec) {
        let (key, candidates) = (keys::to_wireguard(spec.public_key), spec.candidates.clone());
        let peer = tables.put_peer(node, spec.clone());
        self.state.transport.put_node(now, peer, key, candidates);
    }
}

fn apply_network(tables: &mut Tables, spec: &NetworkSpec, is_first: bool) -> u8 {
    let before = *tables.rules.conduct();
    let mut flow_changes = 0;
    if !is_first && spec.conduct.resets > before.resets {
        flow_changes |= RESET_ALL;
    }
    if !is_first && spec.conduct.timeouts != before.timeouts {
        flow_changes |= RETIME;
    }
    tables.mtu = spec.mtu;
    tables.prefixes.clone_from(&spec.prefixes);
    tables.rules.set_conduct(spec.conduct);
    flow_changes
}

fn apply_identity(tables: &mut Tables, id: IdentityId, spec: &IdentitySpec) -> u8 {
    let resets = spec.quarantined && spec.reset;
    tables.rules.set_identity(id, Some(spec.quarantined));
    tables.rules.set_resetting(id, resets);
    if resets { RESET_QUARANTINED } else { 0 }
}
