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
use meshward_api_types::{ApproveRoute, Route, RouteState};
use meshward_types::{Labels, NetworkName, WorkloadId};

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
    let mut mutations = vec![];
    if !world.approvals.contains(&approval) {
        mutations.push(Mutation::Put(Record::Approval(approval.clone())));
    }
    Ok(change(world, wanted, ApprovalChange::Granted(&approval), mutations))
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
    let delete = Mutation::Delete(Record::Approval(approval.clone()).key());
    Ok(change(world, wanted, ApprovalChange::Withdrawn(&approval), vec![delete]))
}

fn change(
    world: &World,
    wanted: &ApproveRoute,
    becomes: ApprovalChange<'_>,
    mut mutations: Vec<Mutation>,
) -> Plan<Route> {
    let (approval, verb) = match becomes {
        ApprovalChange::Granted(approval) => (approval, "approved"),
        ApprovalChange::Withdrawn(approval) => (approval, "disapproved"),
    };
    let network = &world.networks[&approval.network];
    let behind: Vec<WorkloadId> = network
        .behind(&approval.prefix)
        .filter(|known| *known.node() == approval.node)
        .map(|known| known.id().clone())
        .collect();
    if !mutations.is_empty() {
        mutations.extend(reclassify_after(world, &behind, becomes));
    }
    let refused = |mutation: &Mutation| match mutation {
        Mutation::Put(Record::Refused(record)) => Some(record.reasons.clone()),
        _ => None,
    };
    let mut route = Route {
        network: approval.network.clone(),
        prefix: approval.prefix,
        node: approval.node.clone(),
        workload: behind.first().cloned(),
        labels: Labels::default(),
        approved_by_hand: matches!(becomes, ApprovalChange::Granted(_)),
        state: if behind.is_empty() { RouteState::NotAdvertised } else { RouteState::Open },
        reasons: mutations.iter().filter_map(refused).flatten().collect(),
    };
    if let Some(known) = behind.first().and_then(|id| world.workload(id)) {
        route.labels = known.report().labels;
    }
    if !route.reasons.is_empty() {
        route.state = RouteState::Waiting;
    }
    let action = match mutations.is_empty() {
        true => String::new(),
        false => {
            format!(
                "{verb} {} behind node {} in network {}",
                wanted.prefix, wanted.node, approval.network
            )
        }
    };
    Plan::new(action, mutations, route)
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
    let is_known = super::nodes::is_known(world, &wanted.node);
    if !is_known || !super::nodes::serves_any(world, &wanted.node, scope) {
        let text = format!("there is no node `{}`; `meshctl nodes` shows them", wanted.node);
        return Err(Refusal::Missing(text).about("node"));
    }
    let prefix = wanted.prefix.trunc();
    let network = match &wanted.network {
        Some(name) if !covers(scope, name) => {
            let text = format!("this credential has no say in network `{name}`");
            return Err(Refusal::Forbidden(text).about("network"));
        }
        Some(name) => {
            let found =
                super::networks::find(world, name).map_err(|refusal| refusal.about("network"))?;
            found.record.name.clone()
        }
        None => only_network(world, wanted, &prefix, scope)?,
    };
    Ok(ApprovalRecord { network, node: wanted.node.clone(), prefix })
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
        _ => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Err(Refusal::Invalid(format!("say which network with --network: {}", names.join(", "))))
        }
    }
}
