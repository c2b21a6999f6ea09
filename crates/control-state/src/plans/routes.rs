//! Routes: prefixes behind gateways, and their approval.

use super::{
    admission::ApprovalChange, credentials::covers, prefixes::check_prefix,
    reclassify::reclassify_after,
};
use crate::{
    Plan, Refusal,
    records::{ApprovalRecord, Mutation, Record, WorkloadRef},
    world::World,
};
use ipnet::IpNet;
use meshward_api_types::{ApproveEgress, ApproveRoute, Route, RouteState};
use meshward_types::{Labels, NetworkName, NodeName, WorkloadId, outside::is_default};
use std::collections::BTreeSet;

/// Lists the routes, and the approved prefixes that no gateway advertises.
pub fn list(world: &World) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for network in world.networks.values() {
        for known in network.gateways() {
            routes.extend(known.prefixes().iter().map(|prefix| describe(world, known, prefix)));
        }
    }
    for approval in &world.approvals {
        let has_it = |route: &Route| {
            (&route.network, &route.node, &route.prefix)
                == (&approval.network, &approval.node, &approval.prefix)
        };
        if !routes.iter().any(has_it) {
            routes.push(Route {
                network: approval.network.clone(),
                prefix: approval.prefix,
                node: approval.node.clone(),
                workload: None,
                labels: Labels::default(),
                approved_by_hand: true,
                state: RouteState::NotAdvertised,
                reasons: vec![],
            });
        }
    }
    routes.sort_unstable_by(|a, b| {
        (&a.network, a.prefix, &a.node).cmp(&(&b.network, b.prefix, &b.node))
    });
    routes
}

fn describe(world: &World, known: WorkloadRef<'_>, prefix: &IpNet) -> Route {
    let (labels, reasons) = match known {
        WorkloadRef::Admitted(record) => {
            let network = world.networks.get(&record.network);
            let identity = network.and_then(|network| network.identities.get(&record.identity));
            (identity.map_or(record.declared.clone(), |identity| identity.labels.clone()), vec![])
        }
        WorkloadRef::Refused(record) => (record.report.labels.clone(), record.reasons.clone()),
    };
    let approval = ApprovalRecord {
        network: known.network().clone(),
        node: known.node().clone(),
        prefix: *prefix,
    };
    Route {
        network: approval.network.clone(),
        prefix: *prefix,
        node: approval.node.clone(),
        workload: Some(known.id().clone()),
        labels,
        approved_by_hand: world.approvals.contains(&approval),
        state: if reasons.is_empty() { RouteState::Open } else { RouteState::Waiting },
        reasons,
    }
}

/// Approves a prefix behind a node, before or after the node advertises it.
///
/// # Errors
/// Fails as [`find`] does, and with [`Refusal::Invalid`] if the prefix overlaps with the network.
pub fn approve(
    world: &World,
    wanted: &ApproveRoute,
    scope: &[NetworkName],
) -> Result<Plan<Route>, Refusal> {
    let approval = find(world, wanted, scope)?;
    check_prefix(world, &approval.network, &approval.prefix)?;
    Ok(only(grant(world, &[approval])))
}

/// Withdraws an approval: links through the route are cut, unless the policy approves it.
///
/// # Errors
/// Fails as [`find`] does, and with [`Refusal::Missing`] if the route was not approved.
pub fn disapprove(
    world: &World,
    wanted: &ApproveRoute,
    scope: &[NetworkName],
) -> Result<Plan<Route>, Refusal> {
    let approval = find(world, wanted, scope)?;
    if !world.approvals.contains(&approval) {
        return Err(Refusal::Missing(format!(
            "{} behind {} was not approved by hand; `meshctl route list` shows what is",
            wanted.prefix, wanted.node
        )));
    }
    Ok(only(withdraw(world, &[approval])))
}

/// Approves what an egress gateway advertises: everything outside of the network, of both address
/// families.
///
/// # Errors
/// Fails as [`find_egress`] does.
pub fn approve_egress(
    world: &World,
    wanted: &ApproveEgress,
    scope: &[NetworkName],
) -> Result<Plan<Vec<Route>>, Refusal> {
    Ok(grant(world, &find_egress(world, wanted, scope)?))
}

