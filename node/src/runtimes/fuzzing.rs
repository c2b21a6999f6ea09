//! Answers of runtimes, Kubernetes and registries.

use super::{inspect, kubernetes::PodObject, labels::LabelFilter, signatures};
use crate::workloads::ContainerFacts;
use meshward_api_types::local::{Kubernetes, Pod};
use meshward_fuzzing::blocks;
use meshward_types::measurement::{MAX_SIGNATURES, MAX_SIGNED, Sha256};

/// Returns the facts in Docker's two answers about a container.
pub(crate) fn container(container: &[u8], image: &[u8]) -> Option<ContainerFacts> {
    let (container, image) =
        (serde_json::from_slice(container).ok()?, serde_json::from_slice(image).ok()?);
    Some(inspect::found("docker", &container, &image, &LabelFilter::new(&[])))
}

/// Returns the facts in Kubernetes' answer about a pod.
pub(crate) fn pod(object: &[u8]) -> Option<ContainerFacts> {
    let api = Kubernetes { server: String::new(), ca_file: "/a".into(), token_file: "/b".into() };
    let pod = Pod { api, namespace: "default".into(), name: "web-0".into(), uid: None };
    serde_json::from_slice::<PodObject>(object).ok()?.found(&pod, None, &LabelFilter::new(&[]))
}

/// A manifest: what is fetched because of it is bounded, and what it signs is as long as a
/// signature may be.
pub(crate) fn registry(manifest: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<signatures::Manifest>(manifest) else { return };
    let layers: Vec<_> = signatures::signed_layers(&manifest).collect();
    assert!(layers.len() <= MAX_SIGNATURES);
    for (layer, signature) in layers {
        assert!(layer.size <= MAX_SIGNED as u64);
        if let Some(read) = signatures::read(layer.digest.as_bytes(), signature) {
            assert!(read.payload.len() <= MAX_SIGNED && read.signature.len() <= MAX_SIGNED);
        }
    }
}

pub(crate) fn containers() -> Vec<Vec<u8>> {
    let digest = Sha256::of(b"image");
    let container = format!(
        r#"{{"Id":"c1","Name":"/web","Path":"/bin/web","Args":["-v"],"Image":"{digest}",
        "Config":{{"Image":"registry.example/shop/web:1","User":"1000","Env":["A=b"],
        "Labels":{{"app":"web","meshward.accept-from":"app=api, port=tcp/80","com.docker.x":"y"}}}},
        "HostConfig":{{"Privileged":true,"CapAdd":["CAP_NET_ADMIN"],"PidMode":"host",
        "Devices":[{{"PathOnHost":"/dev/kvm"}}],"SecurityOpt":["seccomp=unconfined"]}},
        "Mounts":[{{"Type":"bind","Source":"/var/run/docker.sock","Destination":"/s",
        "RW":true}}]}}"#
    );
    let image =
        format!(r#"{{"Id":"{digest}","RepoDigests":["registry.example/shop/web@{digest}"]}}"#);
    vec![blocks([container, image]), blocks(["{}", "{}"])]
}

pub(crate) fn pods() -> Vec<Vec<u8>> {
    let digest = Sha256::of(b"image");
    let pod = format!(
        r#"{{"metadata":{{"labels":{{"app":"web"}},
        "annotations":{{"meshward.accept-from":"app=api"}}}},
        "spec":{{"containers":[{{"name":"web","image":"web:1","env":[{{"name":"A"}}],
        "volumeMounts":[{{"mountPath":"/x"}}],"securityContext":{{"privileged":true,
        "capabilities":{{"add":["NET_RAW"]}}}}}}],"serviceAccountName":"default","hostPID":true}},
        "status":{{"containerStatuses":[{{"name":"web","image":"web:1",
        "imageID":"docker.io/library/web@{digest}"}}]}}}}"#
    );
    vec![pod.into_bytes()]
}

pub(crate) fn manifests() -> Vec<Vec<u8>> {
    let digest = Sha256::of(b"payload");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/json","digest":"{digest}","size":1}},
        "layers":[{{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json",
        "digest":"{digest}","size":7,
        "annotations":{{"dev.cosignproject.cosign/signature":"c2ln"}}}}]}}"#
    );
    vec![manifest.into_bytes()]
}
