//! What a node has found out about a workload before it may talk: its images, and how it was set
//! up.

use crate::bounded::printable;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The most signatures of one image that are looked at.
pub const MAX_SIGNATURES: usize = 16;
/// The most bytes of a signed payload, and of a signature.
pub const MAX_SIGNED: usize = 8 << 10;
/// The most images of one workload.
pub const MAX_IMAGES: usize = 32;
/// The most containers that share the network namespace of a workload.
pub const MAX_SHARING: usize = 32;
/// The most privileges of each of them that are told one by one.
pub const MAX_SHARING_PRIVILEGES: usize = 16;
/// The most bytes of what one of them is called, and of why it cannot be let in.
pub const MAX_SHARING_TEXT: usize = 512;
/// The most privileges that are told one by one.
pub const MAX_PRIVILEGES: usize = 64;

const MAX_REPOSITORY: usize = 255;

/// The SHA-256 of some content, written `sha256:` and 64 hexadecimal digits (OCI image spec,
/// "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: write sha256: and 64 hexadecimal digits in lower case")]
pub struct BadDigest(String);

impl Sha256 {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
        Self(digest)
    }

    /// The hexadecimal digits alone.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for Sha256 {
    type Err = BadDigest;
    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let bad = || BadDigest(text.chars().take(80).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?;
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(lower) {
            return Err(bad());
        }
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = BadDigest;
    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("sha256:{}", self.hex()))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A registry and a path in it, such as `registry.example:5000/shop/web`: what an image is called,
/// without tag and digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

/// A text that names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image repository: write REGISTRY/PATH, such as registry.example/shop/web")]
pub struct BadRepository(String);

impl Repository {
    /// The repository of an image reference, as container runtimes read it: a tag or digest behind
    /// it is left out, and what names no registry is on Docker Hub (`web` is
    /// `docker.io/library/web`).
    ///
    /// # Errors
    /// [`BadRepository`].
    pub fn of_reference(reference: &str) -> Result<Self, BadRepository> {
        let bad = || BadRepository(reference.chars().take(80).collect());
        let name = reference.split_once('@').map_or(reference, |(name, _)| name);
        let name = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => name,
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest.to_owned())
            }
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let part = |part: &str| {
            let inner = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
            };
            !part.is_empty() && part.bytes().all(inner)
        };
        let host = |byte: u8| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte);
        let whole = format!("{registry}/{path}");
        let fits = whole.len() <= MAX_REPOSITORY
            && registry.bytes().all(host)
            && path.split('/').all(part);
        if fits { Ok(Self(whole)) } else { Err(bad()) }
    }

    /// The repository as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The registry: a host, and a port if it is not the usual one.
    pub fn registry(&self) -> &str {
        self.0.split_once('/').map_or("", |(registry, _)| registry)
    }

    /// The path in the registry.
    pub fn path(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, path)| path)
    }
}

impl TryFrom<String> for Repository {
    type Error = BadRepository;
    fn try_from(text: String) -> Result<Self, BadRepository> {
        Self::of_reference(&text)
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> String {
        repository.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A signature of an image: what was signed, and the signature. Whoever knows the key can check it,
/// wherever it comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageSignature {
    /// The payload, JSON in the form of "simple signing" (containers-signature(5)).
    pub payload: String,
    /// ECDSA over the payload's SHA-256, in base64 of its ASN.1 form.
    pub signature: String,
}

/// An image that a workload was started from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Image {
    /// Where it came from; nothing for an image that was built on the node and was never in a
    /// registry.
    pub repository: Option<Repository>,
    /// The digest of its manifest or index; of its configuration, if it never was in a registry.
    pub digest: Sha256,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.repository {
            Some(repository) => f.pad(&format!("{repository}@{}", self.digest)),
            None => f.pad(&self.digest.to_string()),
        }
    }
}

