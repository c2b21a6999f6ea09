//! Routes: prefixes behind this node, and those behind others, to which the workloads here need a
//! way.

use super::{
    interfaces::{InspectedNetns, inspect_netns},
    reservations::Reserved,
    source_nat,
    state::{State, Workloads, name_of, plain_report},
};
use crate::{
    attachment::{self, Attachment, Origin},
    refusal::Refusal,
    sys::Tun,
};
use ipnet::IpNet;
use meshward_api_types::local::{Advertise, DryRun, LocalWorkload as Shown};
use meshward_control_proto::{WorkloadReport, view::NetworkSpec};
use meshward_types::{NetworkName, outside::is_default};
use std::{collections::BTreeSet, fs, path::PathBuf};
use tracing::{info, warn};

/// The daemon's own namespace.
const HERE: &str = "/proc/self/ns/net";

impl Workloads {
    /// Offers prefixes behind this node as a route: as a workload whose addresses they are. It is
    /// used once it is approved.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is left of it.
    pub async fn advertise(&self, wanted: Advertise, dry_run: DryRun) -> Result<Shown, Refusal> {
        let network = wanted.network.clone();
        let id = {
            let _turn = self.turn(&network).await;
            if !dry_run.0 {
                // What a route of before leaves behind goes first: this one may get its table.
                self.kernel_changes.done().await;
            }
            let before = self.allocator(&network);
            let (attachment, reserved) = self.prepare_route(wanted).await?;
            if dry_run.0 {
                return Ok(self.undo_preparation(&network, before, &attachment, &reserved));
            }
            let report = attachment.report.clone();
            self.open_reserved(attachment, reserved, Attachment::open).await?;
            info!(
                workload = %report.id, network = %report.network, prefixes = ?report.prefixes,
                labels = %report.labels, "route advertised"
            );
            self.announce(&report);
            report.id
        };
        self.folder.flush().await;
        let shown = self.wait_decided(&id).await?;
        // A route that waits for approval stays; one that the coordinator cannot take at all goes.
        let refused =
            self.state.lock().attached.get(&id).and_then(|workload| workload.refused.clone());
        if let Some(reason) = refused {
            self.detach(&id)?;
            return Err(Refusal::Invalid(format!("the coordinator refused the route: {reason}")));
        }
        Ok(shown)
    }

    async fn prepare_route(&self, wanted: Advertise) -> Result<(Attachment, Reserved), Refusal> {
        wanted.labels.check_unreserved().map_err(|error| Refusal::Invalid(error.to_string()))?;
        let mut prefixes: BTreeSet<IpNet> = wanted.prefixes.iter().map(IpNet::trunc).collect();
        if prefixes.is_empty() {
            return Err(Refusal::Invalid("name at least one prefix".into()));
        }
        let network = &wanted.network;
        let spec = self.enforcement.network(network)?;
        fit_default_routes(&mut prefixes, &spec)?;
        check_forwarding(&prefixes)?;
        check_prefixes(&self.state.lock(), network, &spec, &prefixes)?;
        let InspectedNetns { id: netns_id, interface } = inspect_netns(PathBuf::from(HERE)).await?;
        let (addresses, reserved) =
            self.allocate_reserved(&mut self.state.lock(), network, &spec.blocks)?;
        let id = attachment::new_id();
        let name = wanted.name.unwrap_or_else(|| name_of(&id));
        let report = WorkloadReport {
            labels: wanted.labels,
            prefixes: prefixes.into_iter().collect(),
            ..plain_report(id, network, name, addresses)
        };
        let attachment = Attachment {
            netns_id: Some(netns_id),
            measured: true,
            ..Attachment::new(report, PathBuf::from(HERE), interface, Origin::Route)
        };
        Ok((attachment, reserved))
    }

    /// Withdraws a route.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if there is none with this prefix.
    pub fn withdraw(
        &self,
        network: &NetworkName,
        prefix: IpNet,
        dry_run: DryRun,
    ) -> Result<(), Refusal> {
        let prefix = prefix.trunc();
        let found = self.find(|attachment| {
            attachment.report.network == *network && attachment.report.prefixes.contains(&prefix)
        });
        let Some((attachment, _)) = found else {
            return Err(Refusal::Missing(format!(
                "this node does not advertise {prefix} in network {network}; `meshctl attached` \
                shows what it does"
            )));
        };
        self.detach_if(&attachment.id, dry_run)
    }