/// Withdraws the approvals of an egress gateway, of both address families.
///
/// # Errors
/// Fails as [`find_egress`] does, and with [`Refusal::Missing`] if the gateway was not approved.
pub fn disapprove_egress(
    world: &World,
    wanted: &ApproveEgress,
    scope: &[NetworkName],
) -> Result<Plan<Vec<Route>>, Refusal> {
    let mut approvals = find_egress(world, wanted, scope)?;
    approvals.retain(|approval| world.approvals.contains(approval));
    if approvals.is_empty() {
        return Err(Refusal::Missing(format!(
            "the egress gateway {} was not approved by hand; `meshctl egress list` shows what is",
            wanted.node
        )));
    }
    Ok(withdraw(world, &approvals))
}

fn grant(world: &World, approvals: &[ApprovalRecord]) -> Plan<Vec<Route>> {
    let new = approvals.iter().filter(|approval| !world.approvals.contains(*approval));
    let puts = new.map(|approval| Mutation::Put(Record::Approval(approval.clone()))).collect();
    change(world, approvals, ApprovalChange::Granted(approvals), puts)
}

fn withdraw(world: &World, approvals: &[ApprovalRecord]) -> Plan<Vec<Route>> {
    let delete =
        |approval: &ApprovalRecord| Mutation::Delete(Record::Approval(approval.clone()).key());
    let deletes = approvals.iter().map(delete).collect();
    change(world, approvals, ApprovalChange::Withdrawn(approvals), deletes)
}

/// Returns the plan for one route.
fn only(plan: Plan<Vec<Route>>) -> Plan<Route> {
    let route = plan.outcome[0].clone();
    plan.with_outcome(route)
}

/// Plans the change of the approvals of routes behind one node in one network, and of the workloads
/// with these prefixes.
fn change(
    world: &World,
    approvals: &[ApprovalRecord],
    becomes: ApprovalChange<'_>,
    mut mutations: Vec<Mutation>,
) -> Plan<Vec<Route>> {
    let behind: Vec<Vec<WorkloadId>> =
        approvals.iter().map(|approval| behind(world, approval)).collect();
    if !mutations.is_empty() {
        let all: BTreeSet<WorkloadId> = behind.iter().flatten().cloned().collect();
        let all: Vec<WorkloadId> = all.into_iter().collect();
        mutations.extend(reclassify_after(world, &all, becomes));
    }
    let verb = match becomes {
        ApprovalChange::Granted(_) => "approved",
        ApprovalChange::Withdrawn(_) => "disapproved",
    };
    let action = match (approvals, mutations.is_empty()) {
        ([ApprovalRecord { node, network, .. }, ..], false) => {
            let prefixes: Vec<String> =
                approvals.iter().map(|approval| approval.prefix.to_string()).collect();
            format!("{verb} {} behind node {node} in network {network}", prefixes.join(", "))
        }
        _ => String::new(),
    };
    let routes = approvals.iter().zip(&behind);
    let routes =
        routes.map(|(approval, behind)| planned(world, approval, behind, (becomes, &mutations)));
    let routes = routes.collect();
    Plan::new(action, mutations, routes)
}

/// Returns the workloads of an approval's node that have its prefix behind them.
fn behind(world: &World, approval: &ApprovalRecord) -> Vec<WorkloadId> {
    let known = world.networks[&approval.network].behind(&approval.prefix);
    let own = known.filter(|known| *known.node() == approval.node);
    own.map(|known| known.id().clone()).collect()
}

