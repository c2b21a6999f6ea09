//! A call: environment variables, and a configuration on stdin.

use crate::{
    NEWEST, VERSIONS,
    error::{Code, Error},
    result::Dns,
};
use meshward_api_types::local::{ContainerKey, DEFAULT_SOCKET, Declared, Kubernetes, Pod};
use meshward_types::{AcceptFrom, Labels, NetworkName, WorkloadName, accept::LABEL as ACCEPT_FROM};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
};

/// The interface's name where another plugin has already made the one that the runtime asked for.
const CHAINED_INTERFACE: &str = "mesh0";
/// The most bytes of a configuration.
pub(crate) const MAX_CONFIG: usize = 4 << 20;

/// The environment variables of a call.
#[derive(Debug, Clone, Default)]
pub struct Environment(pub HashMap<String, String>);

impl Environment {
    fn get(&self, name: &'static str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn need(&self, name: &'static str) -> Result<&str, Error> {
        self.get(name).ok_or_else(|| {
            let details =
                format!("{name} is not set; a container runtime calls this program, people do not");
            Error::new(Code::InvalidEnvironment, "an environment variable is missing", details)
        })
    }
}

/// The operation of a call (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attaches a container.
    Add,
    /// Detaches a container; does nothing if it is not attached.
    Del,
    /// Checks that a container is still attached as it was.
    Check,
    /// Detaches the containers that the runtime no longer has.
    Gc,
    /// Checks that containers can be attached.
    Status,
    /// Lists the supported versions of the specification.
    Version,
}

/// A container's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The container's or pod's id.
    pub container: String,
    /// The interface's name in the runtime (`CNI_IFNAME`).
    pub interface: String,
    /// The interface's name in the namespace.
    pub named: String,
    /// The path of the network namespace; may be missing with DEL.
    pub netns: Option<PathBuf>,
}

/// A call that was read.
#[derive(Debug, Clone)]
pub struct Call {
    /// The operation.
    pub command: Command,
    /// The version of the specification to answer in.
    pub version: String,
    /// The configuration.
    pub config: Config,
    /// The container's interface; `None` for operations that concern no single container.
    pub attachment: Option<Attachment>,
}

/// The configuration, as far as it is ours.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network of the mesh.
    pub network: NetworkName,
    /// The node daemon's socket.
    pub socket: PathBuf,
    /// The socket of an API like Docker's that knows the containers, such as Podman's.
    pub engine: Option<PathBuf>,
    /// The Kubernetes pod, and the API that knows it.
    pub pod: Option<Pod>,
    /// The container's facts as the configuration and the runtime declare them.
    pub declared: Declared,
    /// The requested addresses.
    pub addresses: Vec<IpAddr>,
    /// The settings of DNS for the container.
    pub dns: Option<Dns>,
    /// The result of the plugins before this one.
    pub previous: Option<Value>,
    /// The interfaces that the runtime still has (GC).
    pub valid: Vec<ContainerKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default)]
    network: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    engine: Option<PathBuf>,
    #[serde(default)]
    interface: Option<String>,
    #[serde(default)]
    kubernetes: Option<Kubernetes>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    args: Option<RawArgs>,
    #[serde(default)]
    runtime_config: Option<RuntimeConfig>,
    #[serde(default)]
    dns: Option<Dns>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
    #[serde(default, rename = "cni.dev/attachments")]
    attachments: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
struct RawArgs {
    #[serde(default)]
    cni: Option<CniArgs>,
}

/// The conventions' `args.cni` (CONVENTIONS.md).
#[derive(Deserialize)]
struct CniArgs {
    #[serde(default)]
    labels: Vec<RawLabel>,
    #[serde(default)]
    ips: Vec<String>,
}

#[derive(Deserialize)]
struct RawLabel {
    key: String,
    value: String,
}

#[derive(Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default)]
    ips: Vec<String>,
    /// The annotations of the pod, as containerd and CRI-O give them to plugins that ask for them.
    #[serde(default, rename = "io.kubernetes.cri.pod-annotations")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

impl From<RawAttachment> for ContainerKey {
    fn from(RawAttachment { container, interface }: RawAttachment) -> Self {
        Self { container, interface }
    }
}

