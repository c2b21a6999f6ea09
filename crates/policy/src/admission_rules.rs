//! The rules of admission, patterns of images, and keys that sign images.

use base64::{Engine, prelude::BASE64_STANDARD};
use meshward_types::{
    Selector,
    measurement::{Image, ImageSignature, Repository, Sha256},
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::{Deserialize, Serialize, Serializer};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// A rule of admission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdmissionRule {
    /// The name, unique in the policy.
    pub name: String,
    /// The workloads that it applies to; all if it is empty.
    #[serde(rename = "for", skip_serializing_if = "Selector::is_empty")]
    pub who: Selector,
    /// The repositories that images may come from; any if it is empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImagePattern>,
    /// The keys, one of which must have signed each image; none is needed if it is empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<String>,
    /// The permitted configurations; any if it is empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<Sha256>,
    /// The permitted privileges, which containers usually do not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub privileges: Vec<String>,
    /// The treatment of containers that share their network namespace.
    #[serde(skip_serializing_if = "Shared::is_default")]
    pub shared: Shared,
}

/// The treatment of containers that share the network namespace of a workload, and whose packets
/// are the workload's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// They must meet the workload's requirements.
    #[default]
    #[serde(rename = "judge")]
    Evaluate,
    /// They may be anything.
    Allow,
}

impl Shared {
    /// Returns whether this is the default, which is left out of what is written.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A pattern of repositories: one by name, all below a prefix that ends with `/*`, or `*` for every
/// image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePattern {
    /// Every image, also one that was never in a registry.
    Any,
    /// Everything below a registry or a path in it; the text ends with `/`.
    Below(String),
    /// One repository.
    One(Repository),
}

impl ImagePattern {
    pub(crate) fn matches(&self, image: &Image) -> bool {
        match (self, &image.repository) {
            (Self::Any, _) => true,
            (Self::Below(prefix), Some(repository)) => {
                repository.as_str().starts_with(prefix.as_str())
            }
            (Self::One(one), Some(repository)) => one == repository,
            (_, None) => false,
        }
    }
}

impl FromStr for ImagePattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let Some(prefix) = text.strip_suffix("/*") else {
            return Repository::of_reference(text)
                .map(Self::One)
                .map_err(|error| error.to_string());
        };
        // Parsed with an added path, so that the first part is read as a registry where that is
        // meant.
        let whole = Repository::of_reference(&format!("{prefix}/x")).map_err(|_| {
            format!(
                "`{text}` is no pattern: write REGISTRY/PATH, REGISTRY/PATH/* for all below \
                it, or *"
            )
        })?;
        Ok(Self::Below(whole.as_str().trim_end_matches('x').to_owned()))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
            Self::One(repository) => write!(f, "{repository}"),
        }
    }
}

impl Serialize for ImagePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A key that signs images: ECDSA on P-256, as cosign and skopeo use it.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    pem: String,
    /// The point, uncompressed (SEC 1 §2.3.3).
    point: Vec<u8>,
}

/// The bytes before an uncompressed P-256 point in a `SubjectPublicKeyInfo` (RFC 5480 §2).
pub(crate) const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl FromStr for SigningKey {
    type Err = String;
    fn from_str(pem: &str) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
            "this is no public key: put in the whole PEM text, from -----BEGIN PUBLIC KEY----- on \
            (`cosign public-key`, or the .pub file)"
        })?;
        match der.as_ref().strip_prefix(&P256) {
            Some(point) if point.len() == 65 && point[0] == 4 => {
                Ok(Self { pem: pem.trim().to_owned(), point: point.to_vec() })
            }
            _ => {
                Err("this is no key on P-256: image signatures of cosign and skopeo are made with \
                ECDSA P-256 keys"
                    .into())
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", Sha256::of(&self.point))
    }
}

impl Serialize for SigningKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pem)
    }
}

impl SigningKey {
    /// Returns `true` if a signature was made with this key.
    pub(crate) fn signed(&self, signature: &ImageSignature) -> bool {
        let Ok(bytes) = BASE64_STANDARD.decode(&signature.signature) else { return false };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        key.verify(signature.payload.as_bytes(), &bytes).is_ok()
    }
}

/// The keys of a policy, by name.
pub type Keys = BTreeMap<String, SigningKey>;
