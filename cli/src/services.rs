//! Services, and drains of their instances.

use crate::{
    Mistake,
    arguments::{Common, Drain, ServiceVerb, Services, Undrain, Watching, verb_or_list},
    client::Client,
    enforcement, listing,
    networks::named_or_only,
    note, out,
    output::{Change, Effect, bad, count, good, list, or_dash, show, tell, whole},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::{BeginDrain, DrainResult, DrainTarget, operations};
use meshward_types::{NodeName, Serving, Weight, WorkloadId};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// The time between two looks at the flows that are left.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn service(
    common: &Common,
    verb: Option<ServiceVerb>,
    which: Services,
) -> Result<ExitCode> {
    match verb_or_list(verb, which, ServiceVerb::List)? {
        ServiceVerb::List(Services { network, watching }) => {
            let client = Client::coordinator(common)?;
            let query: Vec<_> =
                network.iter().map(|network| ("network", network.to_string())).collect();
            let read = async || client.all(&operations::SERVICES, &query).await;
            let narrowed = !query.is_empty();
            listing::list(watching, read, |all| print(common, all, narrowed)).await?;
        }
        ServiceVerb::Show { name, of, watching } => {
            let client = Client::coordinator(common)?;
            let network = named_or_only(&client, of).await?;
            let read = async || client.read(&operations::SERVICE, &[&network, &name], &[]).await;
            listing::list(watching, read, |details| print_details(common, details)).await?;
        }
        ServiceVerb::Drain(wanted) => return drain(common, wanted).await,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(common: &Common, all: &[api::Service], narrowed: bool) -> Result<()> {
    let row = |service: &api::Service| {
        [
            service.name.to_string(),
            service.network.to_string(),
            list(&service.addresses),
            ports(service),
            service.selector.to_string(),
            instances(service),
            list(service.prefer.iter().map(|near| format!("{near:?}").to_lowercase())),
            service.fan_out.clone(),
            or_dash(service.health.as_ref()),
        ]
    };
    let columns = [
        "NAME",
        "NETWORK",
        "ADDRESSES",
        "PORTS",
        "FOR",
        "INSTANCES",
        "PREFER+",
        "FAN-OUT+",
        "HEALTH+",
    ];
    let none = "no services; to make one, write `services:` in the policy of a network";
    show(common, all, columns, row, &listing::none(narrowed, "services", none))
}

fn ports(service: &api::Service) -> String {
    service.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn instances(service: &api::Service) -> String {
    let api::Service { ready, draining, unhealthy, .. } = service;
    let mut parts = vec![match ready {
        0 => bad("0 ready"),
        _ => format!("{ready} ready"),
    }];
    let others = [(*draining, "draining"), (*unhealthy, "unhealthy")];
    parts.extend(
        others
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}")),
    );
    parts.join(", ")
}

fn print_details(common: &Common, details: &api::ServiceDetails) -> Result<()> {
    if whole(common, details)? {
        return Ok(());
    }
    let api::ServiceDetails { service, load, clients, instances: all } = details;
    let affinity = service.affinity_seconds.map_or("none".into(), |seconds| {
        format!("client, {}", humantime::format_duration(Duration::from_secs(seconds)))
    });
    let near = list(service.prefer.iter().map(|near| format!("{near:?}").to_lowercase()));
    for (what, text) in [
        ("name", service.dns_name.clone()),
        ("addresses", list(&service.addresses)),
        ("ports", ports(service)),
        ("for", service.selector.to_string()),
        ("instances", instances(service)),
        ("prefer", near),
        ("health", or_dash(service.health.as_ref())),
        ("fan-out", service.fan_out.clone()),
        ("affinity", affinity),
        ("load", in_short(load)),
        ("desired", count(load.desired, "instance")),
        ("subsets", subsets(load)),
    ] {
        out!("{what:<10} {text}");
    }
    print_clients(service, clients);
    out!("");
    print_instances(common, service, all)
}

/// Prints who may connect to a service.
fn print_clients(service: &api::Service, clients: &[api::ServiceClients]) {
    if clients.is_empty() {
        let api::Service { network, name, .. } = service;
        let nobody = bad("none");
        out!("{:<10} {nobody}: no rule leads to it, so nobody reaches it; write one,", "clients");
        out!("{:<10} with `to: {{ service: {name} }}`: meshctl policy edit {network}", "");
    }
    for (number, api::ServiceClients { from, ports, rule }) in clients.iter().enumerate() {
        let what = if number == 0 { "clients" } else { "" };
        out!("{what:<10} {from}, {} (rule {rule})", list(ports));
    }
}

fn print_instances(common: &Common, service: &api::Service, all: &[api::Instance]) -> Result<()> {
    let row = |instance: &api::Instance| {
        let load = |text: fn(&api::InstanceLoad) -> String| instance.load.as_ref().map(text);
        let state = match (instance.quarantined, instance.serving) {
            (true, _) => bad("quarantined"),
            (false, Serving::Ready) => good("ready"),
            (false, other) => bad(other),
        };
        [
            instance.workload.to_string(),
            instance.name.to_string(),
            instance.node.to_string(),
            or_dash(instance.site.as_ref()),
            list(&instance.addresses),
            instance.weight.to_string(),
            state,
            or_dash(instance.drain.as_ref().map(drained)),
            or_dash(load(|load| load.open.to_string())),
            or_dash(load(|load| load.connects_per_second.to_string())),
            or_dash(instance.load.as_ref().and_then(|load| load.connect_micros).map(milliseconds)),
            or_dash(load(|load| format!("{} %", load.used_percent))),
        ]
    };
    // Columns that would say the same of all are for `-o wide`.
    let weight = match all.iter().all(|instance| instance.weight == Weight::default().get()) {
        true => "WEIGHT+",
        false => "WEIGHT",
    };
    let drain = match all.iter().all(|instance| instance.drain.is_none()) {
        true => "DRAINED+",
        false => "DRAINED",
    };
    let columns = [
        "INSTANCE",
        "NAME",
        "NODE",
        "SITE",
        "ADDRESSES",
        weight,
        "STATE",
        drain,
        "OPEN",
        "CONNECTS/S",
        "CONNECT",
        "USED",
    ];
    let api::Service { network, selector, .. } = service;
    let none = format!(
        "no instances: no workload of network {network} has the labels {selector}; \
        `meshctl workloads` shows those that they have"
    );
    show(common, all, columns, row, &none)
}

/// A drain in one cell.
fn drained(drain: &api::Drain) -> String {
    let with_node = drain.target.node.as_ref().map(|node| format!("with node {node}, "));
    let why = drain.why.as_ref().map(|why| format!(": {why}"));
    format!("{}by {}{}", with_node.unwrap_or_default(), drain.by, why.unwrap_or_default())
}

async fn target(
    client: &Client,
    workload: Option<WorkloadId>,
    node: Option<NodeName>,
) -> Result<DrainTarget> {
    let workload = match workload {
        Some(given) => Some(workload_id(client, given).await?),
        None => None,
    };
    Ok(DrainTarget { workload, node })
}

/// Returns the id of a workload that is named by its id, or by its name if only one has it.
async fn workload_id(client: &Client, given: WorkloadId) -> Result<WorkloadId> {
    let query = [("name", given.to_string())];
    let named = client.all(&operations::WORKLOADS, &query).await?;
    match &named[..] {
        [] => Ok(given),
        [one] => Ok(one.id.clone()),
        several => {
            let ids = list(several.iter().take(8).map(|workload| &workload.id));
            let text = format!("{} are called {given}; name one by its id: {ids}", several.len());
            Err(Mistake(format!("{text}{}", if several.len() > 8 { " …" } else { "" })).into())
        }
    }
}

fn in_short(load: &api::ServiceLoad) -> String {
    let api::ServiceLoad { open, connects_per_second, .. } = load;
    format!("{open} open, {connects_per_second} connects a second")
}

fn subsets(load: &api::ServiceLoad) -> String {
    let clients = count(load.clients, "node");
    match (load.least_fan_out, load.most_fan_out) {
        (Some(least), Some(most)) if least == most => format!("{least} instances, {clients}"),
        (Some(least), Some(most)) => format!("{least} to {most} instances, {clients}"),
        _ => "-".into(),
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1e3)
}

pub(crate) async fn drain(common: &Common, wanted: Drain) -> Result<ExitCode> {
    let Drain { workload, node, timeout, no_wait, message, watching } = wanted;
    if workload.is_none() && node.is_none() {
        if message.is_some() || no_wait {
            return Err(Mistake("name a workload, or a node with --node".into()).into());
        }
        return list_drains(common, watching).await.map(|()| ExitCode::SUCCESS);
    }
    let client = Client::coordinator(common)?;
    let target = target(&client, workload, node).await?;
    let wanted = BeginDrain { target: target.clone(), message };
    let result = client.write(&operations::BEGIN_DRAIN, &[], &wanted).await?;
    report(common, &result, "drain", "drained")?;
    if common.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if common.is_table() {
        enforcement::name_silent(common, &result.enforcement);
    }
    match no_wait {
        true => Ok(enforcement::exit_code(Some(&result.enforcement))),
        false => wait(common, &client, &target, timeout).await,
    }
}

/// Waits until the drained workloads have no flows any more that others began.
async fn wait(
    common: &Common,
    client: &Client,
    target: &DrainTarget,
    timeout: Duration,
) -> Result<ExitCode> {
    let end = Instant::now() + timeout;
    let mut told = None;
    loop {
        let progress = client.ask(&operations::DRAIN_PROGRESS, target).await?;
        let flows = progress.workloads.iter().map(|workload| workload.flows);
        let flows = flows.fold(0, u64::saturating_add);
        if flows == 0 && progress.nodes_silent.is_empty() {
            if common.is_table() {
                out!("no flows are left");
            }
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= end {
            let silent = match progress.nodes_silent.is_empty() {
                true => String::new(),
                false => format!("; no answer from {}", list(&progress.nodes_silent)),
            };
            note!(
                "meshctl: {} left after {}{silent}; the drain goes on until `meshctl undrain`",
                open(flows),
                humantime::format_duration(timeout)
            );
            return Ok(ExitCode::FAILURE);
        }
        if common.is_table() && told != Some(flows) {
            note!("{} left", open(flows));
            told = Some(flows);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn open(flows: u64) -> String {
    count(usize::try_from(flows).unwrap_or(usize::MAX), "open flow")
}

pub(crate) async fn undrain(common: &Common, wanted: Undrain) -> Result<ExitCode> {
    let Undrain { workload, node } = wanted;
    let client = Client::coordinator(common)?;
    let target = target(&client, workload, node).await?;
    let result = client.write(&operations::END_DRAIN, &[], &target).await?;
    report(common, &result, "end the drain of", "in the choice again")?;
    if common.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(enforcement::exit_code(Some(&result.enforcement)))
}

fn report(common: &Common, result: &DrainResult, verb: &'static str, past: &str) -> Result<()> {
    let workloads = count(result.workloads.len(), "workload");
    let is = if result.workloads.len() == 1 { "is" } else { "are" };
    let effect = |id: &WorkloadId| Effect {
        action: "change",
        kind: "workload",
        name: id.to_string(),
        detail: String::new(),
    };
    let would = format!("{verb} {workloads}");
    let done = format!("{workloads} {is} {past}; {}", enforcement::in_short(&result.enforcement));
    let effects = result.workloads.iter().map(effect).collect();
    tell(common, &Change { would, done, effects, result: Some(result) })
}

async fn list_drains(common: &Common, watching: Watching) -> Result<()> {
    let client = Client::coordinator(common)?;
    let read = async || client.all(&operations::DRAINS, &[]).await;
    listing::list(watching, read, |all| print_drains(common, all)).await
}

fn print_drains(common: &Common, all: &[api::Drain]) -> Result<()> {
    let row = |drain: &api::Drain| {
        let DrainTarget { workload, node } = &drain.target;
        let node = node.as_ref().map(|node: &NodeName| format!("node {node}"));
        [
            node.or_else(|| workload.as_ref().map(ToString::to_string)).unwrap_or_default(),
            drain.workloads.to_string(),
            drain.since.clone(),
            drain.by.clone(),
            or_dash(drain.why.as_ref()),
        ]
    };
    show(common, all, ["DRAINED", "WORKLOADS", "SINCE", "BY", "WHY"], row, "nothing is drained")
}
