//! The facts about a pod, from a Kubernetes API's objects.

use super::watch::Object;
use crate::{
    runtimes::{
        inspect::{at_most, cut, opens_host, reference_digest},
        labels::LabelFilter,
    },
    workloads::ContainerFacts,
};
use meshward_api_types::local::Pod;
use meshward_types::{
    WorkloadName,
    labels::Labels,
    measurement::{
        Image, MAX_PRIVILEGES, MAX_SHARING, MAX_SHARING_PRIVILEGES, MAX_SHARING_TEXT, Measurement,
        Sha256, SharingContainer,
    },
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};

/// The labels that say where a pod belongs, as Kubernetes' own tools write them.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const ACCOUNT: &str = "io.kubernetes.pod.serviceaccount";
/// The prefix of the labels of a pod's namespace.
const OF_NAMESPACE: &str = "io.kubernetes.namespace/";
/// The annotation that names the container which a pod is about (Kubernetes, "Well-Known Labels,
/// Annotations and Taints").
const MAIN: &str = "kubectl.kubernetes.io/default-container";

/// A pod, as the API has it.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct PodObject {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// A namespace, as the API has it.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct NamespaceObject {
    metadata: Metadata,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: HashMap<String, String>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
    /// The containers that were added while the pod ran (`kubectl debug`).
    #[serde(default)]
    ephemeral_containers: Vec<Container>,
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    service_account_name: String,
    #[serde(default)]
    volumes: Vec<Volume>,
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    host_ipc: bool,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    #[serde(default)]
    host_path: Option<HostPath>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct HostPath {
    path: String,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    #[serde(default)]
    image: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    volume_mounts: Vec<Mount>,
    #[serde(default)]
    security_context: Security,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Variable {
    name: String,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    #[serde(default, skip_serializing)]
    name: String,
    #[serde(rename = "mountPath")]
    path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
struct Security {
    privileged: bool,
    capabilities: Capabilities,
}

#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
struct Capabilities {
    add: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(rename = "containerStatuses")]
    containers: Vec<ContainerStatus>,
    #[serde(rename = "initContainerStatuses")]
    init_containers: Vec<ContainerStatus>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral_containers: Vec<ContainerStatus>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(default)]
    image: String,
    #[serde(default, rename = "imageID")]
    image_id: String,
    #[serde(default)]
    state: ContainerState,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ContainerState {
    terminated: Option<Terminated>,
}

/// That a container has ended.
#[derive(Debug, PartialEq, Deserialize)]
struct Terminated {}

impl Object for PodObject {
    fn key(&self) -> String {
        key(&self.metadata.namespace, &self.metadata.name)
    }
}

impl Object for NamespaceObject {
    fn key(&self) -> String {
        self.metadata.name.clone()
    }
}

/// The key of a pod.
pub(super) fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

impl PodObject {
    /// The node that it runs on.
    pub(crate) fn node(&self) -> &str {
        &self.spec.node_name
    }

    /// Returns the id by which it differs from later ones of the same name.
    pub(crate) fn uid(&self) -> &str {
        &self.metadata.uid
    }

    /// The container that the pod is about: the one that it names, or else its first.
    fn main(&self) -> Option<&Container> {
        let named = self.metadata.annotations.get(MAIN);
        let mut all = self.spec.containers.iter();
        all.find(|container| Some(&container.name) == named)
            .or_else(|| self.spec.containers.first())
    }

    /// The image of a container, once the kubelet has said what it was resolved to.
    fn image(&self, container: &Container) -> Option<Image> {
        let status = self.status_of(container)?;
        let known = Some(status).filter(|status| !status.image_id.is_empty())?;
        reference_digest(&known.image, &known.image_id)
    }

    fn status_of(&self, container: &Container) -> Option<&ContainerStatus> {
        let Status { containers, init_containers, ephemeral_containers } = &self.status;
        let all = containers.iter().chain(init_containers).chain(ephemeral_containers);
        all.into_iter().find(|status| status.name == container.name)
    }

    fn privileges(&self, container: &Container) -> Vec<String> {
        let Security { privileged, capabilities } = &container.security_context;
        let mut all: Vec<String> =
            privileged.then(|| "privileged".to_owned()).into_iter().collect();
        let names = capabilities.add.iter().map(|name| name.trim_start_matches("CAP_"));
        all.extend(names.map(|name| format!("capability {name}")));
        let mounted = |volume: &&Volume| {
            container.volume_mounts.iter().any(|mount| mount.name == volume.name)
        };
        let of_host =
            self.spec.volumes.iter().filter(mounted).filter_map(|volume| volume.host_path.as_ref());
        all.extend(
            of_host.filter(|of| opens_host(&of.path)).map(|of| format!("mount {}", of.path)),
        );
        all
    }

    /// Returns the containers that share the pod's namespace with its main container. Those that it
    /// was made with count although they have ended: they run again when the pod is restarted.
    fn sharing(&self, main: &Container) -> Vec<SharingContainer> {
        let Spec { containers, init_containers, ephemeral_containers, .. } = &self.spec;
        let has_ended = |container: &Container| {
            self.status_of(container).is_some_and(|status| status.state.terminated.is_some())
        };
        let declared =
            containers.iter().chain(init_containers).filter(|other| other.name != main.name);
        let added = ephemeral_containers.iter().filter(|other| !has_ended(other));
        let mut all: Vec<SharingContainer> = declared
            .chain(added)
            .map(|other| SharingContainer {
                name: cut(&other.name, MAX_SHARING_TEXT),
                image: self.image(other),
                config: set_up(other),
                privileges: at_most(self.privileges(other), MAX_SHARING_PRIVILEGES),
                objection: None,
            })
            .collect();
        if all.len() > MAX_SHARING {
            let more = all.len() - MAX_SHARING + 1;
            all.truncate(MAX_SHARING - 1);
            all.push(SharingContainer {
                name: format!("and {more} more"),
                image: None,
                config: Sha256::of(b""),
                privileges: vec![],
                objection: Some(format!(
                    "at most {MAX_SHARING} further containers of a pod are measured"
                )),
            });
        }
        all
    }

    /// Returns the facts about the pod, once an image of one of its containers is known.
    pub(crate) fn found(
        &self,
        pod: &Pod,
        namespace: Option<&NamespaceObject>,
        filter: &LabelFilter,
    ) -> Option<ContainerFacts> {
        let main = self.main()?;
        let sharing = self.sharing(main);
        let images: Vec<Image> = self.image(main).into_iter().collect();
        if images.is_empty() && sharing.iter().all(|other| other.image.is_none()) {
            return None;
        }
        let mut privileges = self.privileges(main);
        privileges.extend(self.spec.host_pid.then(|| "host pid namespace".to_owned()));
        privileges.extend(self.spec.host_ipc.then(|| "host ipc namespace".to_owned()));
        let privileges = at_most(privileges, MAX_PRIVILEGES);
        let config = set_up(main);
        let measurement =
            Measurement { runtime: "kubernetes".into(), images, config, privileges, sharing };
        let mut found = ContainerFacts {
            name: WorkloadName::like(&pod.name),
            measurement: Some(Arc::new(measurement)),
            ..ContainerFacts::default()
        };
        match self.labels(pod, namespace, filter, &mut found) {
            Ok(()) => {}
            Err(error) => found.objection = Some(error),
        }
        Some(found)
    }

    fn labels(
        &self,
        pod: &Pod,
        namespace: Option<&NamespaceObject>,
        filter: &LabelFilter,
        found: &mut ContainerFacts,
    ) -> Result<(), String> {
        let Metadata { labels, annotations, .. } = &self.metadata;
        let mut said = labels.clone();
        let declared = annotations.get_key_value(meshward_types::accept::LABEL);
        said.extend(declared.map(|(key, value)| (key.clone(), value.clone())));
        let selected = filter.select(&said)?;
        let account = self.spec.service_account_name.as_str();
        let own = [(NAMESPACE, pod.namespace.as_str()), (ACCOUNT, account)];
        let own = own.iter().filter(|(_, value)| !value.is_empty());
        let mut texts: Vec<String> = own.map(|(key, value)| format!("{key}={value}")).collect();
        let below = namespace.map(|of| filter.select_below(OF_NAMESPACE, &of.metadata.labels));
        texts.extend(below.unwrap_or_default().into_iter().take(MAX_OF_NAMESPACE));
        let own = Labels::parse_each(texts.iter().map(String::as_str))
            .map_err(|error| error.to_string())?;
        found.labels = selected.labels.with_all(&own).map_err(|error| error.to_string())?;
        (found.accepts, found.left_out) = (selected.accepts, selected.left_out);
        Ok(())
    }
}

/// The most labels that are selected of a namespace.
const MAX_OF_NAMESPACE: usize = 32;

/// The digest of how a container is set up.
fn set_up(container: &Container) -> Sha256 {
    // Texts and flags have no way not to be JSON.
    Sha256::of(&serde_json::to_vec(&[container]).expect("plain data is JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_api_types::local::Kubernetes;

    fn pod() -> Pod {
        let api = Kubernetes {
            server: "https://k".into(),
            token_file: "/t".into(),
            ca_file: "/c".into(),
        };
        Pod { api, namespace: "shop".into(), name: "web-7f".into(), uid: None }
    }

    fn object(image_id: &str) -> PodObject {
        let text = format!(
            r#"{{"metadata":{{"labels":{{"app":"web"}},
            "annotations":{{"meshward.accept-from":"app=a","x":"y"}}}},
            "spec":{{"serviceAccountName":"web","hostPID":true,"containers":[{{"name":"web",
            "image":"registry.example/shop/web:1",
            "securityContext":{{"capabilities":{{"add":["NET_ADMIN"]}}}},"env":[{{"name":"A",
            "value":"1"}}]}}]}},
            "status":{{"containerStatuses":[{{"name":"web","image":"registry.example/shop/web:1",
            "imageID":"{image_id}"}}]}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_pod_is_known_once_its_images_are() {
        let found = |object: &PodObject| object.found(&pod(), None, &LabelFilter::new(&[]));
        assert!(found(&object("")).is_none());
        let digest = Sha256::of(b"web");
        let found = found(&object(&format!("registry.example/shop/web@{digest}"))).unwrap();
        let text = "app=web,io.kubernetes.pod.namespace=shop,io.kubernetes.pod.serviceaccount=web";
        assert_eq!(found.labels.to_string(), text);
        assert_eq!((found.accepts.len(), found.objection), (1, None));
        let measured = found.measurement.unwrap();
        assert_eq!(measured.images[0].to_string(), format!("registry.example/shop/web@{digest}"));
        assert_eq!(measured.privileges, ["capability NET_ADMIN", "host pid namespace"]);
    }

    fn parse(text: &str) -> PodObject {
        serde_json::from_str(text).unwrap()
    }

    fn found(object: &PodObject) -> Option<ContainerFacts> {
        object.found(&pod(), None, &LabelFilter::new(&[]))
    }

    #[test]
    fn each_container_of_a_pod_is_measured_as_soon_as_it_has_begun() {
        let digest = |of: &str| Sha256::of(of.as_bytes());
        let spec = r#""spec":{"initContainers":[{"name":"migrate"}],"containers":[{"name":"proxy"},
            {"name":"web"}],
            "ephemeralContainers":[{"name":"debugger"}],"volumes":[{"name":"s",
            "hostPath":{"path":"/run/docker.sock"}}]}"#;
        let metadata =
            r#""metadata":{"annotations":{"kubectl.kubernetes.io/default-container":"web"}}"#;
        let begun = format!(
            r#"{{{metadata},{spec},"status":{{"initContainerStatuses":[{{"name":"migrate",
            "imageID":"r.example/m@{}"}}],"containerStatuses":[{{"name":"web",
            "imageID":""}}]}}}}"#,
            digest("m")
        );
        let measured = found(&parse(&begun)).unwrap().measurement.unwrap();
        assert!(measured.images.is_empty(), "what it is about has not begun");
        let names = |measured: &Measurement| -> Vec<(String, bool)> {
            measured
                .sharing
                .iter()
                .map(|other| (other.name.clone(), other.image.is_some()))
                .collect()
        };
        let seen = [
            ("proxy".to_owned(), false),
            ("migrate".to_owned(), true),
            ("debugger".to_owned(), false),
        ];
        assert_eq!(names(&measured), seen);

        let ran = format!(
            r#"{{{metadata},{spec},"status":{{"initContainerStatuses":[{{"name":"migrate",
            "imageID":"r.example/m@{}","state":{{"terminated":{{"exitCode":0}}}}}}],
            "containerStatuses":[{{"name":"web","imageID":"r.example/web@{}"}},{{"name":"proxy",
            "imageID":"r.example/p@{}"}}],
            "ephemeralContainerStatuses":[{{"name":"debugger","imageID":"r.example/d@{}",
            "state":{{"terminated":{{"exitCode":1}}}}}}]}}}}"#,
            digest("m"),
            digest("web"),
            digest("p"),
            digest("d")
        );
        let measured = found(&parse(&ran)).unwrap().measurement.unwrap();
        assert_eq!(measured.images[0].digest, digest("web"));
        assert_eq!(names(&measured), [("proxy".to_owned(), true), ("migrate".to_owned(), true)]);
        assert!(measured.check().is_ok());
    }

    #[test]
    fn what_a_container_of_a_pod_may_do_is_its_own() {
        let digest = Sha256::of(b"web");
        let text = format!(
            r#"{{"metadata":{{}},"spec":{{"containers":[{{"name":"web"}},{{"name":"agent",
            "volumeMounts":[{{"name":"s","mountPath":"/s"}}],
            "securityContext":{{"privileged":true}}}}],"volumes":[{{"name":"s",
            "hostPath":{{"path":"/run/docker.sock"}}}},{{"name":"t"}}]}},
            "status":{{"containerStatuses":[{{"name":"web",
            "imageID":"r.example/web@{digest}"}}]}}}}"#
        );
        let measured = found(&parse(&text)).unwrap().measurement.unwrap();
        assert_eq!(measured.privileges, Vec::<String>::new());
        assert_eq!(measured.sharing[0].privileges, ["mount /run/docker.sock", "privileged"]);
    }

    #[test]
    fn more_containers_than_are_measured_keep_a_pod_out() {
        let names: Vec<String> =
            (0..100).map(|number| format!(r#"{{"name":"c{number}"}}"#)).collect();
        let digest = Sha256::of(b"web");
        let text = format!(
            r#"{{"metadata":{{}},"spec":{{"containers":[{}]}},
            "status":{{"containerStatuses":[{{"name":"c0",
            "imageID":"r.example/web@{digest}"}}]}}}}"#,
            names.join(",")
        );
        let measured = found(&parse(&text)).unwrap().measurement.unwrap();
        assert!(measured.check().is_ok());
        assert!(measured.sharing.last().unwrap().objection.is_some());
        assert_eq!(measured.sharing.last().unwrap().name, "and 68 more");
    }

    #[test]
    fn labels_of_the_namespace_are_the_workloads_too() {
        let of: NamespaceObject = serde_json::from_str(
            r#"{"metadata":{"name":"shop","labels":{"team":"pay",
            "kubernetes.io/metadata.name":"shop"}}}"#,
        )
        .unwrap();
        let image = format!("registry.example/shop/web@{}", Sha256::of(b"web"));
        let found = object(&image).found(&pod(), Some(&of), &LabelFilter::new(&[])).unwrap();
        assert_eq!(found.labels.get("io.kubernetes.namespace/team"), Some("pay"));
        assert_eq!(found.labels.len(), 4);
    }
}
