//! `meshward-cni`: puts containers of Kubernetes, CRI-O, Nomad and Podman on the mesh. The node
//! daemon does the work.

use meshward_api_client::{Client, Error as ClientError};
use meshward_api_types::local::{
    AddContainer, AddedContainer, AttachedContainer, ContainerKey, LocalStatus,
};
use meshward_cni::{
    Added, Attachment, Call, Code, Command, Environment, Error, added, read, versions,
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    process::ExitCode,
    time::Duration,
};

/// The wait for a node daemon that is still starting.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let environment = Environment(std::env::vars_os().filter_map(text).collect());
    let mut stdin = Vec::new();
    let read_in = std::io::stdin().lock().take(8 << 20).read_to_end(&mut stdin);
    let (version, done) = match read_in {
        Err(error) => {
            let error = Error::new(Code::Io, "stdin cannot be read", error.to_string());
            (meshward_cni::NEWEST.to_owned(), Err(error))
        }
        Ok(_) => match read(&environment, &stdin) {
            Err((version, error)) => (version, Err(error)),
            Ok(call) => (call.version.clone(), carry_out(call)),
        },
    };
    let (text, code) = match done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version).to_string(), ExitCode::FAILURE),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    code
}

fn text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

fn carry_out(call: Call) -> Result<Option<Value>, Error> {
    if call.command == Command::Version {
        return Ok(Some(versions()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Error::new(Code::Io, "cannot begin", error.to_string()))?;
    runtime.block_on(async {
        // After a boot, the daemon may begin a moment after the runtime.
        let patience = if call.command == Command::Add { PATIENCE } else { Duration::ZERO };
        let client = Client::node(&call.config.socket).patient(patience);
        match (call.command, call.attachment.clone()) {
            (Command::Add, Some(attachment)) => add(&client, call, attachment).await.map(Some),
            (Command::Del, Some(attachment)) => del(&client, &attachment).await.map(|()| None),
            (Command::Check, Some(attachment)) => check(&client, &attachment).await.map(|()| None),
            (Command::Gc, _) => collect(&client, &call).await.map(|()| None),
            (Command::Status, _) => status(&client, &call).await.map(|()| None),
            // Each command that speaks of a container was read with one.
            (Command::Add | Command::Del | Command::Check | Command::Version, _) => Ok(None),
        }
    })
}

async fn add(client: &Client, call: Call, attachment: Attachment) -> Result<Value, Error> {
    let Attachment { container, interface, named, netns } = attachment;
    let netns = netns.unwrap_or_default();
    let wanted = AddContainer {
        network: call.config.network,
        container,
        interface,
        named: named.clone(),
        netns: netns.clone(),
        addresses: call.config.addresses,
        engine: call.config.engine,
        pod: call.config.pod,
        declared: call.config.declared,
    };
    let container: AddedContainer = client.post("/v1/containers", &wanted).await.map_err(told)?;
    let made = Added {
        interface: named,
        sandbox: netns.to_string_lossy().into_owned(),
        mtu: container.mtu,
        addresses: container.addresses,
        prefixes: container.prefixes,
        resolver: container.resolver,
        dns: call.config.dns,
    };
    Ok(added(&call.version, &made, call.config.previous.as_ref()))
}

fn path(container: &str, interface: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let encode =
        |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let interface: String = interface.bytes().map(encode).collect();
    format!("/v1/containers/{container}/{interface}")
}

async fn del(client: &Client, attachment: &Attachment) -> Result<(), Error> {
    match client.delete(&path(&attachment.container, &attachment.interface)).await {
        Ok(()) | Err(ClientError::Refused { status: Some(404), .. }) => Ok(()),
        // The daemon detaches a workload whose namespace is gone by itself, once it is back.
        Err(ClientError::Unreachable(_))
            if attachment.netns.as_ref().is_none_or(|netns| !netns.exists()) =>
        {
            Ok(())
        }
        Err(error) => Err(told(error)),
    }
}

async fn check(client: &Client, attachment: &Attachment) -> Result<(), Error> {
    let found: AttachedContainer =
        client.get(&path(&attachment.container, &attachment.interface)).await.map_err(told)?;
    if !found.is_there {
        let details =
            format!("the interface {} is not in the container any more", attachment.named);
        return Err(Error::new(Code::UnknownContainer, "the interface is gone", details));
    }
    Ok(())
}

async fn collect(client: &Client, call: &Call) -> Result<(), Error> {
    let all: Vec<ContainerKey> = client
        .get(&format!("/v1/containers?network={}", call.config.network))
        .await
        .map_err(told)?;
    for gone in all.into_iter().filter(|own| !call.config.valid.contains(own)) {
        match client.delete(&path(&gone.container, &gone.interface)).await {
            Ok(()) | Err(ClientError::Refused { status: Some(404), .. }) => {}
            Err(error) => return Err(told(error)),
        }
    }
    Ok(())
}

async fn status(client: &Client, call: &Call) -> Result<(), Error> {
    let unavailable =
        |details: String| Error::new(Code::NotAvailable, "the plugin is not available", details);
    let status: LocalStatus =
        client.get("/v1/status").await.map_err(|error| unavailable(error.to_string()))?;
    let network = &call.config.network;
    match status.endpoints.iter().any(|endpoint| endpoint.network == *network) {
        true => Ok(()),
        false => Err(unavailable(format!("this node does not serve network `{network}`"))),
    }
}

fn told(error: ClientError) -> Error {
    match error {
        ClientError::Refused { status: Some(404), text, .. } => {
            Error::new(Code::UnknownContainer, "it is not there", text)
        }
        ClientError::Refused { text, .. } => {
            Error::new(Code::Refused, "the node daemon refuses", text)
        }
        ClientError::Unreachable(text) => {
            Error::new(Code::TryAgain, "the node daemon does not answer", text)
        }
        ClientError::Failed(text) => Error::new(Code::Io, "the node daemon failed", text),
    }
}
