//! Routes to machines behind gateways.

use crate::{
    arguments::{self, Common, Labelled, Patience, Route, RouteOf, verb_or_list},
    client::Client,
    listing, note,
    output::{Change, bad, good, list as cell, or_dash, show, tell},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::{
    ApproveRoute, RouteState,
    local::{Advertise, LocalWorkload, State},
    operations,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// A verdict about routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are approved.
    Approve,
    /// They are approved no longer.
    Disapprove,
}

pub(crate) async fn route(common: &Common, verb: Option<Route>, which: Labelled) -> Result<()> {
    match verb_or_list(verb, which, Route::List)? {
        Route::Advertise { prefixes, network, labels, name, patience } => {
            let labels = arguments::labels(&labels)?;
            let wanted = Advertise { network, prefixes, labels, name };
            advertise(common, &wanted, patience).await
        }
        Route::Withdraw { prefix, network } => {
            let path = format!("/v1/routes?network={network}&prefix={prefix}");
            Client::node(common).delete(&path).await?;
            let would = format!("withdraw {prefix} from network {network}");
            let done = format!("{prefix} is withdrawn");
            tell(common, &Change { would, done, effects: vec![], result: None })
        }
        Route::List(which) => list(common, which).await,
        Route::Approve(of) => approve(common, of, Verdict::Approve).await,
        Route::Disapprove(of) => approve(common, of, Verdict::Disapprove).await,
    }
}

pub(crate) async fn advertise(
    common: &Common,
    wanted: &Advertise,
    patience: Patience,
) -> Result<()> {
    let client = Client::node(common).patient(patience.wait);
    let made: LocalWorkload = client.post("/v1/routes", wanted).await?;
    let prefixes = cell(&wanted.prefixes);
    let waits = match &made.state {
        State::Refused(reason) => format!(", and waits: {reason}"),
        _ => String::new(),
    };
    let would = format!("advertise {prefixes} in network {} as {}", wanted.network, made.labels);
    let done = format!("{prefixes} is advertised as {}{waits}", made.id);
    tell(common, &Change { would, done, effects: vec![], result: Some(&made) })
}

async fn approve(common: &Common, of: RouteOf, verdict: Verdict) -> Result<()> {
    let wanted = ApproveRoute { network: of.network, prefix: of.prefix, node: of.node };
    let change = match verdict {
        Verdict::Approve => operations::APPROVE_ROUTE,
        Verdict::Disapprove => operations::DISAPPROVE_ROUTE,
    };
    let route = Client::coordinator(common)?.write(&change, &[], &wanted).await?;
    tell_of(common, std::slice::from_ref(&route), verdict, &route)
}

/// Tells that routes behind one node are approved, or not any more. `result` is what it is without
/// `-o table`.
pub(crate) fn tell_of<T: Serialize>(
    common: &Common,
    routes: &[api::Route],
    verdict: Verdict,
    result: &T,
) -> Result<()> {
    let [first, ..] = routes else { return Ok(()) };
    let prefixes: Vec<_> = routes.iter().map(|route| route.prefix).collect();
    let which = format!("{} behind {}", cell(&prefixes), first.node);
    let (verb, past) = match (verdict, routes.len()) {
        (Verdict::Approve, 1) => ("approve", "is approved"),
        (Verdict::Approve, _) => ("approve", "are approved"),
        (Verdict::Disapprove, 1) => ("disapprove", "is not approved any more"),
        (Verdict::Disapprove, _) => ("disapprove", "are not approved any more"),
    };
    let would = format!("{verb} {which} in network {}", first.network);
    let done = format!("{which} {past} in network {}", first.network);
    tell(common, &Change { would, done, effects: vec![], result: Some(result) })?;
    if !common.is_table() || common.dry_run {
        return Ok(());
    }
    let reasons: BTreeSet<&String> = routes.iter().flat_map(|route| &route.reasons).collect();
    for reason in reasons {
        note!("{} it waits: {reason}", bad("note:"));
    }
    for route in routes {
        if route.state == RouteState::NotAdvertised && verdict == Verdict::Approve {
            let api::Route { prefix, network, node, .. } = route;
            note!("on {node}: meshctl route advertise {prefix} --network {network}");
        }
    }
    Ok(())
}

async fn list(common: &Common, Labelled { selector, watching }: Labelled) -> Result<()> {
    let client = Client::coordinator(common)?;
    let query: Vec<_> = listing::by_selector(selector.as_ref()).into_iter().collect();
    let read = async || client.all(&operations::ROUTES, &query).await;
    let none =
        "no routes; on a gateway: meshctl route advertise PREFIX --network NAME --label KEY=VALUE";
    let none = listing::none(selector.is_some(), "routes", none);
    listing::list(watching, read, |all| print(common, all, &none)).await
}

pub(crate) fn print(common: &Common, all: &[api::Route], none: &str) -> Result<()> {
    let row = |route: &api::Route| {
        [
            route.prefix.to_string(),
            route.network.to_string(),
            route.node.to_string(),
            route.labels.to_string(),
            match route.state {
                RouteState::Open => good("open"),
                RouteState::Waiting => bad("waiting"),
                RouteState::NotAdvertised => "not advertised".into(),
            },
            if route.approved_by_hand { "by hand" } else { "-" }.into(),
            or_dash(route.workload.as_ref()),
        ]
    };
    let columns = ["PREFIX", "NETWORK", "NODE", "LABELS", "STATE", "APPROVED", "WORKLOAD+"];
    show(common, all, columns, row, none)?;
    if common.is_table() {
        for (route, reason) in
            all.iter().flat_map(|route| route.reasons.iter().map(move |why| (route, why)))
        {
            note!("{} {}: {reason}", bad("waiting:"), route.prefix);
        }
    }
    Ok(())
}
