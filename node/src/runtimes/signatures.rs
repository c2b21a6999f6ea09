//! Finding the signatures of images: beside them in their registry, or in an OCI layout on disk.
//!
//! A signature is an artifact of its own: in the registry under the tag `sha256-DIGEST.sig`
//! (cosign's signature specification), each of its layers a signed payload, with the signature as
//! an annotation of the layer.

use super::registry::{Access, Credentials, Registry, host_of};
use crate::config::Config;
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use meshward_control_proto::ImageSignatures;
use meshward_types::measurement::{
    Image, ImageSignature, MAX_SIGNATURES, MAX_SIGNED, Repository, Sha256,
};
use parking_lot::Mutex;
use serde::Deserialize;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, warn};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The time within which a registry must answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of a file of an OCI layout that are read.
const MAX_FILE: u64 = 4 << 20;
/// The most images whose signatures are remembered.
const REMEMBERED: usize = 4096;
/// The most images for which one registry is asked at once; who waits has its turn in order.
const AT_ONCE: usize = 4;
/// The pauses after a registry's failures: twice as long each time.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_mins(5);
/// The most registries that are told apart.
const MOST_REGISTRIES: usize = 256;

/// The sources of signatures, and those found.
pub(super) struct Signatures {
    insecure: Vec<String>,
    credentials: Option<PathBuf>,
    layouts: Vec<PathBuf>,
    private: Vec<String>,
    redirects: Vec<String>,
    found: Mutex<HashMap<Image, Vec<ImageSignature>>>,
    registries: Mutex<HashMap<String, Arc<Turns>>>,
}

/// The limits of requests to a registry.
struct Turns {
    turns: Semaphore,
    rest: Mutex<Rest>,
}

/// The pause after a registry's failures.
#[derive(Default)]
struct Rest {
    until: Option<Instant>,
    pause: Option<Duration>,
}

impl Rest {
    /// Notes a failure. Returns the pause.
    fn note_failure(&mut self, now: Instant) -> Duration {
        let pause = self.pause.map_or(REST, |pause| (pause * 2).min(LONGEST_REST));
        (self.until, self.pause) = (Some(now + pause), Some(pause));
        pause
    }

    fn rests(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Signatures {
    /// Creates the finder with the node's configuration.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            insecure: config.insecure_registries.clone(),
            credentials: config.registry_credentials.clone(),
            layouts: config.image_layouts.clone(),
            private: config.private_registries.clone(),
            redirects: config.registry_redirects.clone(),
            found: Mutex::default(),
            registries: Mutex::default(),
        }
    }

    /// Returns the signatures of images.
    pub(super) async fn of(&self, images: &[Image]) -> Vec<ImageSignatures> {
        let mut all = Vec::new();
        for image in images {
            let known = self.found.lock().get(image).cloned();
            let signatures = match known {
                Some(known) => known,
                None => self.find(image).await,
            };
            if !signatures.is_empty() {
                all.push(ImageSignatures { image: image.digest, signatures });
            }
        }
        all
    }

    /// Returns the signatures that were found before.
    pub(super) fn known(&self, images: &[Image]) -> Vec<ImageSignatures> {
        let found = self.found.lock();
        let known = images.iter().filter_map(|image| {
            let signatures = found.get(image)?.clone();
            Some(ImageSignatures { image: image.digest, signatures })
        });
        known.collect()
    }

    /// Looks signatures up again, whatever was found before.
    pub(super) async fn refresh(&self, images: &[Image]) -> Vec<ImageSignatures> {
        for image in images {
            self.found.lock().remove(image);
        }
        self.of(images).await
    }

    async fn find(&self, image: &Image) -> Vec<ImageSignature> {
        let (layouts, digest) = (self.layouts.clone(), image.digest);
        let on_disk = tokio::task::spawn_blocking(move || {
            layouts.iter().flat_map(|layout| in_layout(layout, &digest)).collect::<Vec<_>>()
        });
        let mut all = on_disk.await.unwrap_or_default();
        if let Some(repository) = &image.repository {
            all.extend(self.ask_registry(image, repository).await);
        }
        all.sort();
        all.dedup();
        all.truncate(MAX_SIGNATURES);
        if !all.is_empty() {
            let mut found = self.found.lock();
            if found.len() >= REMEMBERED {
                found.clear();
            }
            found.insert(image.clone(), all.clone());
        }
        all
    }

