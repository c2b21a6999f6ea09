//! Contexts: which coordinators there are to talk to, and which of them is in use.

use crate::{
    Mistake,
    arguments::{Common, ContextVerb, ImportContext},
    client::told,
    out,
    output::{Change, good, list as cell, show, tell, whole},
};
use anyhow::{Context as _, Result};
use meshward_api_client::context::{Context, Contexts, default_paths};
use serde::Serialize;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// The longest standard input that is read as a context, in bytes.
const MAX_INPUT: u64 = 1 << 20;

/// A context without its secret.
#[derive(Serialize)]
struct Shown {
    name: String,
    in_use: bool,
    servers: Vec<String>,
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

pub(crate) fn context(common: &Common, verb: Option<ContextVerb>) -> Result<()> {
    match verb.unwrap_or(ContextVerb::List) {
        ContextVerb::List => list(common),
        ContextVerb::Show { name } => print(common, name.as_deref()),
        ContextVerb::Use { name } => change(common, |all| {
            known(all, &name)?;
            all.current = Some(name.clone());
            Ok(ContextChange {
                would: format!("use context {name}"),
                done: format!("context {name} is in use"),
            })
        }),
        ContextVerb::Rename { name, new } => change(common, |all| {
            check_name(&new)?;
            known(all, &name)?;
            if all.contexts.contains_key(&new) {
                return Err(Mistake(format!("there is a context `{new}` already")).into());
            }
            let context = all.contexts.remove(&name).context("it is known")?;
            all.contexts.insert(new.clone(), context);
            if all.current.as_ref() == Some(&name) {
                all.current = Some(new.clone());
            }
            Ok(ContextChange {
                would: format!("rename context {name} to {new}"),
                done: format!("context {name} is renamed to {new}"),
            })
        }),
        ContextVerb::Delete { name } => change(common, |all| {
            known(all, &name)?;
            all.contexts.remove(&name);
            if all.current.as_ref() == Some(&name) {
                all.current = None;
            }
            Ok(ContextChange {
                would: format!("delete context {name}"),
                done: format!(
                    "context {name} is deleted here; its credential stays valid until it is \
                     revoked: meshctl credential revoke"
                ),
            })
        }),
        ContextVerb::Import(wanted) => import(common, wanted),
    }
}

/// The file of this user's contexts.
fn own_file() -> PathBuf {
    let [own, ..] = default_paths();
    own
}

/// A change of this user's contexts, as it is told.
struct ContextChange {
    /// With `--dry-run`, after "would".
    would: String,
    /// Once it is made.
    done: String,
}

/// Changes this user's contexts, unless it is a dry run.
fn change(
    common: &Common,
    change: impl FnOnce(&mut Contexts) -> Result<ContextChange>,
) -> Result<()> {
    let file = own_file();
    let mut all = Contexts::read(&file).map_err(told)?.unwrap_or_default();
    let ContextChange { would, done } = change(&mut all)?;
    if !common.dry_run {
        all.write(&file).map_err(told)?;
    }
    tell(common, &Change { would, done, effects: vec![], result: None })
}

fn known<'a>(all: &'a Contexts, name: &str) -> Result<&'a Context> {
    let names: Vec<&str> = all.contexts.keys().map(String::as_str).collect();
    let there = if names.is_empty() {
        "there is none".into()
    } else {
        format!("there are {}", names.join(", "))
    };
    let found = all.contexts.get(name);
    found.ok_or_else(|| {
        Mistake(format!("there is no context `{name}` in {} ({there})", own_file().display()))
            .into()
    })
}

fn check_name(name: &str) -> Result<()> {
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte));
    if fits
        && !name.starts_with(['-', '.'])
        && Path::new(name).extension().is_none_or(|extension| extension != "json")
    {
        Ok(())
    } else {
        Err(Mistake(format!(
        "`{name}` is no name for a context: use 1 to 63 letters, digits and -_.@:, and no .json at \
         the end"
    ))
    .into())
    }
}

