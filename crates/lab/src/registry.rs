//! A real image registry on a site, and signatures in the form that cosign and skopeo give them.

use crate::{
    docker::{Docker, REGISTRY},
    hex::hex,
    internet::Site,
    process::{Process, output},
};
use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The DER header of an uncompressed point on P-256 in a `SubjectPublicKeyInfo` (RFC 5480 §2), in
/// base64.
const P256: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgA=";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry that ends with its owner.
pub struct Registry {
    site: Site,
    folder: PathBuf,
    _process: Process,
}

/// A key that signs images.
pub struct ImageKey(EcdsaKeyPair);

impl ImageKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// Fails if the system gives no random bytes.
    pub fn new() -> Result<Self> {
        let broken = |_| anyhow::anyhow!("no key can be made");
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(broken)?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random);
        Ok(Self(pair.map_err(|error| anyhow::anyhow!("no key can be made: {error}"))?))
    }

    /// The public key, in PEM.
    ///
    /// # Errors
    /// None in practice.
    pub fn pem(&self) -> Result<String> {
        let der = [&BASE64_STANDARD.decode(P256)?[..26], self.0.public_key().as_ref()].concat();
        Ok(format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(der)
        ))
    }
}

impl Registry {
    /// Starts one.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn start(site: &Site, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let config = json!({
            "version": "0.1",
            "storage": { "filesystem": { "rootdirectory": folder.join("data") } },
            "http": { "addr": "127.0.0.1:5000" },
        });
        // JSON is YAML.
        fs::write(folder.join("config.yml"), config.to_string())?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.join("config.yml"));
        let mut process = Process::start(&site.netns, &mut command, &folder.join("log"))?;
        let ready = || {
            let mut curl = Command::new("curl");
            output(&site.netns, curl.args(["-sf", "http://localhost:5000/v2/"])).is_ok()
        };
        process.wait_until(ready)?;
        Ok(Self { site: site.clone(), folder: folder.to_owned(), _process: process })
    }

    /// Makes an image that serves a page with this content, and pushes it. Gives its name,
    /// `localhost:5000/PATH:TAG`.
    ///
    /// # Errors
    /// Fails with Docker's message.
    pub fn push(&self, docker: &Docker, path: &str, tag: &str, content: &str) -> Result<String> {
        let name = format!("{REGISTRY}/{path}:{tag}");
        docker.import(&name, content)?;
        docker.run(&["push", &name])?;
        Ok(name)
    }

    /// Returns the digest of an image in the registry.
    ///
    /// # Errors
    /// Fails if it has none.
    pub fn digest(&self, path: &str, tag: &str) -> Result<String> {
        let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json";
        let url = format!("http://{REGISTRY}/v2/{path}/manifests/{tag}");
        let head = self.curl(&["-I", "-H", accept, &url])?;
        let line = head.lines().find_map(|line| line.strip_prefix("Docker-Content-Digest: "));
        Ok(line.context("the registry names no digest")?.trim().to_owned())
    }

    /// Signs an image as cosign does: the payload and the signature become an artifact of their own
    /// beside it.
    ///
    /// # Errors
    /// Fails with the registry's message.
    pub fn sign(&self, path: &str, tag: &str, key: &ImageKey) -> Result<()> {
        let digest = self.digest(path, tag)?;
        self.attach(path, &digest, &digest, key)
    }

    /// Puts a signature of one digest beside the image of another.
    ///
    /// # Errors
    /// Fails with the registry's message.
    pub fn attach(&self, path: &str, beside: &str, of: &str, key: &ImageKey) -> Result<()> {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": format!("{REGISTRY}/{path}") },
                "image": { "docker-manifest-digest": of },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string();
        let signature = key.0.sign(&SystemRandom::new(), payload.as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("it cannot be signed"))?;
        let config =
            json!({ "architecture": "", "os": "", "rootfs": { "type": "layers", "diff_ids": [] } });
        let config =
            self.blob(path, "application/vnd.oci.image.config.v1+json", &config.to_string())?;
        let mut layer =
            self.blob(path, "application/vnd.dev.cosign.simplesigning.v1+json", &payload)?;
        let text = BASE64_STANDARD.encode(signature.as_ref());
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": text });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
        });
        let tag = format!("{}.sig", beside.replace(':', "-"));
        let url = format!("http://{REGISTRY}/v2/{path}/manifests/{tag}");
        self.put(&url, MANIFEST, &manifest.to_string())
    }

    fn blob(&self, path: &str, kind: &str, content: &str) -> Result<Value> {
        let hex = hex(digest(&SHA256, content.as_bytes()).as_ref());
        let begin = format!("http://{REGISTRY}/v2/{path}/blobs/uploads/");
        let head = self.curl(&["-X", "POST", "-D", "-", &begin])?;
        let location = head.lines().find_map(|line| line.strip_prefix("Location: "));
        let location = location.context("the registry takes no upload")?.trim();
        let joint = if location.contains('?') { '&' } else { '?' };
        self.put(
            &format!("{location}{joint}digest=sha256:{hex}"),
            "application/octet-stream",
            content,
        )?;
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{hex}"), "size": content.len() }))
    }

    fn put(&self, url: &str, kind: &str, content: &str) -> Result<()> {
        let file = self.folder.join("upload");
        fs::write(&file, content)?;
        let (data, kind) = (format!("@{}", file.display()), format!("Content-Type: {kind}"));
        self.curl(&["-X", "PUT", "-H", &kind, "--data-binary", &data, url]).map(drop)
    }

    fn curl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail"]).args(arguments);
        output(&self.site.netns, &mut command)
    }
}
