//! Commands in the containers of pods, run by their runtime (containerd, CRI-O) over the API by
//! which the kubelet has its probes run:
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>.

use super::command_error::CommandError;
use crate::grpc::{
    Call, CallError, NOT_FOUND, call,
    protobuf::{Value, fields, put_bytes, put_listed, put_number},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;

/// The places of runtimes' sockets, where none is configured.
const USUAL: [&str; 3] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];
/// The largest answer about a pod, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// The most that a command may write, in bytes: its status comes after that.
const MAX_OUTPUT: usize = 64 << 10;
/// The annotation of a pod that names the container that is meant by default, as for `kubectl
/// exec`.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// The state of a container that runs (`CONTAINER_RUNNING`).
const RUNNING: u64 = 1;

/// The runtime's service of containers.
pub(super) struct Cri {
    /// The configured socket.
    socket: Option<PathBuf>,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Container {
    id: String,
    name: String,
}

impl Cri {
    pub(super) fn new(socket: Option<PathBuf>) -> Self {
        Self { socket }
    }

    /// Runs a command in the container of a pod, and returns its status. The runtime kills a
    /// command that has not ended within its time, or when this is dropped.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(super) async fn run(
        &self,
        pod: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<i64, CommandError> {
        let socket = self.socket()?;
        let container = container_of(&socket, pod).await?;
        let mut message = vec![];
        put_bytes(&mut message, 1, container.id.as_bytes());
        for word in command {
            put_listed(&mut message, 2, word.as_bytes());
        }
        put_number(&mut message, 3, timeout.as_millis().div_ceil(1000) as u64);
        let answer = ask(&socket, "ExecSync", message, MAX_OUTPUT).await;
        let answer = answer.map_err(|error| match error {
            AskError::Call(CallError::TooLong(_)) => CommandError::Failed(format!(
                "the command writes more than {MAX_OUTPUT} bytes; have it write to /dev/null"
            )),
            other => other.into(),
        })?;
        // Field 3 is the exit code, an `int32`; 0 if it is left out.
        let code = value(&answer, 3).map_or(0, Value::number);
        Ok(i64::from(code as i32))
    }

    fn socket(&self) -> Result<PathBuf, CommandError> {
        let usual = || USUAL.iter().map(PathBuf::from).find(|path| path.exists());
        self.socket.clone().or_else(usual).ok_or_else(|| {
            let text = "no runtime that can run a command in it: neither containerd nor CRI-O has \
                its socket where it usually is; set `cri_socket`, or use http, tcp or grpc";
            CommandError::Impossible(text.into())
        })
    }
}

/// Finds the container of a pod in which commands are run: the only one, or the one that the pod
/// names.
async fn container_of(socket: &Path, pod: &str) -> Result<Container, CommandError> {
    let mut state = vec![];
    put_number(&mut state, 1, RUNNING);
    let mut filter = vec![];
    put_bytes(&mut filter, 2, &state);
    put_bytes(&mut filter, 3, pod.as_bytes());
    let mut message = vec![];
    put_bytes(&mut message, 1, &filter);
    let listed = ask(socket, "ListContainers", message, MAX_ANSWER).await?;
    let mut all = containers(&listed);
    if all.len() == 1 {
        return Ok(all.remove(0));
    }
    let mut message = vec![];
    put_bytes(&mut message, 1, pod.as_bytes());
    let status = match ask(socket, "PodSandboxStatus", message, MAX_ANSWER).await {
        Err(AskError::Call(CallError::Status { code: NOT_FOUND, .. })) => {
            let text = format!(
                "it is no pod of the runtime at {}; set `cri_socket`, or use http, tcp or grpc",
                socket.display()
            );
            return Err(CommandError::Impossible(text));
        }
        other => other?,
    };
    choose(all, default_container(&status))
}

/// Chooses the container in which commands are run.
fn choose(all: Vec<Container>, default: Option<&str>) -> Result<Container, CommandError> {
    if all.is_empty() {
        return Err(CommandError::Failed("no container of its pod runs".into()));
    }
    let names: Vec<String> = all.iter().map(|container| container.name.clone()).collect();
    let named = |container: &Container| Some(container.name.as_str()) == default;
    all.into_iter().find(named).ok_or_else(|| {
        let text = format!(
            "its pod runs the containers {}: the annotation {DEFAULT_CONTAINER} of the pod has to \
             say in which of them",
            names.join(", ")
        );
        CommandError::Impossible(text)
    })
}

/// Reads a `ListContainersResponse`.
fn containers(message: &[u8]) -> Vec<Container> {
    let of = |(field, container): (u64, Value<'_>)| {
        let container = (field == 1).then(|| container.bytes())?;
        let id = value(container, 1)?.text().to_owned();
        let is_running = value(container, 6).map_or(0, Value::number) == RUNNING;
        let name = value(container, 3).and_then(|metadata| value(metadata.bytes(), 1));
        let name = name.map(|name| name.text().to_owned()).unwrap_or_default();
        is_running.then_some(Container { id, name })
    };
    fields(message).unwrap_or_default().into_iter().filter_map(of).collect()
}

/// Returns the container that a `PodSandboxStatusResponse` names by an annotation.
fn default_container(message: &[u8]) -> Option<&str> {
    let status = value(message, 1)?.bytes();
    // A map is a list of pairs.
    let annotations = fields(status)?.into_iter().filter(|(field, _)| *field == 8);
    let mut pairs = annotations.map(|(_, pair)| pair.bytes());
    let pair =
        pairs.find(|pair| value(pair, 1).is_some_and(|key| key.text() == DEFAULT_CONTAINER))?;
    Some(value(pair, 2)?.text())
}

/// Returns the last value of a field.
fn value(message: &[u8], field: u64) -> Option<Value<'_>> {
    let all = fields(message)?;
    all.into_iter().rev().find(|(own, _)| *own == field).map(|(_, value)| value)
}

