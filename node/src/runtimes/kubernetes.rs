//! What a Kubernetes API says of a pod: its labels, the images of its containers, and what they may do.

use super::inspect::{labels, reference_digest};
use crate::daemon::Found;
use anyhow::{Context, Result};
use meshward_model::{
    WorkloadName,
    labels::Labels,
    local::Pod,
    measurement::{Image, MAX_IMAGES, Measurement, Sha256},
};
use reqwest::{Certificate, Client, StatusCode};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fs, sync::Arc, time::Duration};

/// For how long the API is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The labels that say where a pod belongs, as Kubernetes' own tools write them.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const ACCOUNT: &str = "io.kubernetes.pod.serviceaccount";

#[derive(Debug, Deserialize)]
struct PodObject {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: HashMap<String, String>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
    #[serde(default)]
    service_account_name: String,
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    host_ipc: bool,
}

#[derive(Debug, Deserialize, Serialize)]
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

#[derive(Debug, Deserialize, Serialize)]
struct Variable {
    name: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Security {
    privileged: bool,
    capabilities: Capabilities,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Capabilities {
    add: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(default)]
    image: String,
    #[serde(default, rename = "imageID")]
    image_id: String,
}

/// What the API says of a pod, once it is known which image each of its containers runs. `None`: it is not known yet.
///
/// # Errors
/// If the API does not answer, or does not let us ask.
pub async fn look(pod: &Pod) -> Result<Option<Found>> {
    let api = &pod.api;
    let read =
        |path: &std::path::Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let token = String::from_utf8(read(&api.token_file)?).context("the token is no text")?;
    let ca = Certificate::from_pem(&read(&api.ca_file)?)?;
    let client = Client::builder().timeout(PATIENCE).tls_certs_only([ca]).build()?;
    let url =
        format!("{}/api/v1/namespaces/{}/pods/{}", api.server.trim_end_matches('/'), pod.namespace, pod.name);
    let answer = client.get(&url).bearer_auth(token.trim()).send().await?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let object: PodObject = answer.error_for_status()?.json().await?;
    Ok(found(pod, &object))
}

fn found(pod: &Pod, object: &PodObject) -> Option<Found> {
    let statuses = object.status.container_statuses.iter().chain(&object.status.init_container_statuses);
    let by_name: HashMap<&str, &ContainerStatus> =
        statuses.map(|status| (status.name.as_str(), status)).collect();
    let containers = || object.spec.containers.iter().chain(&object.spec.init_containers);
    let mut images: Vec<Image> = Vec::new();
    for container in containers() {
        // It is filled in once the image is there; until then nothing is known.
        let status = by_name.get(container.name.as_str()).filter(|status| !status.image_id.is_empty())?;
        let image = reference_digest(&status.image, &status.image_id)?;
        if !images.contains(&image) && images.len() < MAX_IMAGES {
            images.push(image);
        }
    }
    let mut privileges: Vec<String> = containers()
        .flat_map(|container| {
            let security = &container.security_context;
            let all = security.privileged.then(|| "privileged".to_owned()).into_iter();
            all.chain(
                security
                    .capabilities
                    .add
                    .iter()
                    .map(|name| format!("capability {}", name.trim_start_matches("CAP_"))),
            )
        })
        .collect();
    privileges.extend(object.spec.host_pid.then(|| "host pid namespace".to_owned()));
    privileges.extend(object.spec.host_ipc.then(|| "host ipc namespace".to_owned()));
    privileges.sort_unstable();
    privileges.dedup();
    let set_up: Vec<&Container> = containers().collect();
    // Texts and flags have no way not to be JSON.
    let config = Sha256::of(&serde_json::to_vec(&set_up).expect("plain data is JSON"));
    let measurement = Measurement { runtime: "kubernetes".into(), images, config, privileges };
    let mut said = object.metadata.labels.clone();
    said.extend(
        object
            .metadata
            .annotations
            .iter()
            .filter(|(key, _)| *key == meshward_model::accept::LABEL)
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    let mut found = Found {
        name: WorkloadName::like(&pod.name),
        measurement: Some(Arc::new(measurement)),
        ..Found::default()
    };
    let own = [(NAMESPACE, pod.namespace.as_str()), (ACCOUNT, object.spec.service_account_name.as_str())];
    let own = own.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key}={value}"));
    let own: Vec<String> = own.collect();
    let all = labels(&said, &HashMap::new()).and_then(|(labels, accepts)| {
        let own = Labels::parse_each(own.iter().map(String::as_str)).map_err(|error| error.to_string())?;
        Ok((labels.with_all(&own).map_err(|error| error.to_string())?, accepts))
    });
    match all {
        Ok((labels, accepts)) => (found.labels, found.accepts) = (labels, accepts),
        Err(error) => found.objection = Some(error),
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_model::local::Kubernetes;

    fn pod() -> Pod {
        let api = Kubernetes { server: "https://k".into(), token_file: "/t".into(), ca_file: "/c".into() };
        Pod { api, namespace: "shop".into(), name: "web-7f".into() }
    }

    fn object(image_id: &str) -> PodObject {
        let text = format!(
            r#"{{"metadata":{{"labels":{{"app":"web"}},"annotations":{{"meshward.accept-from":"app=a","x":"y"}}}},
            "spec":{{"serviceAccountName":"web","hostPID":true,"containers":[{{"name":"web","image":"registry.example/shop/web:1",
            "securityContext":{{"capabilities":{{"add":["NET_ADMIN"]}}}},"env":[{{"name":"A","value":"1"}}]}}]}},
            "status":{{"containerStatuses":[{{"name":"web","image":"registry.example/shop/web:1","imageID":"{image_id}"}}]}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_pod_is_known_once_its_images_are() {
        assert!(found(&pod(), &object("")).is_none());
        let digest = Sha256::of(b"web");
        let found = found(&pod(), &object(&format!("registry.example/shop/web@{digest}"))).unwrap();
        let text = "app=web,io.kubernetes.pod.namespace=shop,io.kubernetes.pod.serviceaccount=web";
        assert_eq!(found.labels.to_string(), text);
        assert_eq!((found.accepts.len(), found.objection), (1, None));
        let measured = found.measurement.unwrap();
        assert_eq!(measured.images[0].to_string(), format!("registry.example/shop/web@{digest}"));
        assert_eq!(measured.privileges, ["capability NET_ADMIN", "host pid namespace"]);
    }
}
