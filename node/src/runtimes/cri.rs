//! Commands in the containers of pods, run by their runtime (containerd, CRI-O) over the API by
//! which the kubelet has its probes run:
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>.

use super::command_error::CommandError;
use super::cri_messages::{
    Container, ContainerFilter, ContainerStateValue, ExecSyncRequest, ExecSyncResponse,
    ListContainersRequest, ListContainersResponse, PodSandboxStatusRequest,
    PodSandboxStatusResponse,
};
use crate::grpc::{Call, CallError, NOT_FOUND, call};
use prost::Message;
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
const RUNNING: i32 = 1;

/// The runtime's service of containers.
pub(super) struct Cri {
    /// The configured socket.
    socket: Option<PathBuf>,
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
        let wanted = ExecSyncRequest {
            container_id: container.id,
            cmd: command.to_vec(),
            timeout: timeout.as_millis().div_ceil(1000) as i64,
        };
        let ended: Result<ExecSyncResponse, _> =
            ask(&socket, "ExecSync", &wanted, MAX_OUTPUT).await;
        let ended = ended.map_err(|error| match error {
            AskError::Call(CallError::TooLong(_)) => CommandError::Failed(format!(
                "the command writes more than {MAX_OUTPUT} bytes; have it write to /dev/null"
            )),
            other => other.into(),
        })?;
        Ok(i64::from(ended.exit_code))
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
    let filter = ContainerFilter {
        state: Some(ContainerStateValue { state: RUNNING }),
        pod_sandbox_id: pod.to_owned(),
    };
    let wanted = ListContainersRequest { filter: Some(filter) };
    let listed = ask(socket, "ListContainers", &wanted, MAX_ANSWER).await?;
    let mut all = running(listed);
    if all.len() == 1 {
        return Ok(all.remove(0));
    }
    let wanted = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned() };
    let status: PodSandboxStatusResponse =
        match ask(socket, "PodSandboxStatus", &wanted, MAX_ANSWER).await {
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
    let names: Vec<&str> = all.iter().map(Container::name).collect();
    let names = names.join(", ");
    let named = |container: &Container| Some(container.name()) == default;
    all.into_iter().find(named).ok_or_else(|| {
        let text = format!(
            "its pod runs the containers {names}: the annotation {DEFAULT_CONTAINER} of the pod \
             has to say in which of them"
        );
        CommandError::Impossible(text)
    })
}

/// Returns the containers that run.
fn running(listed: ListContainersResponse) -> Vec<Container> {
    let all = listed.containers.into_iter();
    all.filter(|container| container.state == RUNNING).collect()
}

/// Returns the container that a pod names by an annotation.
fn default_container(pod: &PodSandboxStatusResponse) -> Option<&str> {
    pod.status.as_ref()?.annotations.get(DEFAULT_CONTAINER).map(String::as_str)
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

async fn ask<A: Message + Default>(
    socket: &Path,
    method: &str,
    wanted: &impl Message,
    max_answer: usize,
) -> Result<A, AskError> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|error| AskError::Connect(socket.to_owned(), error))?;
    let method = format!("runtime.v1.RuntimeService/{method}");
    let message = wanted.encode_to_vec();
    let asked = Call { authority: "localhost", method: &method, message, max_answer };
    let answer = call(stream, asked).await.map_err(AskError::Call)?;
    A::decode(&answer[..]).map_err(|_| AskError::Call(CallError::Malformed))
}

#[cfg(test)]
mod tests {
    use super::{
        super::cri_messages::{ContainerMetadata, PodSandboxStatus},
        *,
    };

    fn container(id: &str, name: &str, state: i32) -> Container {
        let metadata = Some(ContainerMetadata { name: name.into() });
        Container { id: id.into(), metadata, state }
    }

    fn pod(annotations: &[(&str, &str)]) -> PodSandboxStatusResponse {
        let annotations = annotations.iter().map(|(key, text)| ((*key).into(), (*text).into()));
        let status = PodSandboxStatus { annotations: annotations.collect() };
        PodSandboxStatusResponse { status: Some(status) }
    }

    #[test]
    fn the_container_is_the_only_one_or_the_one_that_the_pod_names() {
        let states = [("c1", "web", 1), ("c2", "old", 2), ("c3", "sidecar", 1)];
        let containers = states.map(|(id, name, state)| container(id, name, state)).to_vec();
        let all = running(ListContainersResponse { containers });
        let web = container("c1", "web", 1);
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
        let listed = ListContainersResponse { containers: vec![container("c1", "web", 1)] };
        let listed = listed.encode_to_vec();
        assert_eq!(listed, b"\x0a\x0d\x0a\x02c1\x1a\x05\x0a\x03web\x30\x01");
        let status = pod(&[(DEFAULT_CONTAINER, "web")]).encode_to_vec();
        for length in 0..listed.len() {
            let read = ListContainersResponse::decode(&listed[..length]).map(running);
            assert_eq!(read.unwrap_or_default(), [], "{length}");
        }
        for length in 0..status.len() {
            let read = PodSandboxStatusResponse::decode(&status[..length]).unwrap_or_default();
            assert_eq!(default_container(&read), None, "{length}");
        }
    }
}
