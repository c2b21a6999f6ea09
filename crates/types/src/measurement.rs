//! Measurements: a node's findings about a workload before it may communicate, its images and its
//! configuration.

use crate::bounded::printable;
use serde::{Deserialize, Serialize};
use std::{
    fmt::{self, Write},
    str::FromStr,
};

/// The largest number of signatures of one image that are checked.
pub const MAX_SIGNATURES: usize = 16;
/// The largest size of a signed payload, and of a signature, in bytes.
pub const MAX_SIGNED: usize = 8 << 10;
/// The largest number of images of one workload.
pub const MAX_IMAGES: usize = 32;
/// The largest number of containers that share a workload's network namespace.
pub const MAX_SHARING: usize = 32;
/// The largest number of privileges that are listed for each of these containers.
pub const MAX_SHARING_PRIVILEGES: usize = 16;
/// The largest length of such a container's name, and of the objection to it, in bytes.
pub const MAX_SHARING_TEXT: usize = 512;
/// The largest number of privileges that are listed for a workload.
pub const MAX_PRIVILEGES: usize = 64;

const MAX_REPOSITORY: usize = 255;

/// A SHA-256 digest, written as `sha256:` and 64 hexadecimal digits (OCI image spec, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

/// The error for text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: write sha256: and 64 hexadecimal digits in lower case")]
pub struct BadDigest(String);

impl Sha256 {
    /// Returns the digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
        Self(digest)
    }

    /// Returns the hexadecimal digits without `sha256:`.
    pub fn hex(&self) -> String {
        let mut digits = String::with_capacity(2 * self.0.len());
        for byte in self.0 {
            // Writing to a string cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        digits
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

/// The name of an image without tag and digest: a registry and a path, such as
/// `registry.example:5000/shop/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

/// The error for text that names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image repository: write REGISTRY/PATH, such as registry.example/shop/web")]
pub struct BadRepository(String);

impl Repository {
    /// Returns the repository of an image reference, read as container runtimes do: without its tag
    /// or digest, and on Docker Hub if it names no registry (`web` is `docker.io/library/web`).
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

    /// Returns the repository as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the registry: a host, and a port unless it is the default one.
    pub fn registry(&self) -> &str {
        self.0.split_once('/').map_or("", |(registry, _)| registry)
    }

    /// Returns the path in the registry.
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

/// An image signature: the signed payload and the signature. It can be checked with the key alone,
/// wherever it comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageSignature {
    /// The payload: JSON in the "simple signing" format (containers-signature(5)).
    pub payload: String,
    /// ECDSA over the payload's SHA-256: ASN.1 in base64.
    pub signature: String,
}

/// The image that a container was started from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Image {
    /// The repository; `None` for an image that was built on the node and never pushed.
    pub repository: Option<Repository>,
    /// The digest of the manifest or index; that of the configuration if the image was never
    /// pushed.
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

/// The findings of a node about a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Measurement {
    /// The runtime that was asked, such as `docker`.
    pub runtime: String,
    /// The images of the workload's container; empty for a pod that has just started.
    pub images: Vec<Image>,
    /// The digest of the configuration: command, names of environment variables, mounts,
    /// privileges.
    pub config: Sha256,
    /// Rights that containers usually do not have, such as `privileged` or `capability NET_ADMIN`.
    pub privileges: Vec<String>,
    /// The other containers in its network namespace, which use the mesh as this workload.
    #[serde(default)]
    pub sharing: Vec<SharingContainer>,
}

/// A container in another one's network namespace: `--network container:ID`,
/// `network_mode: service:NAME`, or a further container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SharingContainer {
    /// The container's name.
    pub name: String,
    /// The image; `None` if it is not known because the container has not started yet.
    pub image: Option<Image>,
    /// The digest of the configuration.
    pub config: Sha256,
    /// Rights that containers usually do not have.
    pub privileges: Vec<String>,
    /// The part of its configuration that the node could not understand.
    #[serde(default)]
    pub objection: Option<String>,
}

impl Measurement {
    /// Returns all known images: those of the workload and of the containers that share its
    /// namespace.
    pub fn all_images(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().chain(self.sharing.iter().filter_map(|other| other.image.as_ref()))
    }

    /// Checks that all sizes are within bounds.
    ///
    /// # Errors
    /// A sentence that names the bound.
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
