//! The stored forms of structures that other crates define: fields, their names and their order
//! stand here, so that nobody changes them who changes a message or a body.
//!
//! A form is a copy of the structure with serde's `remote` attribute. It does not compile any more
//! when the structure gets a field; then somebody decides how that is stored.

use meshward_api_types::Role;
use meshward_types::{
    PolicyFile,
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256, SharingContainer},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};
use std::{collections::BTreeMap, sync::Arc};

/// For `#[serde(with = "form")]`: the stored form of a field.
pub(super) mod form {
    use super::StoredForm;
    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<T: StoredForm, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.write(serializer)
    }

    pub(in super::super) fn deserialize<'de, T: StoredForm, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        T::read(deserializer)
    }
}

/// A type with a stored form other than what it derives.
pub(super) trait StoredForm: Sized {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

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

/// A value that is written in its stored form.
struct Writing<'a, T>(&'a T);

impl<T: StoredForm> Serialize for Writing<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.write(serializer)
    }
}

/// A value that was read from its stored form.
struct Reading<T>(T);

impl<'de, T: StoredForm> Deserialize<'de> for Reading<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
    }
}

impl<T: StoredForm> StoredForm for Vec<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Writing))
    }
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Vec::<Reading<T>>::deserialize(deserializer)?;
        Ok(read.into_iter().map(|Reading(value)| value).collect())
    }
}

impl<T: StoredForm> StoredForm for Option<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(Writing).serialize(serializer)
    }
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Option::<Reading<T>>::deserialize(deserializer)?;
        Ok(read.map(|Reading(value)| value))
    }
}

impl<T: StoredForm> StoredForm for Arc<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        T::write(self, serializer)
    }
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self::new)
    }
}

impl<K, T> StoredForm for BTreeMap<K, T>
where
    K: Serialize + for<'de> Deserialize<'de> + Ord,
    T: StoredForm,
{
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(key, value)| (key, Writing(value))))
    }
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = BTreeMap::<K, Reading<T>>::deserialize(deserializer)?;
        Ok(read.into_iter().map(|(key, Reading(value))| (key, value)).collect())
    }
}

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
