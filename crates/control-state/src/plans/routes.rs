//! Routes: prefixes behind gateways, and who has approved them.

use super::{credentials::covers, prefixes::check_prefix, reclassify::reclassify_all};
use crate::{
    Plan, Refusal,
    records::{ApprovalRecord, Mutation, Record, Standing},
    world::World,
};
use ipnet::IpNet;
use meshward_api_types::{ApproveRoute, Route, RouteState};
use meshward_types::{NetworkName, WorkloadId};

/// The routes that there are, and prefixes that are approved though nobody has them.
pub fn list(world: &World) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for network in world.networks.values() {
        for known in network.gateways() {
            routes.extend(known.prefixes().iter().map(|prefix| describe(world, known, prefix)));
        }
    }
    for approval in &world.approvals {
        let there = |route: &Route| {
            (&route.network, &route.node, &route.prefix)
                == (&approval.network, &approval.node, &approval.prefix)
        };
        if !routes.iter().any(there) {
            routes.push(Route {
                network: approval.network.clone(),
                prefix: approval.prefix,
                node: approval.node.clone(),
                workload: None,
                labels: Default::default(),
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

fn describe(world: &World, known: Standing<'_>, prefix: &IpNet) -> Route {
    let (labels, reasons) = match known {
        Standing::Admitted(record) => {
            let network = world.networks.get(&record.network);
            let identity = network.and_then(|network| network.identities.get(&record.identity));
            (identity.map_or(record.declared.clone(), |identity| identity.labels.clone()), vec![])
        }
        Standing::Refused(record) => (record.report.labels.clone(), record.reasons.clone()),
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
    change(world, wanted, approval, mutations, true)
}

/// Takes an approval back: links through the route are cut, unless the policy approves it.
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
    change(world, wanted, approval, vec![delete], false)
}

fn change(
    world: &World,
    wanted: &ApproveRoute,
    approval: ApprovalRecord,
    mut mutations: Vec<Mutation>,
    approved: bool,
) -> Result<Plan<Route>, Refusal> {
    let network = &world.networks[&approval.network];
    let behind: Vec<WorkloadId> = network
        .behind(&approval.prefix)
        .filter(|known| *known.node() == approval.node)
        .map(|known| known.id().clone())
        .collect();
    if !mutations.is_empty() {
        mutations.extend(reclassify_all(world, &behind, Some((&approval, approved))));
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
        labels: Default::default(),
        approved_by_hand: approved,
        state: if behind.is_empty() { RouteState::NotAdvertised } else { RouteState::Open },
        reasons: mutations.iter().filter_map(refused).flatten().collect(),
    };
    if let Some(known) = behind.first().and_then(|id| world.standing(id)) {
        route.labels = known.report().labels;
    }
    if !route.reasons.is_empty() {
        route.state = RouteState::Waiting;
    }
    let verb = if approved { "approved" } else { "disapproved" };
    let action = match mutations.is_empty() {
        true => String::new(),
        false => {
            format!(
                "{verb} {} behind node {} in network {}",
                wanted.prefix, wanted.node, approval.network
            )
        }
    };
    Ok(Plan::new(action, mutations, route))
}

/// Which prefix is meant, of which network. `scope`: the networks that the caller has a say in;
/// none: all. A node that serves none of them is answered as one that is not there.
///
/// # Errors
/// If the node or the network is not there, or it is not plain which network.
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

/// The network in which the node advertises the prefix, or the only one.
fn only_network(
    world: &World,
    wanted: &ApproveRoute,
    prefix: &IpNet,
    scope: &[NetworkName],
) -> Result<NetworkName, Refusal> {
    let has = |known: Standing<'_>| *known.node() == wanted.node;
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