/// Reads a call. An error comes with the version in which it is to be told.
///
/// # Errors
/// [`Error`], with the specification's codes.
pub fn read(environment: &Environment, stdin: &[u8]) -> Result<Call, (String, Error)> {
    let newest = |error| (NEWEST.to_owned(), error);
    let command = command(environment).map_err(newest)?;
    if stdin.len() > MAX_CONFIG {
        let details = format!("{} bytes came on stdin; at most {MAX_CONFIG} are read", stdin.len());
        return Err(newest(Error::new(
            Code::Undecodable,
            "the configuration is too long",
            details,
        )));
    }
    // An object: a list would be taken for the fields in their order.
    let object: Result<Map<String, Value>, _> = serde_json::from_slice(stdin);
    let raw: Raw = object
        .and_then(|object| serde_json::from_value(Value::Object(object)))
        .map_err(|error| {
            newest(Error::new(
                Code::Undecodable,
                "the configuration cannot be read",
                error.to_string(),
            ))
        })?;
    // Without a version, the configuration is of the first one (specification 0.1.0).
    let version = raw.cni_version.clone().unwrap_or_else(|| "0.1.0".into());
    if command != Command::Version && !VERSIONS.contains(&version.as_str()) {
        let details = format!(
            "the configuration is of version {version}; spoken are {}",
            VERSIONS.join(", ")
        );
        return Err(newest(Error::new(
            Code::IncompatibleVersion,
            "incompatible CNI version",
            details,
        )));
    }
    call(command, version.clone(), raw, environment).map_err(|error| (version, error))
}

fn command(environment: &Environment) -> Result<Command, Error> {
    let text = environment.need("CNI_COMMAND")?;
    Ok(match text {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        "VERSION" => Command::Version,
        other => {
            let details = format!(
                "CNI_COMMAND is `{other}`; known are ADD, DEL, CHECK, GC, STATUS and VERSION"
            );
            return Err(Error::new(Code::InvalidEnvironment, "an unknown command", details));
        }
    })
}

fn call(
    command: Command,
    version: String,
    raw: Raw,
    environment: &Environment,
) -> Result<Call, Error> {
    let speaks_of_one = matches!(command, Command::Add | Command::Del | Command::Check);
    let attachment = speaks_of_one.then(|| attachment(command, &raw, environment)).transpose()?;
    if command == Command::Check && raw.prev_result.is_none() {
        let details = "CHECK needs `prevResult`, the result of ADD";
        return Err(Error::new(Code::InvalidConfig, "there is no previous result", details));
    }
    let config = config(command, raw, environment)?;
    Ok(Call { command, version, config, attachment })
}

fn attachment(command: Command, raw: &Raw, environment: &Environment) -> Result<Attachment, Error> {
    let invalid = |details: String| {
        Error::new(Code::InvalidEnvironment, "an environment variable is wrong", details)
    };
    let container = environment.need("CNI_CONTAINERID")?.to_owned();
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !container.bytes().all(inner)
        || !container.as_bytes()[0].is_ascii_alphanumeric()
        || container.len() > 256
    {
        return Err(invalid(format!(
            "CNI_CONTAINERID `{container}` must begin with a letter or digit, and have only these, \
            `_`, `.` and `-` after it"
        )));
    }
    let asked = environment.need("CNI_IFNAME")?;
    let chained = raw.prev_result.is_some() && command != Command::Check;
    let named = match &raw.interface {
        Some(own) => own.clone(),
        None if chained && has_interface(raw.prev_result.as_ref(), asked) => {
            CHAINED_INTERFACE.to_owned()
        }
        None => asked.to_owned(),
    };
    for name in [asked, &named] {
        if !names_interface(name) {
            return Err(invalid(format!(
                "`{name}` cannot name an interface: use at most 15 characters without `/`, `:` and \
                blanks"
            )));
        }
    }
    let netns = match command {
        Command::Del => environment.get("CNI_NETNS").map(PathBuf::from),
        _ => Some(PathBuf::from(environment.need("CNI_NETNS")?)),
    };
    Ok(Attachment { container, interface: asked.to_owned(), named, netns })
}

/// Returns `true` if the kernel accepts the name (`dev_valid_name` of net/core/dev.c).
fn names_interface(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    !name.is_empty() && name.len() <= 15 && !name.contains(bad) && ![".", ".."].contains(&name)
}

fn has_interface(result: Option<&Value>, name: &str) -> bool {
    let interfaces = result.and_then(|result| result.get("interfaces")?.as_array());
    interfaces.is_some_and(|all| all.iter().any(|interface| interface["name"] == name))
}

fn wrong_config(details: String) -> Error {
    Error::new(Code::InvalidConfig, "the network configuration is wrong", details)
}