    /// Asks the registry of an image, in turn with others that ask it. One that has failed is left
    /// alone for a while.
    async fn ask_registry(&self, image: &Image, repository: &Repository) -> Vec<ImageSignature> {
        let registry = self.turns_of(repository.registry());
        let Ok(_turn) = registry.turns.acquire().await else { return vec![] };
        if registry.rest.lock().rests(Instant::now()) {
            debug!(%image, "the registry has failed lately, and is left alone");
            return vec![];
        }
        let asked =
            tokio::time::timeout(PATIENCE, self.in_registry(repository, &image.digest)).await;
        match asked
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it has not answered within {PATIENCE:?}")))
        {
            Ok(found) => {
                *registry.rest.lock() = Rest::default();
                found
            }
            Err(error) => {
                let rest = registry.rest.lock().note_failure(Instant::now());
                warn!(%image, "no signatures from the registry, which is left alone for {rest:?}: \
                    {error:#}");
                vec![]
            }
        }
    }

    fn turns_of(&self, registry: &str) -> Arc<Turns> {
        let mut registries = self.registries.lock();
        if registries.len() >= MOST_REGISTRIES && !registries.contains_key(registry) {
            registries.clear();
        }
        let new = || Arc::new(Turns { turns: Semaphore::new(AT_ONCE), rest: Mutex::default() });
        registries.entry(registry.to_owned()).or_insert_with(new).clone()
    }

    async fn in_registry(
        &self,
        repository: &Repository,
        digest: &Sha256,
    ) -> Result<Vec<ImageSignature>> {
        let mut registry = Registry::new(self.access(repository.registry())?, PATIENCE)?;
        let tag = format!("sha256-{}.sig", digest.hex());
        let Some(manifest) = registry.manifest(repository.path(), &tag).await? else {
            return Ok(vec![]);
        };
        let manifest: Manifest =
            serde_json::from_slice(&manifest).context("its manifest is damaged")?;
        let mut all = Vec::new();
        for (layer, signature) in signed_layers(&manifest) {
            // Parsed, so that it leads nowhere but to a blob.
            let digest: Sha256 = layer.digest.parse().context("a layer has no digest")?;
            let payload = registry.blob(repository.path(), &digest.to_string(), MAX_SIGNED).await?;
            ensure!(Sha256::of(&payload) == digest, "the blob {digest} is another");
            all.extend(read(&payload, signature));
        }
        Ok(all)
    }

    fn access(&self, registry: &str) -> Result<Access> {
        let named =
            |list: &[String]| list.iter().any(|own| own == registry || own == host_of(registry));
        let insecure = named(&self.insecure);
        Ok(Access {
            registry: registry.to_owned(),
            plain: is_local(registry) || insecure,
            private: insecure || named(&self.private),
            elsewhere: self.redirects.clone(),
            credentials: self.credentials_of(registry)?,
        })
    }

    fn credentials_of(&self, registry: &str) -> Result<Option<Credentials>> {
        let Some(path) = &self.credentials else { return Ok(None) };
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: CredentialsFile = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        let key = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
        let Some(entry) = file.auths.get(key) else { return Ok(None) };
        let decoded = String::from_utf8(BASE64_STANDARD.decode(&entry.auth)?)?;
        let (user, password) =
            decoded.split_once(':').context("credentials are of the form USER:PASSWORD")?;
        Ok(Some(Credentials { user: user.to_owned(), password: password.to_owned() }))
    }
}

/// Docker's `config.json`, as far as it is needed.
#[derive(Deserialize)]
struct CredentialsFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
}

/// Returns `true` if a registry is on this machine: container runtimes speak to those without TLS,
/// too.
fn is_local(registry: &str) -> bool {
    let host =
        registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An image's manifest, as far as it is needed (OCI image specification).
#[derive(Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

pub(super) fn signed_layers(manifest: &Manifest) -> impl Iterator<Item = (&Descriptor, &str)> {
    let layers = manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD);
    let bounded = layers.filter(|layer| layer.size <= MAX_SIGNED as u64).take(MAX_SIGNATURES);
    bounded.filter_map(|layer| Some((layer, layer.annotations.get(SIGNATURE)?.as_str())))
}

