//! What a Kubernetes API says of a pod: its labels, the images of its containers, and what they may do.

use super::{
    bounded,
    inspect::{labels, reference_digest},
};
use crate::daemon::Found;
use anyhow::{Context, Result, ensure};
use meshward_model::{
    WorkloadName,
    labels::Labels,
    local::Pod,
    measurement::{Image, MAX_IMAGES, Measurement, Sha256},
};
use reqwest::{Certificate, Client, StatusCode, redirect::Policy};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fs, sync::Arc, time::Duration};

/// For how long the API is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of a pod: etcd takes 1.5 MiB of one object.
const MAX_POD: usize = 4 << 20;
/// The labels that say where a pod belongs, as Kubernetes' own tools write them.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const ACCOUNT: &str = "io.kubernetes.pod.serviceaccount";

#[derive(Debug, Deserialize)]
pub(super) struct PodObject {
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
    let client = Client::builder().timeout(PATIENCE).tls_certs_only([ca]).redirect(Policy::none()).build()?;
    let url =
        format!("{}/api/v1/namespaces/{}/pods/{}", api.server.trim_end_matches('/'), pod.namespace, pod.name);
    let answer = client.get(&url).bearer_auth(token.trim()).send().await?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let status = answer.status();
    ensure!(status.is_success(), "the API answers {status}");
    let object: PodObject = serde_json::from_slice(&bounded::read(answer, MAX_POD).await?)?;
    Ok(found(pod, &object))
}

pub(super) fn found(pod: &Pod, object: &PodObject) -> Option<Found> {
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
    let all = labels(&said).and_then(|(labels, accepts)| {
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
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

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

    /// A server that answers each request alike, once it has the right token.
    async fn serve(listener: TcpListener, acceptor: TlsAcceptor, body: String) {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
            let allowed = request.starts_with("get /api/v1/namespaces/shop/pods/web-7f http")
                && request.contains("authorization: bearer t0ken\r\n");
            let status = if allowed { "200 OK" } else { "403 Forbidden" };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    }

    #[tokio::test]
    async fn the_api_is_asked_over_tls_with_a_token() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let digest = Sha256::of(b"web");
        let body = format!(
            r#"{{"metadata":{{"labels":{{"app":"web"}}}},"spec":{{"containers":[{{"name":"web"}}]}},"status":{{"containerStatuses":[{{"name":"web","image":"r.example/web","imageID":"r.example/web@{digest}"}}]}}}}"#
        );
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), body));
        let folder = tempfile::tempdir().unwrap();
        let (token_file, ca_file) = (folder.path().join("token"), folder.path().join("ca.pem"));
        fs::write(&ca_file, made.cert.pem()).unwrap();
        fs::write(&token_file, "t0ken\n").unwrap();
        let api = Kubernetes {
            server: format!("https://localhost:{port}/"),
            token_file: token_file.clone(),
            ca_file,
        };
        let pod = Pod { api, ..pod() };
        let found = look(&pod).await.unwrap().unwrap();
        assert_eq!(found.labels.get("app"), Some("web"));
        fs::write(&token_file, "other").unwrap();
        assert!(look(&pod).await.is_err());
        let elsewhere = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&pod.api.ca_file, elsewhere.cert.pem()).unwrap();
        assert!(look(&pod).await.is_err(), "a server that the CA has not signed is not asked");
    }
}
