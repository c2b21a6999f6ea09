//! Workloads of this machine: running a command on the mesh, attaching a namespace.

use crate::{
    Mistake,
    arguments::{self, Common, Declared, LabelChange, Workload},
    client::Client,
    output::{bad, good, list as cell, show, whole},
};
use anyhow::{Context, Result};
use meshward_model::{
    Labels, WorkloadId,
    local::{Attach, LocalWorkload, Relabel, State},
};
use meshward_netns::Netns;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::IsTerminal,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

/// Runs a command in a namespace of its own. Its exit code is ours.
pub fn run(common: &Common, run: arguments::Run) -> Result<ExitCode> {
    // Everything from here on, the command included, lives in the new namespace; the daemon's socket is a file and can
    // be reached from there all the same.
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
    let client = Client::node(common);
    let pid = std::process::id();
    let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let workload: LocalWorkload =
        client.post("/v1/workloads", &body(run.workload, netns, Some(pid))?).await?;
    if workload.state == State::Waiting {
        eprintln!(
            "meshctl: {} is attached, but nothing passes until the coordinator has admitted it",
            workload.id
        );
    }
    let ended = run_command(&run.command, &workload).await;
    client
        .delete(&format!("/v1/workloads/{}", workload.id))
        .await
        .context("the workload was not detached")?;
    let status = ended?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(code as u8))
}

async fn run_command(command: &[std::ffi::OsString], workload: &LocalWorkload) -> Result<ExitStatus> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("MESHWARD_WORKLOAD", workload.id.as_str())
        .env("MESHWARD_ADDRESSES", cell(&workload.addresses))
        .spawn()
        .map_err(|error| Mistake(format!("cannot run {}: {error}", program.to_string_lossy())))?;
    wait_forwarding(&mut child).await
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

fn body(workload: Workload, netns: PathBuf, owner: Option<u32>) -> Result<Attach> {
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
    Ok(Attach { network, name, labels, accepts, netns, owner })
}

pub async fn attach(common: &Common, wanted: arguments::Attach) -> Result<()> {
    let netns = std::path::absolute(&wanted.netns)?;
    let workload: LocalWorkload =
        Client::node(common).post("/v1/workloads", &body(wanted.workload, netns, wanted.owner)?).await?;
    if !whole(common, &workload)? {
        let (id, addresses) = (&workload.id, cell(&workload.addresses));
        anstream::println!(
            "{id} has {addresses} on {} and is {}",
            workload.interface,
            describe(&workload.state)
        );
    }
    Ok(())
}

pub async fn detach(common: &Common, id: &WorkloadId) -> Result<()> {
    Client::node(common).delete(&format!("/v1/workloads/{id}")).await?;
    anstream::println!("{id} is detached");
    Ok(())
}

pub async fn label(common: &Common, id: &WorkloadId, changes: Vec<LabelChange>) -> Result<()> {
    let client = Client::node(common);
    let all: Vec<LocalWorkload> = client.get("/v1/workloads").await?;
    let known = all.into_iter().find(|workload| workload.id == *id);
    let known = known.ok_or_else(|| {
        Mistake(format!("there is no workload `{id}` on this machine; `meshctl attached` shows them"))
    })?;
    let mut labels = known.labels;
    for change in changes {
        labels = match change {
            LabelChange::Set(more) => labels.with_all(&more).map_err(|error| Mistake(error.to_string()))?,
            LabelChange::Remove(key) => labels.without(&key),
        };
    }
    let path = format!("/v1/workloads/{id}");
    let workload: LocalWorkload = client.patch(&path, &Relabel { labels }).await?;
    if !whole(common, &workload)? {
        anstream::println!("{id} is labelled {}", workload.labels);
    }
    Ok(())
}

pub async fn list(common: &Common) -> Result<()> {
    let all: Vec<LocalWorkload> = Client::node(common).get("/v1/workloads").await?;
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
    let columns = ["ID", "NAME", "NETWORK", "ADDRESSES", "LABELS", "INTERFACE", "STATE"];
    show(common, &all, columns, row, "no workloads on this machine")
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