/// Reads a file of contexts, or standard input for `-`.
fn read_file(file: &Path) -> Result<Contexts> {
    if file == Path::new("-") {
        let mut text = Vec::new();
        let mut input = std::io::stdin().take(MAX_INPUT);
        input.read_to_end(&mut text).context("cannot read standard input")?;
        return Contexts::parse(&text, "standard input").map_err(told);
    }
    let read = Contexts::read(file).map_err(told)?;
    read.ok_or_else(|| Mistake(format!("there is no file {}", file.display())).into())
}

fn import(common: &Common, wanted: ImportContext) -> Result<()> {
    let ImportContext { file, name, servers, replace, in_use } = wanted;
    let read = read_file(&file)?;
    let (_, context) = read.in_use().ok_or_else(|| {
        let from = if file == Path::new("-") {
            "standard input".into()
        } else {
            file.display().to_string()
        };
        Mistake(format!("{from} has several contexts, and says of none that it is in use"))
    })?;
    let context = context.clone().reached_by(&servers);
    let host = context.server.rsplit_once(':').map_or(context.server.as_str(), |(host, _)| host);
    let name = name.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
    check_name(&name)?;
    change(common, |all| {
        if all.contexts.get(&name).is_some_and(|there| *there != context) && !replace {
            return Err(Mistake(format!(
                "there is another context `{name}` already; give --name, or --replace"
            ))
            .into());
        }
        let first = all.contexts.is_empty();
        let servers = cell(context.servers());
        all.contexts.insert(name.clone(), context);
        let used = first || in_use;
        if used {
            all.current = Some(name.clone());
        }
        Ok(ContextChange {
            would: format!("import context {name} ({servers})"),
            done: if used {
                format!("context {name} ({servers}) is imported and in use")
            } else {
                let next = "to use it: meshctl context use";
                format!("context {name} ({servers}) is imported; {next} {name}")
            },
        })
    })
}

/// All contexts that this user has: own ones, and the coordinator's on this machine.
fn all() -> Result<Vec<Shown>> {
    let mut shown = Vec::new();
    let mut used = false;
    for file in default_paths() {
        let own = file == own_file();
        // The coordinator's file is for root only, and no concern of others.
        let read = match Contexts::read(&file) {
            Err(_) if !own => None,
            read => read.map_err(told)?,
        };
        let Some(read) = read else { continue };
        let current = read.in_use().map(|(name, _)| name.to_owned());
        for (name, context) in read.contexts {
            let in_use = !used && current.as_ref() == Some(&name);
            used |= in_use;
            let servers = context.servers().map(ToOwned::to_owned).collect();
            let name = if own { name } else { "(coordinator)".into() };
            shown.push(Shown { name, in_use, servers, file: file.clone(), ca: Some(context.ca) });
        }
    }
    Ok(shown)
}

fn list(common: &Common) -> Result<()> {
    let mut all = all()?;
    for shown in &mut all {
        shown.ca = None;
    }
    let row = |shown: &Shown| {
        let in_use = if shown.in_use { good("in use") } else { "-".into() };
        [shown.name.clone(), in_use, cell(&shown.servers), shown.file.display().to_string()]
    };
    let none = "no contexts; to import one: meshctl context import admin.json";
    show(common, &all, ["NAME", "STATE", "SERVERS", "FILE+"], row, none)
}

fn print(common: &Common, name: Option<&str>) -> Result<()> {
    let all = all()?;
    let is = |shown: &&Shown| match name {
        Some(name) => shown.name == name,
        None => shown.in_use,
    };
    let found = all.iter().find(is).ok_or_else(|| match name {
        Some(name) => {
            Mistake(format!("there is no context `{name}`; `meshctl context list` shows them"))
        }
        None => Mistake("no context is in use; `meshctl context list` shows them".into()),
    })?;
    if whole(common, found)? {
        return Ok(());
    }
    out!("context {}{}", found.name, if found.in_use { ", in use" } else { "" });
    found.servers.iter().for_each(|server| out!("  server  {server}"));
    out!("  file    {}", found.file.display());
    Ok(())
}
