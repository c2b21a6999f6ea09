//! `meshctl debug bundle`: what whoever helps has to see, in one file, without secrets.

mod redact;

use crate::{
    Mistake,
    arguments::{Common, DebugVerb},
    client::{self, Client},
    note,
    output::{Change, Effect, tell},
};
use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use meshward_api_types::operations;
use redact::Secrets;
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The most bytes of a log, counted from its end.
const MOST_LOG: u64 = 4 << 20;
/// The limit of a system program whose output is collected.
const PATIENCE: Duration = Duration::from_secs(10);
/// The units whose logs are taken, if systemd keeps them.
const UNITS: [&str; 3] = ["meshward-node", "meshward-coordinator", "meshward-relay"];

/// The content of a bundle.
struct Bundle {
    parts: Vec<(String, Vec<u8>)>,
    /// The parts that could not be had, and why.
    missing: Vec<String>,
    secrets: Secrets,
}

/// # Errors
/// Fails if the file cannot be written.
pub(crate) async fn debug(common: &Common, verb: DebugVerb) -> Result<()> {
    let DebugVerb::Bundle { file, logs } = verb;
    let mut bundle = Bundle { parts: vec![], missing: vec![], secrets: Secrets::of(common) };
    bundle.add_mesh(common).await;
    bundle.add_node(common).await;
    bundle.add_machine().await;
    for log in &logs {
        bundle.add_log(log)?;
    }
    let versions =
        format!("meshctl {}\n{}\n", env!("CARGO_PKG_VERSION"), bundle.missing.join("\n"));
    bundle.add("README.txt", versions.as_bytes());
    if !common.dry_run {
        write(&file, &bundle.parts).map_err(|error| {
            Mistake(format!(
                "{} cannot be written: {error}; it must not be there yet",
                file.display()
            ))
        })?;
    }
    let effect = |(name, bytes): &(String, Vec<u8>)| Effect {
        action: "write",
        kind: "part",
        name: name.clone(),
        detail: crate::output::bytes(bytes.len() as u64),
    };
    let (parts, path) = (bundle.parts.len(), file.display());
    let would = format!("write {parts} parts into {path}");
    let done = format!(
        "{parts} parts are in {path}; tokens and private keys were left out, names and addresses \
         are in it"
    );
    if common.is_table() {
        bundle.missing.iter().for_each(|missing| note!("left out: {missing}"));
    }
    tell(
        common,
        &Change { would, done, effects: bundle.parts.iter().map(effect).collect(), result: None },
    )
}

impl Bundle {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.parts.push((name.to_owned(), self.secrets.redact(&text).into_bytes()));
    }

    fn add_json(&mut self, name: &str, found: Result<impl Serialize>) {
        let text = found.and_then(|value| Ok(serde_json::to_vec_pretty(&value)?));
        match text {
            Ok(text) => self.add(&format!("{name}.json"), &text),
            Err(error) => self.missing.push(format!("{name}: {error:#}")),
        }
    }

    async fn add_mesh(&mut self, common: &Common) {
        let client = match Client::coordinator(common) {
            Ok(client) => client,
            Err(error) => return self.missing.push(format!("the mesh: {error:#}")),
        };
        let status = client.read(&operations::STATUS, &[], &[]).await;
        let reached = status.is_ok();
        self.add_json("mesh/status", status);
        if !reached {
            return;
        }
        self.add_json("mesh/networks", client.all(&operations::NETWORKS, &[]).await);
        self.add_json("mesh/nodes", client.all(&operations::NODES, &[]).await);
        self.add_json("mesh/workloads", client.all(&operations::WORKLOADS, &[]).await);
        self.add_json("mesh/relays", client.all(&operations::RELAYS, &[]).await);
        self.add_json("mesh/routes", client.all(&operations::ROUTES, &[]).await);
        self.add_json("mesh/devices", client.all(&operations::DEVICES, &[]).await);
        self.add_json("mesh/quarantines", client.all(&operations::QUARANTINES, &[]).await);
        self.add_json("mesh/policies", client.all(&operations::POLICIES, &[]).await);
        let newest = [("limit", "1000".to_owned())];
        let audit = client.page(&operations::AUDIT, &[], &newest).await;
        self.add_json("mesh/audit", audit.map(|page| page.items));
    }

    async fn add_node(&mut self, common: &Common) {
        let local = Client::node(common);
        let status = local.get::<serde_json::Value>("/v1/status").await;
        let runs = status.is_ok();
        self.add_json("node/status", status);
        if !runs {
            return;
        }
        self.add_json("node/workloads", local.get::<serde_json::Value>("/v1/workloads").await);
        self.add_json("node/netcheck", local.get::<serde_json::Value>("/v1/netcheck").await);
        match local.text("/metrics").await {
            Ok(text) => self.add("node/metrics.txt", text.as_bytes()),
            Err(error) => self.missing.push(format!("node/metrics: {error:#}")),
        }
    }

    async fn add_machine(&mut self) {
        let commands: [(&str, &[&str]); 6] = [
            ("uname", &["uname", "-a"]),
            ("addresses", &["ip", "-details", "address"]),
            ("routes", &["ip", "route", "show", "table", "all"]),
            ("rules", &["ip", "rule"]),
            ("sockets", &["ss", "-uanp"]),
            ("clock", &["timedatectl"]),
        ];
        for (name, command) in commands {
            self.add_output(&format!("machine/{name}.txt"), command).await;
        }
        for unit in UNITS {
            let command =
                ["journalctl", "--no-pager", "-o", "short-iso", "-n", "20000", "-u", unit];
            self.add_output(&format!("logs/{unit}.txt"), &command).await;
        }
        let file = std::fs::read("/etc/os-release").unwrap_or_default();
        self.add("machine/os-release.txt", &file);
    }

    async fn add_output(&mut self, name: &str, command: &[&str]) {
        let mut program = tokio::process::Command::new(command[0]);
        program.args(&command[1..]).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(PATIENCE, program.output()).await {
            Ok(Ok(output)) if output.status.success() && !output.stdout.is_empty() => {
                let from = output.stdout.len().saturating_sub(MOST_LOG as usize);
                self.add(name, &output.stdout[from..]);
            }
            Ok(Ok(_)) => {
                self.missing.push(format!("{name}: `{}` has nothing to say", command.join(" ")));
            }
            Ok(Err(error)) => self.missing.push(format!("{name}: `{}`: {error}", command[0])),
            Err(_) => self.missing.push(format!("{name}: `{}` does not end", command[0])),
        }
    }

    fn add_log(&mut self, path: &Path) -> Result<(), Mistake> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(MOST_LOG)))?;
            let mut text = Vec::new();
            file.take(MOST_LOG).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read()
            .map_err(|error| Mistake(format!("cannot read the log {}: {error}", path.display())))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.add(&format!("logs/{name}"), &text);
        Ok(())
    }
}

/// Writes the parts into a new file that is its owner's alone, as tar under gzip.
fn write(path: &Path, parts: &[(String, Vec<u8>)]) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("meshward-debug/{name}"), &bytes[..])?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush().context("the end")?;
    Ok(())
}

impl Secrets {
    /// Returns the secrets that this command knows itself.
    fn of(common: &Common) -> Self {
        Self::new(client::context(common).ok().map(|context| context.token))
    }
}
