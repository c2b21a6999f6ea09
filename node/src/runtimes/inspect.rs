//! The facts about a container, from a container runtime's answers.

use super::labels::LabelFilter;
use crate::workloads::ContainerFacts;
use bollard::models::{ContainerInspectResponse, HostConfig, ImageInspect, MountPoint};
use meshward_types::{
    WorkloadName,
    bounded::printable,
    measurement::{
        BadDigest, Image, MAX_PRIVILEGES, MAX_SHARING_PRIVILEGES, MAX_SHARING_TEXT, Measurement,
        Repository, Sha256, SharingContainer,
    },
};
use serde::Serialize;
use std::sync::Arc;

/// The longest name of a privilege, in bytes.
const MAX_PRIVILEGE: usize = 256;

/// Sockets by which a container could control its host.
const SOCKETS: [&str; 6] =
    ["docker.sock", "podman.sock", "containerd.sock", "crio.sock", "node.sock", "dockershim.sock"];

/// Returns the facts about a container.
pub(super) fn found(
    runtime: &str,
    container: &ContainerInspectResponse,
    image: &ImageInspect,
    filter: &LabelFilter,
) -> ContainerFacts {
    let mut found = ContainerFacts {
        name: container.name.as_deref().and_then(WorkloadName::like),
        ..ContainerFacts::default()
    };
    let mut objections = Vec::new();
    match measure(runtime, container, image) {
        Ok(measurement) => found.measurement = Some(Arc::new(measurement)),
        Err(error) => objections.push(error),
    }
    let own =
        container.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
    match filter.select(&own) {
        Ok(selected) => {
            (found.labels, found.accepts, found.left_out) =
                (selected.labels, selected.accepts, selected.left_out);
        }
        Err(error) => objections.push(error),
    }
    found.objection = (!objections.is_empty()).then(|| objections.join("; "));
    found
}

/// Returns the measurement of a container that shares the namespace of another. Its labels do not
/// count: it uses the mesh as the other.
pub(super) fn sharing(
    container: &ContainerInspectResponse,
    image: &ImageInspect,
) -> SharingContainer {
    let name = container.name.as_deref().unwrap_or_default().trim_start_matches('/');
    let name = if name.is_empty() { container.id.as_deref().unwrap_or("?") } else { name };
    let privileges = privileges(container);
    let (image, objection) = match image_of(container, image) {
        Ok(image) => (Some(image), None),
        Err(error) => (None, Some(cut(&error, MAX_SHARING_TEXT))),
    };
    SharingContainer {
        name: cut(name, MAX_SHARING_TEXT),
        image,
        config: set_up(container, &privileges),
        privileges: at_most(privileges, MAX_SHARING_PRIVILEGES),
        objection,
    }
}

/// Returns at most `most` privileges, sorted and without duplicates.
pub(super) fn at_most(mut all: Vec<String>, most: usize) -> Vec<String> {
    for text in &mut all {
        *text = cut(text, MAX_PRIVILEGE);
    }
    all.sort_unstable();
    all.dedup();
    if all.len() > most {
        all.truncate(most - 1);
        all.push("and more".into());
    }
    all
}

/// Returns a printable text of at most `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut shown = printable(text);
    shown.truncate(shown.floor_char_boundary(most));
    shown
}

fn measure(
    runtime: &str,
    container: &ContainerInspectResponse,
    image: &ImageInspect,
) -> Result<Measurement, String> {
    let privileges = privileges(container);
    Ok(Measurement {
        runtime: runtime.to_owned(),
        images: vec![image_of(container, image)?],
        config: set_up(container, &privileges),
        privileges: at_most(privileges, MAX_PRIVILEGES),
        sharing: vec![],
    })
}

fn image_of(container: &ContainerInspectResponse, image: &ImageInspect) -> Result<Image, String> {
    let reference =
        container.config.as_ref().and_then(|config| config.image.as_deref()).unwrap_or_default();
    let id = image.id.as_deref().or(container.image.as_deref()).unwrap_or_default();
    let found = origin(reference, id, image.repo_digests.as_deref().unwrap_or_default());
    found.map_err(|error| format!("the runtime's image id: {error}"))
}