fn config(command: Command, raw: Raw, environment: &Environment) -> Result<Config, Error> {
    let network = network(command, &raw.network.or(raw.name).unwrap_or_default())?;
    let runtime = raw.runtime_config.unwrap_or_default();
    let (mut labels, mut addresses) = (raw.labels, runtime.ips);
    if let Some(cni) = raw.args.and_then(|args| args.cni) {
        labels.extend(cni.labels.into_iter().map(|label| (label.key, label.value)));
        addresses.extend(cni.ips);
    }
    let arguments = arguments(environment.get("CNI_ARGS").unwrap_or_default())?;
    addresses.extend(arguments.get("IP").map(|ip| (*ip).to_owned()));
    let addresses = parse_addresses(&addresses)?;
    let named = NamedPod::of(&arguments);
    if let Some(namespace) = named.namespace {
        labels.entry("io.kubernetes.pod.namespace".into()).or_insert_with(|| namespace.to_owned());
    }
    let pod = match raw.kubernetes {
        Some(api) => pod(command, api, &named)?,
        None => None,
    };
    let declared = declared(&labels, named.name, &runtime.annotations).map_err(wrong_config)?;
    let valid = raw.valid_attachments.or(raw.attachments).unwrap_or_default();
    Ok(Config {
        network,
        socket: raw.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
        engine: raw.engine,
        pod,
        declared,
        addresses,
        dns: raw.dns,
        previous: raw.prev_result,
        valid: valid.into_iter().map(ContainerKey::from).collect(),
    })
}

fn network(command: Command, name: &str) -> Result<NetworkName, Error> {
    let network = match command {
        // VERSION does not use it.
        Command::Version => name.parse().or_else(|_| "none".parse()),
        _ => name.parse(),
    };
    network.map_err(|error| {
        wrong_config(format!("`network` (or else `name`) names the network of the mesh: {error}"))
    })
}

/// Parses addresses, each once. A prefix length is ignored: a workload's address stands alone.
fn parse_addresses(texts: &[String]) -> Result<Vec<IpAddr>, Error> {
    let mut addresses = Vec::new();
    for text in texts {
        let bare = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
        let address = bare.parse().map_err(|_| wrong_config(format!("`{text}` is no address")))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// The pod that `CNI_ARGS` names, as far as it does.
struct NamedPod<'a> {
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    uid: Option<&'a str>,
}

impl<'a> NamedPod<'a> {
    fn of(arguments: &HashMap<&str, &'a str>) -> Self {
        let get = |key| arguments.get(key).copied().filter(|value: &&str| !value.is_empty());
        Self {
            namespace: get("K8S_POD_NAMESPACE"),
            name: get("K8S_POD_NAME"),
            uid: get("K8S_POD_UID"),
        }
    }
}

/// Returns the pod to ask `api` about. Only ADD asks, so only ADD has to name one.
fn pod(command: Command, api: Kubernetes, named: &NamedPod<'_>) -> Result<Option<Pod>, Error> {
    match (named.namespace, named.name) {
        (Some(namespace), Some(name)) => Ok(Some(Pod {
            api,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: named.uid.map(ToOwned::to_owned),
        })),
        _ if command == Command::Add => {
            let details = "`kubernetes` is configured, but CNI_ARGS names no pod: \
                K8S_POD_NAMESPACE and K8S_POD_NAME";
            Err(Error::new(Code::InvalidEnvironment, "the pod is not named", details))
        }
        _ => Ok(None),
    }
}

fn declared(
    labels: &BTreeMap<String, String>,
    name: Option<&str>,
    annotations: &BTreeMap<String, String>,
) -> Result<Declared, String> {
    let texts: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels =
        Labels::parse_each(texts.iter().map(String::as_str)).map_err(|error| error.to_string())?;
    labels.check_unreserved().map_err(|error| error.to_string())?;
    let accepts = annotations.get(ACCEPT_FROM).map(|text| AcceptFrom::parse_all(text)).transpose();
    let accepts =
        accepts.map_err(|error| format!("annotation {ACCEPT_FROM}: {error}"))?.unwrap_or_default();
    Ok(Declared { name: name.and_then(WorkloadName::like), labels, accepts })
}

/// `CNI_ARGS`: `KEY=VALUE` pairs, separated by semicolons.
fn arguments(text: &str) -> Result<HashMap<&str, &str>, Error> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    let read = pairs.map(|pair| {
        pair.split_once('=').ok_or_else(|| {
            let details = format!("CNI_ARGS has `{pair}`, which is not of the form KEY=VALUE");
            Error::new(Code::InvalidEnvironment, "an environment variable is wrong", details)
        })
    });
    read.collect()
}

#[cfg(test)]
mod tests;
