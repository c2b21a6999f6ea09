//! Workloads of all nodes, and the links between them.

use crate::{
    arguments::{Common, Labelled, LinkVerb, Links, WorkloadVerb, Workloads, verb_or_list},
    client::Client,
    listing::{self, by_selector},
    note,
    output::{bad, bytes, good, list, or_dash, show, whole},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::operations;
use meshward_types::{NetworkName, Serving};

pub(crate) async fn workload(
    common: &Common,
    verb: Option<WorkloadVerb>,
    which: Workloads,
) -> Result<()> {
    let WorkloadVerb::List(Workloads { network, node, which }) =
        verb_or_list(verb, which, WorkloadVerb::List)?;
    let Labelled { selector, watching } = which;
    let client = Client::coordinator(common)?;
    let mut query = of(network);
    query.extend(node.iter().map(|node| ("node", node.to_string())));
    query.extend(by_selector(selector.as_ref()));
    let read = async || {
        let all = client.all(&operations::WORKLOADS, &query).await?;
        if let (Some(node), true) = (&node, all.is_empty()) {
            // One that is not there runs nothing, either, and is told.
            client.read(&operations::NODE, &[node], &[]).await?;
        }
        Ok(all)
    };
    let narrowed = !query.is_empty();
    listing::list(watching, read, |all| print(common, all, narrowed)).await
}

fn print(common: &Common, all: &[api::Workload], narrowed: bool) -> Result<()> {
    let row = |workload: &api::Workload| {
        let state = match workload {
            _ if !workload.refused.is_empty() => bad("refused"),
            _ if workload.quarantined => bad("quarantined"),
            api::Workload { serving: Some(Serving::Draining), .. } => bad(Serving::Draining),
            api::Workload { serving: Some(Serving::Unhealthy), unhealthy, .. } => {
                bad(format!("unhealthy for {}", list(unhealthy)))
            }
            _ => good("open"),
        };
        let measured = workload.measurement.as_ref();
        [
            workload.id.to_string(),
            workload.name.to_string(),
            workload.network.to_string(),
            workload.node.to_string(),
            list(&workload.addresses),
            workload.labels.to_string(),
            or_dash(measured.map(|measured| &measured.runtime)),
            state,
        ]
    };
    let columns = ["ID", "NAME", "NETWORK", "NODE", "ADDRESSES", "LABELS", "RUNTIME+", "STATE"];
    let none = "no workloads; start one on a node with: meshctl run --network NAME -- COMMAND";
    show(common, all, columns, row, &listing::none(narrowed, "workloads", none))?;
    if common.is_table() {
        let nameless = |one: &&api::Workload| one.identity.is_some() && !one.owns_name;
        for workload in all.iter().filter(nameless) {
            note!(
                "{} ({}) has no DNS name: workloads with other labels have taken `{}` before",
                workload.name,
                workload.id,
                workload.name
            );
        }
        for workload in all {
            for reason in &workload.refused {
                note!("{} {} ({}): {reason}", bad("refused:"), workload.name, workload.id);
            }
        }
    }
    Ok(())
}

pub(crate) async fn link(common: &Common, verb: Option<LinkVerb>, which: Links) -> Result<()> {
    let LinkVerb::List(Links { network, denied, observed, selector, watching }) =
        verb_or_list(verb, which, LinkVerb::List)?;
    let client = Client::coordinator(common)?;
    let mut query = of(network);
    let wanted = [("denied", denied), ("observed", observed)];
    query.extend(
        wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (name, "true".to_owned())),
    );
    query.extend(by_selector(selector.as_ref()));
    let read = async || client.list(&operations::LINKS, &query).await;
    let narrowed = !query.is_empty();
    listing::list(watching, read, |all| print_links(common, all, narrowed)).await
}

fn print_links(common: &Common, all: &api::Links, narrowed: bool) -> Result<()> {
    if whole(common, all)? {
        return Ok(());
    }
    let or_nothing = |count: u64| if count > 0 { bad(count) } else { "0".into() };
    let row = |link: &api::Link| {
        [
            link.network.to_string(),
            link.from.to_string(),
            link.to.to_string(),
            if link.acl.is_empty() { bad("nothing") } else { link.acl.to_string() },
            link.packets.to_string(),
            bytes(link.bytes),
            or_nothing(link.denied),
            or_nothing(link.observed),
        ]
    };
    let columns = ["NETWORK", "FROM", "TO", "MAY USE", "PACKETS", "BYTES", "DENIED", "WOULD DENY+"];
    let none = "no links: no policy lets running workloads talk, and none has tried";
    show(common, &all.items, columns, row, &listing::none(narrowed, "links", none))?;
    if !all.nodes_silent.is_empty() {
        note!("without the counters of: {}", list(&all.nodes_silent));
    }
    Ok(())
}

fn of(network: Option<NetworkName>) -> Vec<(&'static str, String)> {
    network.into_iter().map(|network| ("network", network.to_string())).collect()
}