/// Returns a route as it is after a change.
fn planned(
    world: &World,
    approval: &ApprovalRecord,
    behind: &[WorkloadId],
    (becomes, mutations): (ApprovalChange<'_>, &[Mutation]),
) -> Route {
    let refused = |mutation: &Mutation| match mutation {
        Mutation::Put(Record::Refused(record)) if behind.contains(&record.report.id) => {
            Some(record.reasons.clone())
        }
        _ => None,
    };
    let reasons: Vec<String> = mutations.iter().filter_map(refused).flatten().collect();
    let known = behind.first().and_then(|id| world.workload(id));
    Route {
        network: approval.network.clone(),
        prefix: approval.prefix,
        node: approval.node.clone(),
        workload: behind.first().cloned(),
        labels: known.map(|known| known.report().labels).unwrap_or_default(),
        approved_by_hand: matches!(becomes, ApprovalChange::Granted(_)),
        state: match (behind.is_empty(), reasons.is_empty()) {
            (_, false) => RouteState::Waiting,
            (true, true) => RouteState::NotAdvertised,
            (false, true) => RouteState::Open,
        },
        reasons,
    }
}

/// Finds the prefix and the network that a body names. `scope` has the networks of the caller's
/// credential; empty for all. A node that serves none of them is treated as if it did not exist.
///
/// # Errors
/// [`Refusal::Missing`] if the node or the network does not exist, [`Refusal::Invalid`] if the
/// network is ambiguous.
pub fn find(
    world: &World,
    wanted: &ApproveRoute,
    scope: &[NetworkName],
) -> Result<ApprovalRecord, Refusal> {
    check_node(world, &wanted.node, scope)?;
    let prefix = wanted.prefix.trunc();
    let network = match &wanted.network {
        Some(name) => named_network(world, name, scope)?,
        None => only_network(world, wanted, &prefix, scope)?,
    };
    Ok(ApprovalRecord { network, node: wanted.node.clone(), prefix })
}

fn check_node(world: &World, node: &NodeName, scope: &[NetworkName]) -> Result<(), Refusal> {
    let is_known = super::nodes::is_known(world, node);
    if !is_known || !super::nodes::serves_any(world, node, scope) {
        let text = format!("there is no node `{node}`; `meshctl nodes` shows them");
        return Err(Refusal::Missing(text).about("node"));
    }
    Ok(())
}

fn named_network(
    world: &World,
    name: &NetworkName,
    scope: &[NetworkName],
) -> Result<NetworkName, Refusal> {
    if !covers(scope, name) {
        let text = format!("this credential has no say in network `{name}`");
        return Err(Refusal::Forbidden(text).about("network"));
    }
    let found = super::networks::find(world, name).map_err(|refusal| refusal.about("network"))?;
    Ok(found.record.name.clone())
}

/// Finds the default prefixes that a node advertises or is approved for, and the network. `scope`
/// is as for [`find`].
///
/// # Errors
/// [`Refusal::Missing`] if the node or the network does not exist, or the node is no egress
/// gateway, [`Refusal::Invalid`] if the network is ambiguous.
fn find_egress(
    world: &World,
    wanted: &ApproveEgress,
    scope: &[NetworkName],
) -> Result<Vec<ApprovalRecord>, Refusal> {
    let ApproveEgress { network, node } = wanted;
    check_node(world, node, scope)?;
    let network = match network {
        Some(name) => Some(named_network(world, name, scope)?),
        None => None,
    };
    let is_of = |approval: &ApprovalRecord| {
        is_default(&approval.prefix)
            && approval.node == *node
            && covers(scope, &approval.network)
            && network.as_ref().is_none_or(|network| *network == approval.network)
    };
    let advertised = world.networks.values().flat_map(|network| {
        network
            .gateways()
            .flat_map(|known| known.prefixes().iter().map(move |prefix| (known, prefix)))
    });
    let advertised = advertised.map(|(known, prefix)| ApprovalRecord {
        network: known.network().clone(),
        node: known.node().clone(),
        prefix: *prefix,
    });
    let all: BTreeSet<ApprovalRecord> =
        advertised.chain(world.approvals.iter().cloned()).filter(is_of).collect();
    let networks: BTreeSet<&NetworkName> = all.iter().map(|approval| &approval.network).collect();
    if networks.len() > 1 {
        return Err(ambiguous(networks));
    }
    if all.is_empty() {
        return Err(Refusal::Missing(format!(
            "node {node} is no egress gateway; on it: meshctl egress start --network NAME"
        )));
    }
    Ok(all.into_iter().collect())
}

fn ambiguous<'a>(networks: impl IntoIterator<Item = &'a NetworkName>) -> Refusal {
    let names: Vec<String> = networks.into_iter().map(ToString::to_string).collect();
    Refusal::Invalid(format!("say which network with --network: {}", names.join(", ")))
}

/// Returns the network in which the node advertises the prefix, or the only one.
fn only_network(
    world: &World,
    wanted: &ApproveRoute,
    prefix: &IpNet,
    scope: &[NetworkName],
) -> Result<NetworkName, Refusal> {
    let has = |known: WorkloadRef<'_>| *known.node() == wanted.node;
    let own = || world.networks.iter().filter(|(name, _)| covers(scope, name));
    let advertised = own().filter(|(_, network)| network.behind(prefix).any(has));
    let mut names: Vec<&NetworkName> = advertised.map(|(name, _)| name).collect();
    if names.is_empty() {
        names = own().map(|(name, _)| name).collect();
    }
    match names[..] {
        [only] => Ok(only.clone()),
        _ => Err(ambiguous(names)),
    }
}