/// Returns the image with its repository: the one in the reference, if the runtime pulled it from
/// there; otherwise any that it was pulled from; otherwise none.
fn origin(reference: &str, id: &str, repo_digests: &[String]) -> Result<Image, BadDigest> {
    let asked = Repository::of_reference(reference).ok();
    let known = repo_digests.iter().filter_map(|text| {
        let (repository, digest) = text.split_once('@')?;
        Some((Repository::of_reference(repository).ok()?, digest.parse::<Sha256>().ok()?))
    });
    let mut known: Vec<(Repository, Sha256)> = known.collect();
    // A container that was asked for by digest has that one.
    let exact = reference.split_once('@').and_then(|(_, digest)| digest.parse::<Sha256>().ok());
    known.sort_by_key(|(repository, digest)| {
        (asked.as_ref() != Some(repository), exact != Some(*digest))
    });
    match known.into_iter().next() {
        Some((repository, digest)) => Ok(Image { repository: Some(repository), digest }),
        None => {
            let digest = if id.contains(':') { id.parse() } else { format!("sha256:{id}").parse() };
            Ok(Image { repository: None, digest: digest? })
        }
    }
}

/// Returns the image of a reference that a runtime has resolved to a digest, as `REPOSITORY@DIGEST`
/// or as a digest alone.
pub(super) fn reference_digest(reference: &str, resolved: &str) -> Option<Image> {
    let resolved = resolved.rsplit_once("://").map_or(resolved, |(_, rest)| rest);
    let id = resolved.rsplit_once('@').map_or(resolved, |(_, digest)| digest);
    let known: Vec<String> =
        resolved.contains('@').then(|| resolved.to_owned()).into_iter().collect();
    origin(reference, id, &known).ok()
}

/// The configuration of a container, in a form that is the same wherever it is started.
#[derive(Serialize)]
struct SetUp<'a> {
    command: Vec<&'a str>,
    environment: Vec<&'a str>,
    mounts: Vec<SetUpMount<'a>>,
    privileges: &'a [String],
    user: &'a str,
}

#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct SetUpMount<'a> {
    destination: &'a str,
    /// The source of a bind mount; names of volumes may be random.
    source: Option<&'a str>,
    writable: bool,
}

fn set_up(container: &ContainerInspectResponse, privileges: &[String]) -> Sha256 {
    let path = container.path.as_deref().into_iter();
    let arguments = container.args.iter().flatten().map(String::as_str);
    let config = container.config.as_ref();
    let environment = config.and_then(|config| config.env.as_deref()).unwrap_or_default();
    let mut environment: Vec<&str> = environment
        .iter()
        .map(|text| text.split_once('=').map_or(text.as_str(), |(name, _)| name))
        .collect();
    environment.sort_unstable();
    let mut mounts: Vec<SetUpMount> = container.mounts.iter().flatten().map(mount).collect();
    mounts.sort_unstable();
    let user = config.and_then(|config| config.user.as_deref()).unwrap_or_default();
    let set_up =
        SetUp { command: path.chain(arguments).collect(), environment, mounts, privileges, user };
    // Texts and flags have no way not to be JSON.
    Sha256::of(&serde_json::to_vec(&set_up).expect("plain data is JSON"))
}

fn mount(mount: &MountPoint) -> SetUpMount<'_> {
    SetUpMount {
        destination: mount.destination.as_deref().unwrap_or_default(),
        source: mount.source.as_deref().filter(|_| mount.name.is_none()),
        writable: mount.rw.unwrap_or(true),
    }
}

/// Returns the privileges that containers usually do not have, sorted.
fn privileges(container: &ContainerInspectResponse) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(host) = &container.host_config {
        all.extend(host_privileges(host));
    }
    let mounts = container.mounts.iter().flatten().filter_map(|mount| mount.source.as_deref());
    all.extend(mounts.filter(|source| opens_host(source)).map(|source| format!("mount {source}")));
    at_most(all, MAX_PRIVILEGES)
}

/// Returns `true` if a container with this path of its host could control the host.
pub(super) fn opens_host(source: &str) -> bool {
    source == "/" || SOCKETS.iter().any(|socket| source.ends_with(socket))
}

