//! Routes to machines behind gateways.

use crate::{
    arguments::{self, Common, Output, Route, RouteOf},
    client::Client,
    coordinator::done,
    output::{bad, good, list as cell, show, whole},
};
use anyhow::Result;
use meshward_model::{
    api::{self, ApproveRoute, RouteState},
    local::{Advertise, LocalWorkload, State},
};

pub async fn route(common: &Common, verb: Route) -> Result<()> {
    match verb {
        Route::Advertise { prefixes, network, labels, name } => {
            let labels = arguments::labels(&labels)?;
            let wanted = Advertise { network, prefixes, labels, name };
            let made: LocalWorkload = Client::node(common).post("/v1/routes", &wanted).await?;
            if whole(common, &made)? {
                return Ok(());
            }
            let prefixes = cell(&wanted.prefixes);
            match &made.state {
                State::Refused(reason) => {
                    anstream::println!("{prefixes} is advertised as {}, and waits: {reason}", made.id);
                }
                _ => anstream::println!("{prefixes} is advertised as {}", made.id),
            }
            Ok(())
        }
        Route::Withdraw { prefix, network } => {
            let path = format!("/v1/routes?network={network}&prefix={prefix}");
            Client::node(common).delete(&path).await?;
            done(common, format!("{prefix} is not advertised any more"))
        }
        Route::List => list(common).await,
        Route::Approve(of) => approve(common, of, "approve", "approved").await,
        Route::Disapprove(of) => approve(common, of, "disapprove", "not approved any more").await,
    }
}

async fn approve(common: &Common, of: RouteOf, verb: &str, past: &str) -> Result<()> {
    let wanted = ApproveRoute { network: of.network, prefix: of.prefix, node: of.node };
    let path = format!("/v1/routes/{verb}");
    let route: api::Route = Client::coordinator(common)?.post(&path, &wanted).await?;
    if whole(common, &route)? {
        return Ok(());
    }
    done(common, format!("{} behind {} is {past} in network {}", route.prefix, route.node, route.network))?;
    for reason in &route.reasons {
        anstream::eprintln!("{} it waits: {reason}", bad("note:"));
    }
    if route.state == RouteState::NotAdvertised && verb == "approve" {
        let prefix = route.prefix;
        let network = &route.network;
        anstream::eprintln!("on {}: meshctl route advertise {prefix} --network {network}", route.node);
    }
    Ok(())
}

async fn list(common: &Common) -> Result<()> {
    let all: Vec<api::Route> = Client::coordinator(common)?.get("/v1/routes").await?;
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
            route.workload.as_ref().map_or("-".into(), ToString::to_string),
        ]
    };
    let columns = ["PREFIX", "NETWORK", "NODE", "LABELS", "STATE", "APPROVED", "WORKLOAD"];
    let none = "no routes; on a gateway: meshctl route advertise PREFIX --network NAME --label KEY=VALUE";
    show(common, &all, columns, row, none)?;
    if common.output == Output::Table {
        for (route, reason) in all.iter().flat_map(|route| route.reasons.iter().map(move |why| (route, why)))
        {
            anstream::eprintln!("{} {}: {reason}", bad("waiting:"), route.prefix);
        }
    }
    Ok(())
}
