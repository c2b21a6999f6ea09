//! Completion in shells, of live names, too: a shell calls `meshctl` itself for what could come
//! next.

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::{CompleteEnv, Shell, engine::CompletionCandidate, env::Shells};
use meshward_api_client::{Client, Error, context};
use meshward_api_types::{
    Page,
    local::{DEFAULT_SOCKET, LocalWorkload},
    operations::{self, List},
};
use serde::de::DeserializeOwned;
use std::{path::PathBuf, time::Duration};

/// The variable by which a shell says that it asks for completions.
pub(crate) const VARIABLE: &str = "MESHCTL_COMPLETE";
/// The limit of the wait for names: a user has pressed a key and waits.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The most names that are offered.
const MOST: usize = 500;

/// Answers a shell about the command line `command`, if one asks; then the process ends here.
pub(crate) fn answer(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).bin("meshctl").complete();
}

/// Returns the script that a shell has to evaluate.
///
/// # Errors
/// Fails if the shell is not known.
pub(crate) fn script(shell: Shell) -> Result<String> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let own =
        shells.completer(&name).with_context(|| format!("there is no completion for {name}"))?;
    let mut script = Vec::new();
    own.write_registration(VARIABLE, "meshctl", "meshctl", "meshctl", &mut script)?;
    Ok(String::from_utf8(script)?)
}

type Candidates = Vec<CompletionCandidate>;

/// A name that a shell offers.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    name: String,
    /// The text beside it; empty for none.
    help: String,
}

impl Named {
    fn new(name: String, help: impl Into<String>) -> Self {
        Self { name, help: help.into() }
    }
}

fn candidates(names: impl IntoIterator<Item = Named>) -> Candidates {
    let mut all: Vec<Named> = names.into_iter().collect();
    all.sort();
    all.dedup_by(|a, b| a.name == b.name);
    let candidate = |Named { name, help }| {
        let help = (!help.is_empty()).then(|| help.into());
        CompletionCandidate::new(name).help(help)
    };
    all.into_iter().take(MOST).map(candidate).collect()
}

/// Returns the value of an option on the command line to complete.
fn option(name: &str) -> Option<String> {
    let mut words = std::env::args().skip_while(|word| word != "--").skip(1);
    let inline = format!("{name}=");
    while let Some(word) = words.next() {
        if word == name {
            return words.next();
        }
        if let Some(value) = word.strip_prefix(&inline) {
            return Some(value.to_owned());
        }
    }
    None
}

/// Returns the result if it comes within [`PATIENCE`]; otherwise, or on an error, nothing.
fn wait<T: Default>(found: impl Future<Output = Result<T, Error>>) -> T {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return T::default();
    };
    let found = runtime.block_on(async { tokio::time::timeout(PATIENCE, found).await });
    runtime.shutdown_background();
    found.ok().and_then(Result::ok).unwrap_or_default()
}

fn list<T: DeserializeOwned>(what: &List<Page<T>>, named: impl Fn(T) -> Vec<Named>) -> Candidates {
    let given = option("--context").or_else(|| std::env::var("MESHCTL_CONTEXT").ok());
    let Ok(Some(context)) = context::find(given.as_deref()) else { return vec![] };
    let items = wait(async { Client::coordinator(context).entries(what, &[]).await });
    candidates(items.into_iter().flat_map(named))
}

pub(crate) fn nodes() -> Candidates {
    let help = |node: meshward_api_types::Node| {
        node.site.map_or(String::new(), |site| format!("site {site}"))
    };
    list(&operations::NODES, |node| vec![Named::new(node.name.to_string(), help(node))])
}

pub(crate) fn networks() -> Candidates {
    list(&operations::NETWORKS, |network| vec![Named::new(network.name.to_string(), "")])
}

pub(crate) fn relays() -> Candidates {
    list(&operations::RELAYS, |relay| vec![Named::new(relay.name.to_string(), "")])
}

pub(crate) fn credentials() -> Candidates {
    let role = |credential: &meshward_api_types::Credential| {
        format!("{:?}", credential.role).to_lowercase()
    };
    list(&operations::CREDENTIALS, |credential| {
        vec![Named::new(credential.name.clone(), role(&credential))]
    })
}

pub(crate) fn tokens() -> Candidates {
    list(&operations::TOKENS, |token| {
        vec![Named::new(token.id, format!("valid until {}", token.expires))]
    })
}

pub(crate) fn devices() -> Candidates {
    list(&operations::DEVICES, |device| {
        vec![Named::new(device.name.to_string(), device.network.to_string())]
    })
}

pub(crate) fn services() -> Candidates {
    list(&operations::SERVICES, |service| {
        vec![Named::new(service.name.to_string(), service.network.to_string())]
    })
}

/// Workloads by their ids.
pub(crate) fn workload_ids() -> Candidates {
    list(&operations::WORKLOADS, |workload| {
        let help = format!("{} on {}", workload.name, workload.node);
        vec![Named::new(workload.id.to_string(), help)]
    })
}

/// Workloads by their names and ids.
pub(crate) fn workloads() -> Candidates {
    list(&operations::WORKLOADS, |workload| {
        let help = format!("{} on {}", workload.labels, workload.node);
        vec![
            Named::new(workload.id.to_string(), help.clone()),
            Named::new(workload.name.to_string(), help),
        ]
    })
}

/// Completes selectors of workloads: their labels, one by one, and their ids.
pub(crate) fn selected() -> Candidates {
    list(&operations::WORKLOADS, |workload| {
        let labels = workload.labels.to_string();
        let labels = labels.split(',').filter(|label| !label.is_empty());
        let mut all: Vec<Named> =
            labels.map(|label| Named::new(label.to_owned(), "label")).collect();
        all.push(Named::new(
            workload.id.to_string(),
            format!("{} on {}", workload.name, workload.node),
        ));
        all
    })
}

/// Nodes and workloads.
pub(crate) fn targets() -> Candidates {
    nodes().into_iter().chain(workloads()).collect()
}

/// The workloads of this machine.
pub(crate) fn attached() -> Candidates {
    let given = option("--socket").or_else(|| std::env::var("MESHCTL_SOCKET").ok());
    let socket = PathBuf::from(given.unwrap_or_else(|| DEFAULT_SOCKET.to_owned()));
    let found: Vec<LocalWorkload> =
        wait(async { Client::node(&socket).get("/v1/workloads").await });
    let named =
        |workload: LocalWorkload| Named::new(workload.id.to_string(), workload.name.to_string());
    candidates(found.into_iter().map(named))
}

pub(crate) fn contexts() -> Candidates {
    let names = context::names().unwrap_or_default();
    candidates(names.into_iter().map(|name| Named::new(name, "")))
}
