//! Finding the signatures of images: beside them in their registry, or in an OCI layout on disk.
//!
//! A signature is an artifact of its own: in the registry under the tag `sha256-DIGEST.sig` (cosign's signature
//! specification), each of its layers a signed payload, with the signature as an annotation of the layer.

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use meshward_model::measurement::{Image, ImageSignature, MAX_SIGNATURES, MAX_SIGNED, Repository, Sha256};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::{OciDescriptor, OciImageManifest},
    secrets::RegistryAuth,
};
use parking_lot::Mutex;
use serde::Deserialize;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tracing::debug;

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// For how long a registry is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of a file of an OCI layout that are read.
const MAX_FILE: u64 = 4 << 20;
/// The most images whose signatures are remembered.
const REMEMBERED: usize = 4096;

/// Where signatures are looked for, and what was found.
pub struct Signatures {
    insecure: Vec<String>,
    credentials: Option<PathBuf>,
    layouts: Vec<PathBuf>,
    found: Mutex<HashMap<Image, Vec<ImageSignature>>>,
}

impl Signatures {
    /// `insecure`: registries that are spoken to without TLS; those of this machine are, in any case. `credentials`: a file
    /// like Docker's `config.json`. `layouts`: folders that are OCI layouts.
    pub fn new(insecure: Vec<String>, credentials: Option<PathBuf>, layouts: Vec<PathBuf>) -> Self {
        Self { insecure, credentials, layouts, found: Mutex::default() }
    }

    /// The signatures of some images.
    pub async fn of(&self, images: &[Image]) -> Vec<(Sha256, Vec<ImageSignature>)> {
        let mut all = Vec::new();
        for image in images {
            let known = self.found.lock().get(image).cloned();
            let signatures = match known {
                Some(known) => known,
                None => self.look(image).await,
            };
            if !signatures.is_empty() {
                all.push((image.digest, signatures));
            }
        }
        all
    }

    /// Looks again, whatever was found before.
    pub async fn again(&self, images: &[Image]) -> Vec<(Sha256, Vec<ImageSignature>)> {
        for image in images {
            self.found.lock().remove(image);
        }
        self.of(images).await
    }

    async fn look(&self, image: &Image) -> Vec<ImageSignature> {
        let (layouts, digest) = (self.layouts.clone(), image.digest);
        let on_disk = tokio::task::spawn_blocking(move || {
            layouts.iter().flat_map(|layout| in_layout(layout, &digest)).collect::<Vec<_>>()
        });
        let mut all = on_disk.await.unwrap_or_default();
        if let Some(repository) = &image.repository {
            match tokio::time::timeout(PATIENCE, self.in_registry(repository, &image.digest)).await {
                Ok(Ok(more)) => all.extend(more),
                Ok(Err(error)) => debug!(%image, "no signatures from the registry: {error:#}"),
                Err(_) => debug!(%image, "the registry does not answer"),
            }
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

    async fn in_registry(&self, repository: &Repository, digest: &Sha256) -> Result<Vec<ImageSignature>> {
        let registry = repository.registry();
        let plain = is_local(registry) || self.insecure.iter().any(|own| own == registry);
        let protocol = if plain { ClientProtocol::Http } else { ClientProtocol::Https };
        let client = Client::new(ClientConfig { protocol, ..ClientConfig::default() });
        let tag = format!("sha256-{}.sig", digest.hex());
        let place = Reference::with_tag(registry.to_owned(), repository.path().to_owned(), tag);
        let credentials = self.credentials_of(registry)?;
        let manifest = match client.pull_image_manifest(&place, &credentials).await {
            Ok((manifest, _)) => manifest,
            Err(OciDistributionError::ImageManifestNotFoundError(_)) => return Ok(vec![]),
            Err(error) => return Err(error.into()),
        };
        let mut all = Vec::new();
        for (layer, signature) in signed_layers(&manifest) {
            let mut payload = Vec::new();
            client.pull_blob(&place, layer, &mut payload).await?;
            all.extend(read(&payload, signature));
        }
        Ok(all)
    }

    fn credentials_of(&self, registry: &str) -> Result<RegistryAuth> {
        let Some(path) = &self.credentials else { return Ok(RegistryAuth::Anonymous) };
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: Credentials =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        let key = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
        let Some(entry) = file.auths.get(key) else { return Ok(RegistryAuth::Anonymous) };
        let decoded = String::from_utf8(BASE64_STANDARD.decode(&entry.auth)?)?;
        let (user, password) =
            decoded.split_once(':').context("credentials are of the form USER:PASSWORD")?;
        Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
    }
}

/// Docker's `config.json`, as far as it is needed.
#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
}

/// Whether a registry is on this machine: container runtimes speak to those without TLS, too.
fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(super) fn signed_layers(manifest: &OciImageManifest) -> impl Iterator<Item = (&OciDescriptor, &str)> {
    let layers = manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD);
    let bounded = layers.filter(|layer| (0..=MAX_SIGNED as i64).contains(&layer.size)).take(MAX_SIGNATURES);
    bounded.filter_map(|layer| Some((layer, layer.annotations.as_ref()?.get(SIGNATURE)?.as_str())))
}

pub(super) fn read(payload: &[u8], signature: &str) -> Option<ImageSignature> {
    let payload = String::from_utf8(payload.to_vec()).ok()?;
    let fits = payload.len() <= MAX_SIGNED && signature.len() <= MAX_SIGNED;
    fits.then(|| ImageSignature { payload, signature: signature.to_owned() })
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<OciDescriptor>,
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
        serde_json::from_slice::<OciImageManifest>(&read_blob(layout, &manifest.digest)?).ok()
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
                r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size},"annotations":{{"{SIGNATURE}":"c2ln"}}}}"#
            )
        };
        let layers = [layer(&image, PAYLOAD), layer(&other, PAYLOAD), layer(&image, "text/plain")].join(",");
        let (manifest, size) = keep(&format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/json","digest":"{image}","size":1}},"layers":[{layers}]}}"#
        ));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"{manifest}","size":{size}}},{{"mediaType":"{kind}","digest":"sha256:../../x","size":1}}]}}"#
        );
        fs::write(layout.path().join("index.json"), index).unwrap();
        let found = in_layout(layout.path(), &image);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].signature, "c2ln");
        assert!(in_layout(&layout.path().join("nowhere"), &image).is_empty());
    }

    #[test]
    fn registries_of_this_machine_need_no_tls() {
        for (registry, local) in
            [("localhost:5000", true), ("127.0.0.2:1", true), ("[::1]:5000", true), ("localhost.evil", false)]
        {
            assert_eq!(is_local(registry), local, "{registry}");
        }
    }
}