    /// Gives the workloads of a network routes to the prefixes behind gateways that have come, and
    /// takes those that are gone.
    pub fn spread_routes(&self, network: &NetworkName) {
        let mut state = self.state.lock();
        self.spread_default_routes(&mut state, network);
        let Some(routes) =
            self.enforcement.view(|view| view.network(network).map(|_| view.routes(network)))
        else {
            return;
        };
        let before = state.routes.get(network).cloned().unwrap_or_default();
        if before == routes {
            return;
        }
        state.routes.insert(network.clone(), routes.clone());
        let own = state.attached.values().map(|workload| &workload.attachment);
        let own: Vec<Attachment> = own
            .filter(|attachment| {
                attachment.report.network == *network
                    && attachment.is_in_namespace()
                    && !attachment.is_egress_gateway()
            })
            .cloned()
            .collect();
        info!(%network, ?routes, workloads = own.len(), "routes behind gateways");
        self.change_routes(own, &before, &routes);
    }

    /// Changes the routes that workloads have to what is behind gateways, soon, one change after
    /// the other: called in their order, under the lock of the state.
    pub(super) fn change_routes(
        &self,
        own: Vec<Attachment>,
        before: &BTreeSet<IpNet>,
        after: &BTreeSet<IpNet>,
    ) {
        let gone: Vec<IpNet> = before.difference(after).copied().collect();
        let new: Vec<IpNet> = after.difference(before).copied().collect();
        self.kernel_changes.enqueue(move || {
            for attachment in own {
                if let Err(error) = attachment.change_routes(&new, &gone) {
                    warn!(workload = %attachment.report.id, "its routes are not as they should be: \
                        {error}");
                }
            }
        });
    }

    /// Removes the rules of a route that is gone, and then its interface, soon and in the
    /// background: no other interface gets its index before.
    pub(super) fn forget_rules(&self, attachment: Attachment, tun: Option<Tun>) {
        self.kernel_changes.enqueue(move || {
            attachment.remove_rules();
            tun.into_iter().for_each(attachment::close);
        });
    }

    /// Removes what keeps packets of this host for these prefixes from leaving by other interfaces,
    /// soon and in the background: the host does not serve their network any more.
    pub fn allow_elsewhere(&self, prefixes: Vec<IpNet>) {
        self.kernel_changes.enqueue(move || attachment::allow_other_interfaces(&prefixes));
    }
}

/// Leaves out the default route of a family that the network does not have. Refuses default routes
/// beside other prefixes, and where this kernel cannot translate addresses.
fn fit_default_routes(prefixes: &mut BTreeSet<IpNet>, spec: &NetworkSpec) -> Result<(), Refusal> {
    let Some(default) = prefixes.iter().find(|prefix| is_default(prefix)) else { return Ok(()) };
    if let Some(other) = prefixes.iter().find(|prefix| !is_default(prefix)) {
        return Err(Refusal::Invalid(format!(
            "{default} makes this host an egress gateway, which {other} does not belong to: \
            advertise that on its own"
        )));
    }
    source_nat::check_kernel()?;
    let default = *default;
    let same = |a: &IpNet, b: &IpNet| a.addr().is_ipv4() == b.addr().is_ipv4();
    prefixes.retain(|prefix| spec.prefixes.iter().any(|own| same(own, prefix)));
    match prefixes.is_empty() {
        true => Err(Refusal::Invalid(format!(
            "no workload of the network has an address from which it could reach {default}"
        ))),
        false => Ok(()),
    }
}

/// Packets for what is behind this host come out of an interface, and have to go on.
fn check_forwarding(prefixes: &BTreeSet<IpNet>) -> Result<(), Refusal> {
    for (v6, file, setting) in [
        (false, "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        (true, "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        let needed = prefixes.iter().any(|prefix| prefix.addr().is_ipv6() == v6);
        let is_on = || fs::read_to_string(file).is_ok_and(|text| text.trim() != "0");
        if needed && !is_on() {
            return Err(Refusal::Invalid(format!(
                "this host does not forward packets, so nothing would get behind it; turn it on: \
                sysctl -w {setting}=1"
            )));
        }
    }
    Ok(())
}

fn check_prefixes(
    state: &State,
    network: &NetworkName,
    spec: &NetworkSpec,
    prefixes: &BTreeSet<IpNet>,
) -> Result<(), Refusal> {
    for prefix in prefixes {
        let overlaps = |own: &&IpNet| {
            prefix.prefix_len() > 0 && (own.contains(prefix) || prefix.contains(*own))
        };
        if let Some(own) = spec.prefixes.iter().find(overlaps) {
            return Err(Refusal::Invalid(format!(
                "{prefix} overlaps with {own}, which is network {network} itself: name the \
                prefixes behind this host"
            )));
        }
        let same = |attachment: &&Attachment| {
            attachment.report.network == *network && attachment.report.prefixes.contains(prefix)
        };
        if let Some(other) = state.attached.values().map(|workload| &workload.attachment).find(same)
        {
            return Err(Refusal::Invalid(format!(
                "{prefix} is advertised already, as workload {}; take it back first: meshctl route \
                withdraw {prefix}",
                other.report.id
            )));
        }
    }
    Ok(())
}
