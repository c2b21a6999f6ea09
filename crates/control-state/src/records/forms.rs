//! The stored forms of structures that other crates define: fields, their names and their order
//! stand here, so that nobody changes them who changes a message or a body.
//!
//! A form is a copy of the structure with serde's `remote` attribute. It does not compile any more
//! when the structure gets a field; then somebody decides how that is stored.

use super::form::{self, StoredForm};
use meshward_api_types::Role;
use meshward_types::{
    PolicyFile,
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256, SharingContainer},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};

/// Gives a type the form that a structure with serde's `remote` attribute describes.
macro_rules! stored_as {
    ($type:ty, $form:ident) => {
        impl StoredForm for $type {
            fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $form::serialize(self, serializer)
            }
            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $form::deserialize(deserializer)
            }
        }
    };
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Role", rename_all = "lowercase")]
enum RoleForm {
    Viewer,
    Operator,
    Owner,
    Admin,
}
stored_as!(Role, RoleForm);

#[derive(Serialize, Deserialize)]
#[serde(remote = "PolicyFile")]
struct PolicyFileForm {
    name: String,
    text: String,
}
stored_as!(PolicyFile, PolicyFileForm);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Measurement")]
struct MeasurementForm {
    runtime: String,
    #[serde(with = "form")]
    images: Vec<Image>,
    config: Sha256,
    privileges: Vec<String>,
    #[serde(default, with = "form")]
    sharing: Vec<SharingContainer>,
}
stored_as!(Measurement, MeasurementForm);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Image")]
struct ImageForm {
    repository: Option<Repository>,
    digest: Sha256,
}
stored_as!(Image, ImageForm);

#[derive(Serialize, Deserialize)]
#[serde(remote = "SharingContainer")]
struct SharingContainerForm {
    name: String,
    #[serde(default, with = "form")]
    image: Option<Image>,
    config: Sha256,
    privileges: Vec<String>,
    #[serde(default)]
    objection: Option<String>,
}
stored_as!(SharingContainer, SharingContainerForm);

#[derive(Serialize, Deserialize)]
#[serde(remote = "ImageSignature")]
struct ImageSignatureForm {
    payload: String,
    signature: String,
}
stored_as!(ImageSignature, ImageSignatureForm);

/// The list of signatures in a stored report: always empty, since signatures are stored with the
/// images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoSignatures;

impl Serialize for NoSignatures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(std::iter::empty::<()>())
    }
}

impl<'de> Deserialize<'de> for NoSignatures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}