/// What runs in a workload, as its node has found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Measurement {
    /// Who was asked, such as `docker`.
    pub runtime: String,
    /// The images of the container that the workload is. Of a pod that has just begun, none is
    /// known of it yet.
    pub images: Vec<Image>,
    /// The digest of how it was set up: command, names of environment variables, mounts,
    /// privileges.
    pub config: Sha256,
    /// What it may do that a container usually may not, such as `privileged` or `capability
    /// NET_ADMIN`.
    pub privileges: Vec<String>,
    /// What else is in its network namespace, and speaks on the mesh as the workload.
    #[serde(default)]
    pub sharing: Vec<SharingContainer>,
}

/// A container in the network namespace of another: `--network container:ID`, `network_mode:
/// service:NAME`, a further container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SharingContainer {
    /// What it is called.
    pub name: String,
    /// Its image; nothing if it is not known, because it has not started yet.
    pub image: Option<Image>,
    /// The digest of how it was set up.
    pub config: Sha256,
    /// What it may do that a container usually may not.
    pub privileges: Vec<String>,
    /// What its node could not make sense of.
    #[serde(default)]
    pub objection: Option<String>,
}

impl Measurement {
    /// All images that are known: those of the workload itself, and of what shares its namespace.
    pub fn all_images(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().chain(self.sharing.iter().filter_map(|other| other.image.as_ref()))
    }

    /// Whether the measurement keeps its bounds.
    ///
    /// # Errors
    /// Which it does not.
    pub fn check(&self) -> Result<(), String> {
        let none = self.images.is_empty() && self.sharing.is_empty();
        if none || self.images.len() > MAX_IMAGES {
            return Err(format!(
                "a workload can have 1 to {MAX_IMAGES} images, not {}",
                self.images.len()
            ));
        }
        if self.sharing.len() > MAX_SHARING {
            return Err(format!(
                "at most {MAX_SHARING} containers that share a namespace are told"
            ));
        }
        self.sharing.iter().try_for_each(SharingContainer::check)?;
        if self.privileges.len() > MAX_PRIVILEGES
            || self.privileges.iter().any(|text| text.len() > 256)
        {
            return Err(format!("at most {MAX_PRIVILEGES} privileges of 256 bytes are told"));
        }
        if self.runtime.len() > 64 {
            return Err("the runtime's name is too long".into());
        }
        let sharing = self.sharing.iter();
        let sharing =
            sharing.flat_map(|one| one.privileges.iter().chain([&one.name]).chain(&one.objection));
        let texts = self.privileges.iter().chain([&self.runtime]).chain(sharing);
        if let Some(odd) = texts.into_iter().find(|text| **text != printable(text)) {
            return Err(format!("`{}` has characters that cannot be shown", printable(odd)));
        }
        Ok(())
    }
}

impl SharingContainer {
    fn check(&self) -> Result<(), String> {
        let objection = self.objection.as_deref().unwrap_or_default();
        if self.name.len() > MAX_SHARING_TEXT || objection.len() > MAX_SHARING_TEXT {
            return Err(format!(
                "at most {MAX_SHARING_TEXT} bytes are told of what shares a namespace"
            ));
        }
        let long = self.privileges.iter().any(|text| text.len() > 256);
        if self.privileges.len() > MAX_SHARING_PRIVILEGES || long {
            return Err(format!(
                "at most {MAX_SHARING_PRIVILEGES} privileges of 256 bytes are told of each"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_as_container_runtimes_read_it() {
        for (reference, repository) in [
            ("web", "docker.io/library/web"),
            ("shop/web:1.2", "docker.io/shop/web"),
            ("localhost:5000/shop/web", "localhost:5000/shop/web"),
            ("localhost/web:dev", "localhost/web"),
            ("registry.example/shop/web:1@sha256:00", "registry.example/shop/web"),
            ("index.docker.io/shop/web", "docker.io/shop/web"),
        ] {
            assert_eq!(Repository::of_reference(reference).unwrap().as_str(), repository);
        }
        for bad in
            ["", "registry.example/", "registry.example/Shop", "a b/c", "registry.example/a//b"]
        {
            assert!(Repository::of_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_is_read_and_printed_alike() {
        let digest = Sha256::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Sha256>().unwrap(), digest);
        for bad in ["", "sha256:", "sha512:00", &text.to_uppercase(), &text[..70]] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
    }
}
