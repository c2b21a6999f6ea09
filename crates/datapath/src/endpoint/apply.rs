//! Applying changes of the configuration.

use super::{
    api::Endpoint,
    resets::{RESET_ALL, RESET_QUARANTINED, RETIME},
};
use crate::{
    config::{ConfigChange, NetworkConfig, PeerConfig, Quarantine, WorkloadConfig},
    keys,
    tables::state::Tables,
};
use meshward_types::{NodeName, WorkloadId};
use std::time::Instant;

impl Endpoint {
    /// Applies changes of the configuration. When this returns they are enforced.
    pub fn apply(&self, now: Instant, changes: impl IntoIterator<Item = ConfigChange>) {
        let mut tables = self.state.tables.write();
        // What was known before a restart is no change.
        let is_first = tables.mtu == 0;
        let mut flow_changes = 0;
        for change in changes {
            flow_changes |= self.apply_change(now, &mut tables, change);
        }
        tables.refresh_localities();
        tables.rules.begin_generation();
        if !is_first {
            self.plan_resets(&tables, flow_changes);
        }
    }

    /// Applies one change. Returns the changes that flows need, as bits of [`super::resets`].
    fn apply_change(&self, now: Instant, tables: &mut Tables, change: ConfigChange) -> u8 {
        match change {
            ConfigChange::SetNetwork(config) => return apply_network(tables, config),
            ConfigChange::PutPeer(node, config) => self.apply_peer(now, tables, &node, config),
            ConfigChange::RemovePeer(node) => {
                self.state.transport.remove(tables.remove_peer(&node));
            }
            ConfigChange::PutIdentity(id, quarantine) => {
                tables.rules.put_identity(id, quarantine);
                return resets_of(quarantine);
            }
            ConfigChange::RemoveIdentity(id) => tables.rules.remove_identity(id),
            ConfigChange::PutWorkload(id, config) => {
                let quarantine = config.quarantine;
                self.apply_workload(now, tables, &id, Some(config));
                return resets_of(quarantine);
            }
            ConfigChange::RemoveWorkload(id) => self.apply_workload(now, tables, &id, None),
            ConfigChange::PutService(name, config) => tables.put_service(name, config),
            ConfigChange::RemoveService(name) => tables.services.remove(&name),
            ConfigChange::PutLink(link, acl) => tables.rules.put_link(link, acl),
            ConfigChange::RemoveLink(link) => tables.rules.remove_link(link),
        }
        0
    }

    fn apply_workload(
        &self,
        now: Instant,
        tables: &mut Tables,
        id: &WorkloadId,
        config: Option<WorkloadConfig>,
    ) {
        let before = tables.identity_of(id);
        tables.put_workload(id, config);
        tables.refresh_instance(self.state.services.micros(now), id, before);
    }

    fn apply_peer(&self, now: Instant, tables: &mut Tables, node: &NodeName, config: PeerConfig) {
        let PeerConfig { public_key, candidates, prefixes, site } = config;
        let peer = tables.put_peer(node, prefixes, site);
        self.state.transport.put_node(now, peer, keys::to_wireguard(public_key), candidates);
    }
}

fn apply_network(tables: &mut Tables, config: NetworkConfig) -> u8 {
    let NetworkConfig { prefixes, service_blocks, mtu, conduct } = config;
    let before = *tables.rules.conduct();
    let mut flow_changes = 0;
    if conduct.resets > before.resets {
        flow_changes |= RESET_ALL;
    }
    if conduct.timeouts != before.timeouts {
        flow_changes |= RETIME;
    }
    tables.mtu = mtu;
    tables.prefixes = prefixes;
    tables.services.set_blocks(&service_blocks);
    tables.rules.set_conduct(conduct);
    flow_changes
}

fn resets_of(quarantine: Quarantine) -> u8 {
    if quarantine.resets() { RESET_QUARANTINED } else { 0 }
}
