//! Workloads of this machine: running a command on the mesh, attaching a namespace.

use crate::{
    Mistake,
    arguments::{self, Common, Declared, LabelChange, Labelled, Workload},
    client::{Client, told},
    listing, note,
    output::{Change, bad, good, list as cell, show, tell},
    resolver::Resolver,
    runner::{self, Environment},
};
use anyhow::{Context, Result};
use meshward_api_client::Error;
use meshward_api_types::local::{Attach, LocalStatus, LocalWorkload, Relabel, State};
use meshward_netns::Netns;
use meshward_types::{DomainName, Labels, WorkloadId, dns::servers_for};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

/// The most attempts to write labels that somebody else changes at the same time.
const RELABELS: usize = 20;

/// Runs a command in a namespace of its own. Its exit code is ours.
pub(crate) fn run(common: &Common, run: arguments::Run) -> Result<ExitCode> {
    if !common.is_table() && !common.dry_run {
        let text = "what is printed is the command's; leave out --output, and see `meshctl \
            attached -o json`";
        return Err(Mistake(text.into()).into());
    }
    // Everything from here on, the command included, lives in the new namespace; the daemon's
    // socket is a file and can be reached from there all the same.
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| match error {
        Errno::EPERM => anyhow::Error::from(Mistake(
            "a network namespace needs CAP_SYS_ADMIN; run meshctl run as root".into(),
        )),
        other => anyhow::anyhow!("cannot make a network namespace: {other}"),
    })?;
    Netns::current()?.links(async |links| links.set_up("lo").await)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_attached(common, run))
}