fn host_privileges(host: &HostConfig) -> Vec<String> {
    let mut all = Vec::new();
    if host.privileged == Some(true) {
        all.push("privileged".to_owned());
    }
    let capabilities = host.cap_add.iter().flatten();
    all.extend(
        capabilities
            .map(|name| format!("capability {}", name.to_uppercase().trim_start_matches("CAP_"))),
    );
    let namespaces = [
        ("pid", &host.pid_mode),
        ("ipc", &host.ipc_mode),
        ("uts", &host.uts_mode),
        ("user", &host.userns_mode),
    ];
    let of_host = namespaces.iter().filter(|(_, mode)| mode.as_deref() == Some("host"));
    all.extend(of_host.map(|(name, _)| format!("host {name} namespace")));
    let devices = host.devices.iter().flatten().filter_map(|device| device.path_on_host.as_deref());
    all.extend(devices.map(|path| format!("device {path}")));
    if host.device_requests.as_ref().is_some_and(|requests| !requests.is_empty()) {
        all.push("devices on request".into());
    }
    let options = host.security_opt.iter().flatten();
    let off = options.filter(|option| option.ends_with("unconfined") || *option == "label=disable");
    all.extend(off.map(|option| format!("security {option}")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ContainerConfig, DeviceMapping};
    use std::collections::HashMap;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn digest(of: &str) -> Sha256 {
        Sha256::of(of.as_bytes())
    }

    #[test]
    fn an_image_is_known_by_where_the_runtime_has_it_from() {
        let id = digest("id").to_string();
        let from =
            |reference: &str, known: &[String]| origin(reference, &id, known).unwrap().to_string();
        let mirror = format!("mirror.example/web@{}", digest("m"));
        let main = format!("registry.example/shop/web@{}", digest("r"));
        assert_eq!(from("registry.example/shop/web:1", &[mirror.clone(), main.clone()]), main);
        assert_eq!(from("registry.example/shop/web:1", std::slice::from_ref(&mirror)), mirror);
        assert_eq!(
            from("registry.example/shop/web:1", &[]),
            id,
            "a tag alone is no proof of where it is from"
        );
        let older = format!("registry.example/shop/web@{}", digest("old"));
        assert_eq!(from(&older, &[main, older.clone()]), older);
    }

    #[test]
    fn the_configuration_is_the_same_for_what_is_set_up_alike() {
        let container =
            |environment: &[&str], volume: &str, privileged: bool| ContainerInspectResponse {
                path: Some("/bin/web".into()),
                args: Some(vec!["--port".into(), "80".into()]),
                config: Some(ContainerConfig {
                    env: Some(environment.iter().map(ToString::to_string).collect()),
                    ..Default::default()
                }),
                mounts: Some(vec![MountPoint {
                    name: Some(volume.into()),
                    source: Some(format!("/var/lib/{volume}")),
                    destination: Some("/data".into()),
                    rw: Some(true),
                    ..Default::default()
                }]),
                host_config: Some(HostConfig {
                    privileged: Some(privileged),
                    ..Default::default()
                }),
                ..Default::default()
            };
        let config =
            |container: ContainerInspectResponse| set_up(&container, &privileges(&container));
        let one = config(container(&["A=1", "B=2"], "v1", false));
        assert_eq!(
            one,
            config(container(&["B=3", "A=4"], "v2", false)),
            "values and chance do not count"
        );
        assert_ne!(one, config(container(&["A=1"], "v1", false)));
        assert_ne!(one, config(container(&["A=1", "B=2"], "v1", true)));
    }

    #[test]
    fn privileges_are_named_one_by_one() {
        let host = HostConfig {
            cap_add: Some(vec!["CAP_NET_ADMIN".into(), "sys_ptrace".into()]),
            pid_mode: Some("host".into()),
            ipc_mode: Some("private".into()),
            devices: Some(vec![DeviceMapping {
                path_on_host: Some("/dev/kvm".into()),
                ..Default::default()
            }]),
            security_opt: Some(vec!["seccomp=unconfined".into(), "no-new-privileges".into()]),
            ..Default::default()
        };
        let socket = MountPoint { source: Some("/run/docker.sock".into()), ..Default::default() };
        let container = ContainerInspectResponse {
            host_config: Some(host),
            mounts: Some(vec![socket]),
            ..Default::default()
        };
        assert_eq!(
            privileges(&container),
            [
                "capability NET_ADMIN",
                "capability SYS_PTRACE",
                "device /dev/kvm",
                "host pid namespace",
                "mount /run/docker.sock",
                "security seccomp=unconfined"
            ]
        );
    }

    #[test]
    fn what_cannot_be_made_sense_of_is_said_and_keeps_the_container_out() {
        let container = ContainerInspectResponse {
            name: Some("/Shop_Web.1".into()),
            config: Some(ContainerConfig {
                labels: Some(map(&[("meshward/site", "c")])),
                ..Default::default()
            }),
            ..Default::default()
        };
        let found = found("docker", &container, &ImageInspect::default(), &LabelFilter::new(&[]));
        assert_eq!(found.name.unwrap().as_str(), "shop-web-1");
        let objection = found.objection.unwrap();
        assert!(
            objection.contains("cannot be set by hand") && objection.contains("is not a digest"),
            "{objection}"
        );
    }
}
