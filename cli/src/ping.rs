//! `meshctl ping`: whether and how this machine's node reaches another, and what policy says about
//! it.

use crate::{
    Mistake,
    arguments::{Common, Ping},
    client::Client,
    note, out,
    output::{bad, few, good, is_closed, whole},
};
use anyhow::Result;
use meshward_api_types::{
    Workload,
    diagnosis::{self, PathKind, PolicyBetween, Pong},
    operations,
};
use meshward_types::{NodeName, WorkloadId};
use serde::Serialize;
use std::{process::ExitCode, time::Instant};

/// All pings of a command.
#[derive(Serialize)]
struct Pings {
    sent: usize,
    answered: usize,
    /// The least, the median and the most round trip, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_us: Option<[u64; 3]>,
    #[serde(rename = "pings")]
    pongs: Vec<Pong>,
}

/// # Errors
/// [`Mistake`] if nobody has that name.
pub(crate) async fn ping(common: &Common, wanted: Ping) -> Result<ExitCode> {
    let local = Client::node(common);
    let request = resolve(common, &wanted).await?;
    let table = common.is_table();
    let mut pings: Vec<Pong> = Vec::new();
    for number in 0..wanted.count {
        let begun = Instant::now();
        let pong: Pong = local.post("/v1/ping", &request).await?;
        if table {
            if number == 0 {
                print_target(&pong, &wanted.target);
            }
            print_pong(&pong);
        }
        let done = wanted.until_direct && matches!(pong.path, PathKind::Direct | PathKind::Local);
        let local = pong.path == PathKind::Local;
        pings.push(pong);
        if done || local || is_closed() {
            break;
        }
        if number + 1 < wanted.count {
            tokio::time::sleep(wanted.interval.saturating_sub(begun.elapsed())).await;
        }
    }
    let all = sum(pings);
    if !whole(common, &all)? {
        print_sum(common, &all);
    }
    let reached =
        all.answered > 0 && (!wanted.until_direct || all.pongs.last().is_some_and(is_direct));
    Ok(if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_direct(pong: &Pong) -> bool {
    pong.path != PathKind::Relayed && pong.path != PathKind::None
}

/// Returns the request to the node. Only the coordinator knows the names of workloads elsewhere.
async fn resolve(common: &Common, wanted: &Ping) -> Result<diagnosis::Ping> {
    let request =
        |target: String, network, node: Option<NodeName>| diagnosis::Ping { target, network, node };
    let plain = request(wanted.target.clone(), wanted.network.clone(), None);
    if wanted.target.parse::<std::net::IpAddr>().is_ok() || !Client::has_context(common) {
        return Ok(plain);
    }
    let Ok(client) = Client::coordinator(common) else { return Ok(plain) };
    let mut query = Vec::new();
    query.extend(wanted.network.as_ref().map(|network| ("network", network.to_string())));
    // A node's name comes before a workload's; without the coordinator this node has to know what
    // is meant.
    if client.read(&operations::NODE, &[&wanted.target], &[]).await.is_ok() {
        return Ok(plain);
    }
    let found = match wanted.target.parse::<WorkloadId>() {
        Ok(_) => client
            .read(&operations::WORKLOAD, &[&wanted.target], &[])
            .await
            .ok()
            .into_iter()
            .collect(),
        Err(_) => Vec::new(),
    };
    let found: Vec<Workload> = if found.is_empty() {
        query.push(("name", wanted.target.clone()));
        client.all(&operations::WORKLOADS, &query).await.unwrap_or_default()
    } else {
        found
    };
    let is_there =
        |one: &Workload| wanted.network.as_ref().is_none_or(|network| *network == one.network);
    let found: Vec<Workload> = found.into_iter().filter(is_there).collect();
    match found.as_slice() {
        [] => Ok(plain),
        [one] => Ok(request(one.id.to_string(), Some(one.network.clone()), Some(one.node.clone()))),
        several => {
            let ids: Vec<String> = several
                .iter()
                .map(|one| format!("{} ({}, {})", one.id, one.network, one.node))
                .collect();
            Err(Mistake(format!(
                "`{}` is the name of several workloads; say which by its id: {}",
                wanted.target,
                ids.join(", ")
            ))
            .into())
        }
    }
}

fn print_target(pong: &Pong, target: &str) {
    match &pong.workload {
        Some(id) => {
            let labels =
                pong.labels.as_ref().map_or(String::new(), |labels| format!(" ({labels})"));
            let name = if target == id.as_str() { String::new() } else { format!("{target}, ") };
            out!(
                "ping {name}workload {id}{labels} on node {}, network {}",
                pong.node,
                pong.network
            );
        }
        None => out!("ping node {}, network {}", pong.node, pong.network),
    }
}

fn print_pong(pong: &Pong) {
    let time = pong.round_trip_us.map(milliseconds);
    let way = match (pong.path, pong.address, pong.relay) {
        (PathKind::Local, ..) => return out!("{} is this machine's node", pong.node),
        (PathKind::None, ..) => {
            return out!(
                "{}",
                bad(
                    "no session: no candidate and no relay leads there; `meshctl netcheck` on both \
                     sides says more"
                )
            );
        }
        (PathKind::Direct, Some(address), _) => format!("direct, by {address}"),
        (PathKind::Direct, None, _) => "direct".into(),
        (PathKind::Relayed, _, relay) => {
            format!("relayed, by relay {}", relay.map_or("?".into(), |relay| relay.to_string()))
        }
    };
    let mtu = match pong.path_mtu {
        Some(mtu) if mtu < pong.network_mtu => {
            format!(", packets of {mtu} of {} bytes", pong.network_mtu)
        }
        Some(mtu) => format!(", packets of {mtu} bytes"),
        None => String::new(),
    };
    match time {
        Some(time) => out!("answer in {time}, {way}{mtu}"),
        None => out!("{} ({way})", bad("no answer")),
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1000.0)
}

fn sum(pings: Vec<Pong>) -> Pings {
    let mut times: Vec<u64> = pings.iter().filter_map(|pong| pong.round_trip_us).collect();
    times.sort_unstable();
    let round_trip_us = match times.as_slice() {
        [] => None,
        all => Some([all[0], all[(all.len() - 1) / 2], all[all.len() - 1]]),
    };
    Pings { sent: pings.len(), answered: times.len(), round_trip_us, pongs: pings }
}

fn print_sum(common: &Common, all: &Pings) {
    let local = all.pongs.iter().any(|pong| pong.path == PathKind::Local);
    if let Some([least, median, most]) = all.round_trip_us.filter(|_| !local) {
        let [least, median, most] = [least, median, most].map(milliseconds);
        out!(
            "{} sent, {} answered; least {least}, median {median}, most {most}",
            all.sent,
            all.answered
        );
    } else if !local {
        note!("{} sent, none answered", all.sent);
    }
    let Some(last) = all.pongs.last() else { return };
    if last.workload.is_none() {
        return;
    }
    if last.policy.is_empty() {
        note!(
            "what policy lets pass: `meshctl explain --from ... --to ... --port ...`; no workload \
             here is in network {} and known to go with it",
            last.network
        );
        return;
    }
    out!("what policy lets pass, from the workloads of this node:");
    few(common, &last.policy, print_policy);
}

fn print_policy(between: &PolicyBetween) {
    let said = |acl: &str| if acl.is_empty() { bad("nothing") } else { good(acl) };
    let isolated = if between.isolated {
        bad("; one of the two is quarantined or not let in")
    } else {
        String::new()
    };
    out!(
        "  {}: to it {}, from it {}{isolated}",
        between.name,
        said(&between.to),
        said(&between.from)
    );
}