async fn run_attached(common: &Common, run: arguments::Run) -> Result<ExitCode> {
    let pid = std::process::id();
    let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let patience = run.workload.patience;
    let wanted = body(run.workload, netns, Some(pid), false)?;
    let client = Client::node(common).patient(patience.wait);
    let workload: LocalWorkload = client.post("/v1/workloads", &wanted).await?;
    if common.dry_run {
        let command: Vec<_> = run.command.iter().map(|word| word.to_string_lossy()).collect();
        let would = format!("run `{}` as {}", command.join(" "), in_words(&workload));
        tell(
            common,
            &Change { would, done: String::new(), effects: vec![], result: Some(&workload) },
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if workload.state == State::Waiting {
        note!(
            "meshctl: {} is attached, but nothing passes until the coordinator has admitted it",
            workload.id
        );
    }
    use_resolver(&client, &workload, &run.search).await;
    let own = Client::node(common);
    let ended = tokio::select! {
        ended = run_command(&run.command, &workload) => ended,
        never = runner::run_commands(own, &workload, environment(&workload)) => match never {},
    };
    client
        .delete(&format!("/v1/workloads/{}", workload.id))
        .await
        .context("the workload was not detached")?;
    match ended? {
        Ended::With(status) => {
            let code =
                status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
            Ok(ExitCode::from(code as u8))
        }
        Ended::NotBegun(error) => Ok(not_begun(&run.command, &error)),
    }
}

/// Has the command ask the node for names. Where that cannot be, it runs all the same.
async fn use_resolver(client: &Client, workload: &LocalWorkload, search: &[DomainName]) {
    let status: Result<LocalStatus> = client.get("/v1/status").await;
    let endpoints = status.map(|status| status.endpoints).unwrap_or_default();
    let own = endpoints.into_iter().find(|endpoint| endpoint.network == workload.network);
    let servers = own.map(|endpoint| endpoint.resolver).unwrap_or_default();
    let servers = servers_for(&workload.addresses, servers);
    if servers.is_empty() {
        return;
    }
    let resolver = Resolver { network: &workload.network, servers: &servers, search };
    if let Err(error) = resolver.mount() {
        note!("meshctl: the command has no names of the mesh: {error:#}");
    }
}

/// The end of a command.
enum Ended {
    With(ExitStatus),
    NotBegun(io::Error),
}

/// As shells have it (POSIX, Shell Command Language §2.8.2): 127 if there is no such command, 126
/// if it cannot be run.
fn not_begun(command: &[OsString], error: &io::Error) -> ExitCode {
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    note!("meshctl: cannot run {program}: {error}");
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

async fn run_command(command: &[OsString], workload: &LocalWorkload) -> Result<Ended> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    let spawned = Command::new(program).args(arguments).envs(environment(workload)).spawn();
    match spawned {
        Ok(mut child) => Ok(Ended::With(wait_forwarding(&mut child).await?)),
        Err(error) => Ok(Ended::NotBegun(error)),
    }
}

/// Returns the variables by which commands of a workload know it.
fn environment(workload: &LocalWorkload) -> Environment {
    [
        ("MESHWARD_WORKLOAD", workload.id.to_string()),
        ("MESHWARD_ADDRESSES", cell(&workload.addresses)),
    ]
}

/// Waits for the command, and passes signals on to it. A terminal sends its own to both of us.
async fn wait_forwarding(child: &mut Child) -> Result<ExitStatus> {
    let mut term = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let terminal = std::io::stdin().is_terminal();
    let pid = child.id().map(|pid| Pid::from_raw(pid as i32));
    loop {
        let forward = tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = term.recv() => Some(Signal::SIGTERM),
            _ = hangup.recv() => Some(Signal::SIGHUP),
            _ = interrupt.recv() => (!terminal).then_some(Signal::SIGINT),
        };
        if let (Some(signal), Some(pid)) = (forward, pid) {
            let _ = kill(pid, signal);
        }
    }
}

fn body(workload: Workload, netns: PathBuf, owner: Option<u32>, host: bool) -> Result<Attach> {
    let (mut labels, mut accepts) = (Labels::default(), workload.accept_from);
    for declared in workload.labels {
        match declared {
            Declared::Labels(more) => {
                labels = labels.with_all(&more).map_err(|error| Mistake(format!("{error}")))?;
            }
            Declared::AcceptFrom(accept) => accepts.push(accept),
        }
    }
    let (network, name) = (workload.network, workload.name);
    Ok(Attach { network, name, labels, accepts, netns, owner, host })
}

/// A workload in words.
fn in_words(workload: &LocalWorkload) -> String {
    let LocalWorkload { name, id, network, labels, addresses, .. } = workload;
    let called = if name.as_str() == id.as_str() {
        "a workload".to_owned()
    } else {
        format!("workload {name}")
    };
    format!("{called} of network {network} with {labels}, at {}", cell(addresses))
}

pub(crate) async fn attach(common: &Common, wanted: arguments::Attach) -> Result<()> {
    let netns = std::path::absolute(&wanted.netns)?;
    let patience = wanted.workload.patience;
    let wanted = body(wanted.workload, netns, wanted.owner, wanted.host)?;
    let client = Client::node(common).patient(patience.wait);
    let workload: LocalWorkload = client.post("/v1/workloads", &wanted).await?;
    let would = format!("attach {} as {}", wanted.netns.display(), in_words(&workload));
    let (id, addresses, state) =
        (&workload.id, cell(&workload.addresses), describe(&workload.state));
    let done = format!("{id} has {addresses} on {} and is {state}", workload.interface);
    tell(common, &Change { would, done, effects: vec![], result: Some(&workload) })
}

/// A workload of this machine.
async fn known(client: &Client, id: &WorkloadId) -> Result<LocalWorkload> {
    let all: Vec<LocalWorkload> = client.get("/v1/workloads").await?;
    let known = all.into_iter().find(|workload| workload.id == *id);
    known.ok_or_else(|| {
        Mistake(format!(
            "there is no workload `{id}` on this machine; `meshctl attached` shows them"
        ))
        .into()
    })
}

pub(crate) async fn detach(common: &Common, id: &WorkloadId) -> Result<()> {
    let client = Client::node(common);
    let before = if common.dry_run { Some(known(&client, id).await?) } else { None };
    client.delete(&format!("/v1/workloads/{id}")).await?;
    let what = before.as_ref().map(in_words).unwrap_or_default();
    let (would, done) = (format!("detach {id}, {what}"), format!("{id} is detached"));
    let result = before.as_ref().map(|workload| workload as &dyn crate::output::erased::Result);
    tell(common, &Change { would, done, effects: vec![], result })
}

pub(crate) async fn label(
    common: &Common,
    id: &WorkloadId,
    changes: Vec<LabelChange>,
) -> Result<()> {
    let client = Client::node(common);
    let path = format!("/v1/workloads/{id}");
    let mut tries = RELABELS;
    let workload: LocalWorkload = loop {
        let before = known(&client, id).await?.labels;
        let mut labels = before.clone();
        for change in &changes {
            labels = match change {
                LabelChange::Set(more) => {
                    labels.with_all(more).map_err(|error| Mistake(error.to_string()))?
                }
                LabelChange::Remove(key) => labels.without(key),
            };
        }
        tries -= 1;
        let wanted = Relabel { labels, instead_of: Some(before) };
        match client.try_patch(&path, &wanted).await {
            // Somebody else has labelled it meanwhile: ours go on top of theirs.
            Err(Error::Refused { status: Some(412), .. }) if tries > 0 => {}
            done => break done.map_err(told)?,
        }
    };
    let would = format!("label {id} {}", workload.labels);
    let done = format!("{id} is labelled {}", workload.labels);
    tell(common, &Change { would, done, effects: vec![], result: Some(&workload) })
}

pub(crate) async fn list(common: &Common, Labelled { selector, watching }: Labelled) -> Result<()> {
    let client = Client::node(common);
    let read = async || {
        let mut all: Vec<LocalWorkload> = client.get("/v1/workloads").await?;
        all.retain(|workload| selector.as_ref().is_none_or(|own| own.matches(&workload.labels)));
        Ok(all)
    };
    listing::list(watching, read, |all| print(common, all, selector.is_some())).await
}

fn print(common: &Common, all: &[LocalWorkload], narrowed: bool) -> Result<()> {
    let row = |workload: &LocalWorkload| {
        [
            workload.id.to_string(),
            workload.name.to_string(),
            workload.network.to_string(),
            cell(&workload.addresses),
            workload.labels.to_string(),
            workload.interface.clone(),
            describe(&workload.state),
        ]
    };
    let columns = ["ID", "NAME", "NETWORK", "ADDRESSES", "LABELS", "INTERFACE+", "STATE"];
    let none = listing::none(narrowed, "workloads", "no workloads on this machine");
    show(common, all, columns, row, &none)
}

fn describe(state: &State) -> String {
    match state {
        State::Open => good("open"),
        State::Vouched => good("open (the coordinator is away)"),
        State::Unmeasured => bad("waiting to be measured"),
        State::Waiting => bad("waiting for the coordinator"),
        State::Quarantined => bad("quarantined"),
        State::Refused(reason) => bad(format!("refused: {reason}")),
    }
}