/// The error for a request without an answer.
enum AskError {
    Connect(PathBuf, std::io::Error),
    Call(CallError),
}

impl From<AskError> for CommandError {
    fn from(error: AskError) -> Self {
        Self::Failed(match error {
            AskError::Connect(socket, error) => format!("{}: {error}", socket.display()),
            AskError::Call(error) => format!("the runtime: {error}"),
        })
    }
}

async fn ask(
    socket: &Path,
    method: &str,
    message: Vec<u8>,
    max_answer: usize,
) -> Result<Vec<u8>, AskError> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|error| AskError::Connect(socket.to_owned(), error))?;
    let method = format!("runtime.v1.RuntimeService/{method}");
    let asked = Call { authority: "localhost", method: &method, message, max_answer };
    call(stream, asked).await.map_err(AskError::Call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, name: &str, state: u64) -> Vec<u8> {
        let (mut metadata, mut container) = (vec![], vec![]);
        put_bytes(&mut metadata, 1, name.as_bytes());
        put_bytes(&mut container, 1, id.as_bytes());
        put_bytes(&mut container, 3, &metadata);
        put_number(&mut container, 6, state);
        container
    }

    fn pod(annotations: &[(&str, &str)]) -> Vec<u8> {
        let (mut status, mut message) = (vec![], vec![]);
        for (key, text) in annotations {
            let mut pair = vec![];
            put_bytes(&mut pair, 1, key.as_bytes());
            put_bytes(&mut pair, 2, text.as_bytes());
            put_listed(&mut status, 8, &pair);
        }
        put_bytes(&mut message, 1, &status);
        message
    }

    #[test]
    fn the_container_is_the_only_one_or_the_one_that_the_pod_names() {
        let mut listed = vec![];
        for (id, name, state) in [("c1", "web", 1), ("c2", "old", 2), ("c3", "sidecar", 1)] {
            put_listed(&mut listed, 1, &container(id, name, state));
        }
        let all = containers(&listed);
        let web = Container { id: "c1".into(), name: "web".into() };
        assert_eq!(all[0], web, "{all:?}");
        assert_eq!(all.len(), 2, "those that run");
        let annotated = pod(&[("a", "b"), (DEFAULT_CONTAINER, "web")]);
        assert_eq!(choose(all.clone(), default_container(&annotated)).unwrap(), web);
        for annotations in [pod(&[]), pod(&[(DEFAULT_CONTAINER, "old")])] {
            match choose(all.clone(), default_container(&annotations)) {
                Err(CommandError::Impossible(said)) => {
                    assert!(said.contains("web, sidecar: the annotation kubectl"), "{said}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(choose(vec![], None), Err(CommandError::Failed(_))));
    }

    #[test]
    fn answers_cut_anywhere_are_read_or_refused() {
        let mut listed = vec![];
        put_listed(&mut listed, 1, &container("c1", "web", 1));
        let status = pod(&[(DEFAULT_CONTAINER, "web")]);
        for length in 0..listed.len() {
            assert_eq!(containers(&listed[..length]), [], "{length}");
        }
        for length in 0..status.len() {
            assert_eq!(default_container(&status[..length]), None, "{length}");
        }
    }
}
