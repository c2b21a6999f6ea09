//! Terraform's values, their encoding on the wire (`MessagePack`, with unknown values as an
//! extension), and their conversion to Rust types through JSON.

use crate::{Diagnostic, wire};
use rmpv::Value as Packed;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// The `MessagePack` extension type of an unknown value; one with refinements has 12 (`msgpack` in
/// go-cty).
const UNKNOWN: i8 = 0;

/// A value of a configuration, a plan or a state.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Value {
    /// Null: not set.
    #[default]
    Null,
    /// Unknown until a change is applied.
    Unknown,
    /// `true` or `false`.
    Bool(bool),
    /// An integer or a fraction.
    Number(serde_json::Number),
    /// A text.
    String(String),
    /// A list, or a set in any order.
    List(Vec<Value>),
    /// A map or an object.
    Map(BTreeMap<String, Value>),
}

/// The error of a value that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("Terraform sent a value that cannot be read: {0}")]
pub struct BadValue(String);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Number(value.into())
    }
}

impl Value {
    /// Returns whether the value is null.
    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// Returns whether neither the value nor anything in it is unknown.
    pub fn is_known(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::List(all) => all.iter().all(Self::is_known),
            Self::Map(all) => all.values().all(Self::is_known),
            _ => true,
        }
    }

    /// Returns an attribute of an object: null if the value is not an object, unknown if it is
    /// unknown.
    pub fn get(&self, name: &str) -> &Self {
        match self {
            Self::Map(all) => all.get(name).unwrap_or(&Self::Null),
            Self::Unknown => &Self::Unknown,
            _ => &Self::Null,
        }
    }

    /// Sets an attribute of an object; a value that is not an object becomes one.
    pub fn set(&mut self, name: &str, value: impl Into<Self>) {
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(BTreeMap::new());
        }
        if let Self::Map(all) = self {
            all.insert(name.to_owned(), value.into());
        }
    }

    /// Returns the text of a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the elements of a list or a set; of any other value, none.
    pub fn elements(&self) -> &[Self] {
        match self {
            Self::List(all) => all,
            _ => &[],
        }
    }

    /// Converts the value to a Rust type. Null and unknown attributes are left out, so that the
    /// type's defaults apply.
    ///
    /// # Errors
    /// Fails if the value does not fit, which is a bug: the schema and the type differ.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, Diagnostic> {
        serde_json::from_value(self.to_json()).map_err(|error| {
            Diagnostic::error(
                "A value does not fit",
                format!("{error}. This is a bug in the provider."),
            )
        })
    }

    /// Converts a value of a Rust type.
    ///
    /// # Errors
    /// Fails if the value cannot be written as JSON.
    pub fn of(value: &impl Serialize) -> Result<Self, Diagnostic> {
        let json = serde_json::to_value(value).map_err(|error| {
            Diagnostic::error(
                "A value has no form",
                format!("{error}. This is a bug in the provider."),
            )
        })?;
        Ok(Self::from_json(json))
    }

    /// Converts the value to JSON. Unknown values have no form there: like null ones they are left
    /// out of objects, and are `null` elsewhere.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null | Self::Unknown => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Number(value) => value.clone().into(),
            Self::String(text) => text.clone().into(),
            Self::List(all) => all.iter().map(Self::to_json).collect(),
            Self::Map(all) => {
                let set =
                    all.iter().filter(|(_, value)| !matches!(value, Self::Null | Self::Unknown));
                set.map(|(key, value)| (key.clone(), value.to_json())).collect()
            }
        }
    }

    /// Converts a value from JSON.
    pub fn from_json(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(value) => Self::Number(value),
            serde_json::Value::String(text) => Self::String(text),
            serde_json::Value::Array(all) => {
                Self::List(all.into_iter().map(Self::from_json).collect())
            }
            serde_json::Value::Object(all) => Self::Map(
                all.into_iter().map(|(key, value)| (key, Self::from_json(value))).collect(),
            ),
        }
    }

    pub(crate) fn from_wire(value: Option<&wire::DynamicValue>) -> Result<Self, BadValue> {
        let Some(value) = value else { return Ok(Self::Null) };
        if !value.json.is_empty() {
            let json =
                serde_json::from_slice(&value.json).map_err(|error| BadValue(error.to_string()))?;
            return Ok(Self::from_json(json));
        }
        if value.msgpack.is_empty() {
            return Ok(Self::Null);
        }
        let packed = rmpv::decode::read_value(&mut &value.msgpack[..]);
        Self::from_packed(packed.map_err(|error| BadValue(error.to_string()))?)
    }

    fn from_packed(packed: Packed) -> Result<Self, BadValue> {
        let text = |packed: rmpv::Utf8String| {
            packed.into_str().ok_or_else(|| BadValue("a text that is not UTF-8".into()))
        };
        Ok(match packed {
            Packed::Nil => Self::Null,
            Packed::Boolean(value) => Self::Bool(value),
            Packed::Integer(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => Self::Number(value.into()),
                (None, value) => Self::Number(value.unwrap_or_default().into()),
            },
            Packed::F32(value) => Self::number(value.into())?,
            Packed::F64(value) => Self::number(value)?,
            Packed::String(value) => Self::String(text(value)?),
            Packed::Array(all) => {
                Self::List(all.into_iter().map(Self::from_packed).collect::<Result<_, _>>()?)
            }
            Packed::Map(all) => {
                let entry = |(key, value)| match key {
                    Packed::String(key) => Ok((text(key)?, Self::from_packed(value)?)),
                    other => Err(BadValue(format!("{other} as a key"))),
                };
                Self::Map(all.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
            Packed::Ext(_, _) => Self::Unknown,
            Packed::Binary(_) => return Err(BadValue("bytes".into())),
        })
    }

    fn number(value: f64) -> Result<Self, BadValue> {
        let number = serde_json::Number::from_f64(value);
        number.map(Self::Number).ok_or_else(|| BadValue(format!("the number {value}")))
    }

    pub(crate) fn to_wire(&self) -> wire::DynamicValue {
        let mut msgpack = Vec::new();
        // Writing to memory cannot fail.
        let _ = rmpv::encode::write_value(&mut msgpack, &self.to_packed());
        wire::DynamicValue { msgpack, json: vec![] }
    }

    fn to_packed(&self) -> Packed {
        match self {
            Self::Null => Packed::Nil,
            Self::Unknown => Packed::Ext(UNKNOWN, vec![0]),
            Self::Bool(value) => (*value).into(),
            Self::Number(value) => match (value.as_i64(), value.as_u64()) {
                (Some(value), _) => value.into(),
                (None, Some(value)) => value.into(),
                (None, None) => value.as_f64().unwrap_or_default().into(),
            },
            Self::String(text) => text.as_str().into(),
            Self::List(all) => Packed::Array(all.iter().map(Self::to_packed).collect()),
            Self::Map(all) => Packed::Map(
                all.iter().map(|(key, value)| (key.as_str().into(), value.to_packed())).collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_wire() {
        let mut value = Value::default();
        value.set("name", "shop");
        value.set("mtu", 1420);
        value.set("ratio", Value::Number(serde_json::Number::from_f64(0.5).unwrap()));
        value.set("least", Value::Number((-3).into()));
        value.set("id", Value::Unknown);
        value.set("tags", Value::List(vec!["a".into(), Value::Null, true.into()]));

        let read = Value::from_wire(Some(&value.to_wire())).unwrap();

        assert_eq!(read, value);
        assert!(!read.is_known());
        assert_eq!(read.get("tags").elements().len(), 3);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for bytes in [&[0x91][..], &[0x81, 0x01, 0x01], &[0xc4, 0x01, 0x00], &[0xa1, 0xff]] {
            let sent = wire::DynamicValue { msgpack: bytes.to_vec(), json: vec![] };
            assert!(Value::from_wire(Some(&sent)).is_err(), "{bytes:?}");
        }
        let sent = wire::DynamicValue { msgpack: vec![], json: b"{".to_vec() };
        assert!(Value::from_wire(Some(&sent)).is_err());
    }
}