pub(super) fn read(payload: &[u8], signature: &str) -> Option<ImageSignature> {
    let payload = String::from_utf8(payload.to_vec()).ok()?;
    let fits = payload.len() <= MAX_SIGNED && signature.len() <= MAX_SIGNED;
    fits.then(|| ImageSignature { payload, signature: signature.to_owned() })
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// The signatures in an OCI layout (OCI image layout specification) whose payload names a digest.
fn in_layout(layout: &Path, digest: &Sha256) -> Vec<ImageSignature> {
    let index: Option<Index> =
        read_file(&layout.join("index.json")).and_then(|text| serde_json::from_slice(&text).ok());
    let Some(index) = index else {
        debug!(layout = %layout.display(), "this is no OCI layout");
        return vec![];
    };
    let manifests = index.manifests.iter().filter_map(|manifest| {
        serde_json::from_slice::<Manifest>(&read_blob(layout, &manifest.digest)?).ok()
    });
    let mut all = Vec::new();
    for manifest in manifests {
        for (layer, signature) in signed_layers(&manifest) {
            let payload = read_blob(layout, &layer.digest);
            let found = payload.and_then(|payload| read(&payload, signature));
            all.extend(found.filter(|found| found.payload.contains(&digest.to_string())));
        }
    }
    all
}

fn read_blob(layout: &Path, digest: &str) -> Option<Vec<u8>> {
    // Parsed, so that it leads nowhere but to a blob.
    let digest: Sha256 = digest.parse().ok()?;
    read_file(&layout.join("blobs/sha256").join(digest.hex()))
}

fn read_file(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_found_in_a_layout_and_only_those_of_the_image() {
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let keep = |content: &str| {
            let digest = Sha256::of(content.as_bytes());
            fs::write(blobs.join(digest.hex()), content).unwrap();
            (digest, content.len())
        };
        let (image, other) = (Sha256::of(b"image"), Sha256::of(b"other"));
        let layer = |of: &Sha256, kind: &str| {
            let (digest, size) = keep(&format!(r#"{{"digest":"{of}"}}"#));
            format!(
                r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size},
                "annotations":{{"{SIGNATURE}":"c2ln"}}}}"#
            )
        };
        let layers =
            [layer(&image, PAYLOAD), layer(&other, PAYLOAD), layer(&image, "text/plain")].join(",");
        let (manifest, size) = keep(&format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/json","digest":"{image}",
            "size":1}},"layers":[{layers}]}}"#
        ));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"{manifest}",
            "size":{size}}},{{"mediaType":"{kind}","digest":"sha256:../../x","size":1}}]}}"#
        );
        fs::write(layout.path().join("index.json"), index).unwrap();
        let found = in_layout(layout.path(), &image);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].signature, "c2ln");
        assert!(in_layout(&layout.path().join("nowhere"), &image).is_empty());
    }

    #[tokio::test]
    async fn a_registry_that_hangs_delays_nobody_for_long_and_is_left_alone_then() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = silent.local_addr().unwrap().to_string();
        let config = Config { insecure_registries: vec![registry.clone()], ..Config::default() };
        let signatures = Signatures::new(&config);
        let image = |number: u8| Image {
            repository: Some(Repository::of_reference(&format!("{registry}/shop/web")).unwrap()),
            digest: Sha256::of(&[number]),
        };
        let begun = Instant::now();
        let all: Vec<Vec<Image>> = (0..40).map(|number| vec![image(number)]).collect();
        let asked = futures::future::join_all(all.iter().map(|images| signatures.of(images)));
        assert!(asked.await.iter().all(Vec::is_empty));
        assert!(begun.elapsed() < 2 * PATIENCE, "all of them wait once: {:?}", begun.elapsed());
        let begun = Instant::now();
        signatures.of(&[image(50)]).await;
        assert!(begun.elapsed() < PATIENCE / 5);
        let mut rest = Rest::default();
        let pauses: Vec<u64> =
            (0..12).map(|_| rest.note_failure(Instant::now()).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn registries_of_this_machine_need_no_tls() {
        for (registry, local) in [
            ("localhost:5000", true),
            ("127.0.0.2:1", true),
            ("[::1]:5000", true),
            ("localhost.evil", false),
        ] {
            assert_eq!(is_local(registry), local, "{registry}");
        }
    }
}
