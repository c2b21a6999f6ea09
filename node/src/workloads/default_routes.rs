//! The default routes of workloads, to egress gateways: only those have one that policy lets reach
//! something there.

use super::{
    interfaces::is_of_host,
    state::{State, Workload, Workloads},
};
use crate::attachment::{Attachment, Origin};
use ipnet::IpNet;
use meshward_types::{NetworkName, WorkloadId};
use std::collections::BTreeSet;
use tracing::{info, warn};

impl Workloads {
    /// Gives the workloads of a network the default routes that policy lets them use, and takes
    /// those that it does not, soon.
    pub(super) fn spread_default_routes(&self, state: &mut State, network: &NetworkName) {
        let own = state.attached.values_mut();
        let own = own.filter(|own| own.attachment.report.network == *network);
        let changed: Vec<(&mut Workload, BTreeSet<IpNet>)> = self.enforcement.view(|view| {
            let routes = view.default_routes(network);
            let wanted = |own: &Workload| {
                let known = view.workload(network, &own.attachment.report.id);
                known.and_then(|known| routes.get(&known.identity)).cloned().unwrap_or_default()
            };
            let with_wanted = own.map(|own| {
                let wanted = wanted(own);
                (own, wanted)
            });
            with_wanted.filter(|(own, wanted)| own.default_routes != *wanted).collect()
        });
        for (own, wanted) in changed {
            if may_have_default_route(&own.attachment) {
                info!(workload = %own.attachment.report.id, %network, routes = ?wanted,
                    "default routes to egress gateways");
                own.default_routes.clone_from(&wanted);
                self.set_default_routes(own.attachment.clone(), wanted);
            }
        }
    }

    /// Gives a workload that was taken up again the default routes that it is to have, whatever
    /// its namespace has of before.
    pub(super) fn refresh_default_routes(&self, id: &WorkloadId) {
        let state = self.state.lock();
        let Some(own) = state.attached.get(id) else { return };
        if may_have_default_route(&own.attachment) {
            self.set_default_routes(own.attachment.clone(), own.default_routes.clone());
        }
    }

    /// Sets the default routes of a workload soon, in the order of these calls.
    fn set_default_routes(&self, attachment: Attachment, wanted: BTreeSet<IpNet>) {
        self.kernel_changes.enqueue(move || {
            if let Err(error) = attachment.set_default_routes(&wanted) {
                warn!(workload = %attachment.report.id, "its default routes are not as they \
                    should be: {error}");
            }
        });
    }
}

/// Returns `true` if a workload's namespace may have a default route by the mesh. The host must not
/// have one: the mesh's own packets leave by the host's.
fn may_have_default_route(attachment: &Attachment) -> bool {
    let is_elsewhere = |netns| !is_of_host(netns);
    !matches!(attachment.origin, Origin::Route | Origin::Device)
        && attachment.netns_id.is_some_and(is_elsewhere)
}
