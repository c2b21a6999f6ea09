//! Changes of flows after a change of the rules, by the thread for handshakes and timers:
//! connections that are cut are reset, and idle flows get new timeouts. Changes of the
//! configuration wait for no more than a few hundred flows.

use super::api::Endpoint;
use crate::{
    filter::{CutScope, CutSearch},
    packet_batch::WorkerScratch,
    sink::Sink,
    tables::state::Tables,
};
use meshward_types::OnRevoke;
use std::{net::IpAddr, sync::atomic::Ordering::Relaxed, time::Instant};

/// Reset the connections that a quarantine with reset has cut, or of which an end would be answered
/// at its next packet.
pub(super) const RESET_QUARANTINED: u8 = 1;
/// Reset all connections that are cut.
pub(super) const RESET_ALL: u8 = 2;
/// Give flows the timeouts of now.
pub(super) const RETIME: u8 = 4;

impl Endpoint {
    /// Plans the changes of flows after a change of the rules: `flow_changes` beside those that the
    /// rules always ask for.
    pub(super) fn plan_resets(&self, tables: &Tables, flow_changes: u8) {
        let on_revoke = tables.rules.conduct().on_revoke;
        let always = if on_revoke == OnRevoke::Reset { RESET_ALL } else { 0 };
        let rejected = if tables.rules.may_reject() { RESET_QUARANTINED } else { 0 };
        self.pending_flow_changes.fetch_or(flow_changes | always | rejected, Relaxed);
    }

    pub(super) fn plan_retiming(&self) {
        self.pending_flow_changes.fetch_or(RETIME, Relaxed);
    }

    /// Returns whether there is something for [`Self::apply_flow_changes`] to do.
    pub fn has_flow_changes(&self) -> bool {
        self.pending_flow_changes.load(Relaxed) != 0
    }

    /// Resets both ends of connections that the rules of now do not allow, of those that are to be
    /// reset, and gives all flows the timeouts of now, if these have changed.
    pub fn apply_flow_changes(
        &self,
        now: Instant,
        scratch: &mut WorkerScratch,
        sink: &mut impl Sink,
    ) {
        let changes = self.pending_flow_changes.swap(0, Relaxed);
        if changes & RETIME != 0 {
            for chunk in self.state.filter.chunks() {
                self.state.filter.retime(&self.state.tables.read().rules, now, chunk);
            }
        }
        let scope = match changes & (RESET_QUARANTINED | RESET_ALL) {
            0 => return,
            RESET_QUARANTINED => CutScope::Quarantined,
            _ => CutScope::All,
        };
        for chunk in self.state.filter.chunks() {
            let resets = {
                let tables = self.state.tables.read();
                let party_at = |address: IpAddr| Some(tables.route(now, &address).ok()?.party);
                self.state.filter.reset_cut(
                    &tables.rules,
                    now,
                    CutSearch { chunk, scope },
                    party_at,
                )
            };
            if !resets.is_empty() {
                let mut batch = self.begin_batch(scratch, now);
                for reset in resets {
                    batch.reset(reset.to, reset.packet, sink);
                }
                batch.finish(sink);
            }
        }
    }
}
