//! Conversion of the YAML tree into typed values, with the span of what does not fit.

use super::tree::{At, Kind, Node};
use serde::{
    Deserialize,
    de::{
        self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
        VariantAccess, Visitor,
    },
    forward_to_deserialize_any,
};
use std::fmt;

/// A value that does not fit, and its span.
#[derive(Debug)]
pub struct Misfit {
    pub at: Option<At>,
    pub text: String,
}

impl Misfit {
    fn at(self, at: At) -> Self {
        Self { at: self.at.or(Some(at)), ..self }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self { at: None, text: text.to_string() }
    }

    fn invalid_type(found: de::Unexpected, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Str(text) => format!("`{}`", text.chars().take(60).collect::<String>()),
            de::Unexpected::Bool(value) => format!("`{value}`"),
            de::Unexpected::Unsigned(value) => format!("`{value}`"),
            de::Unexpected::Signed(value) => format!("`{value}`"),
            de::Unexpected::Float(value) => format!("`{value}`"),
            de::Unexpected::Seq => "a list".into(),
            de::Unexpected::Map => "a map".into(),
            de::Unexpected::Unit => "nothing".into(),
            other => other.to_string(),
        };
        Self::custom(format!("{expected} was expected here, not {found}"))
    }

    fn invalid_value(found: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(unknown(field, expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(unknown(variant, expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("`{field}` is missing"))
    }
}

/// Returns the error for a word that is not one of the known ones.
pub(super) fn unknown(word: &str, known: &[&str]) -> String {
    let word: String = word.chars().take(60).collect();
    match super::problems::did_you_mean(&word, known.iter().copied()) {
        Some(mend) => format!("`{word}` is not known here; {mend}"),
        None => {
            let known: Vec<String> = known.iter().map(|known| format!("`{known}`")).collect();
            format!("`{word}` is not known here; write {}", known.join(", "))
        }
    }
}

/// Converts a node into a typed value.
///
/// # Errors
/// [`Misfit`], with the innermost span.
pub(super) fn value<'a, T: Deserialize<'a>>(node: &'a Node) -> Result<T, Misfit> {
    T::deserialize(node).map_err(|misfit| misfit.at(node.at))
}

fn typed<'de, V: Visitor<'de>>(text: &'de str, visitor: V) -> Result<V::Value, Misfit> {
    match text {
        "true" | "True" | "TRUE" => return visitor.visit_bool(true),
        "false" | "False" | "FALSE" => return visitor.visit_bool(false),
        _ => {}
    }
    // Only text written like a number is one: 007 and +7 are text.
    match (text.parse::<u64>(), text.parse::<i64>()) {
        (Ok(number), _) if number.to_string() == text => visitor.visit_u64(number),
        (_, Ok(number)) if number.to_string() == text => visitor.visit_i64(number),
        _ => visitor.visit_borrowed_str(text),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let done = match &self.kind {
            _ if self.is_nothing() => visitor.visit_unit(),
            Kind::Scalar { text, plain: true } => typed(text, visitor),
            Kind::Scalar { text, plain: false } => visitor.visit_borrowed_str(text),
            Kind::List(items) => visitor.visit_seq(Items(items.iter())),
            Kind::Map(entries) => visitor.visit_map(Entries { left: entries.iter(), value: None }),
        };
        done.map_err(|misfit| misfit.at(self.at))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.text() {
            Some(text) if !self.is_nothing() => {
                visitor.visit_borrowed_str(text).map_err(|misfit: Misfit| misfit.at(self.at))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.text() {
            Some(text) => {
                visitor.visit_borrowed_str(text).map_err(|misfit: Misfit| misfit.at(self.at))
            }
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if self.is_nothing() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let variant = match &self.kind {
            Kind::Scalar { .. } => visitor.visit_enum(Variant { name: self, value: None }),
            Kind::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant { name: &entries[0].0, value: Some(&entries[0].1) })
            }
            Kind::Map(_) | Kind::List(_) => {
                return Err(de::Error::custom(format!(
                    "one word was expected here, not {}",
                    self.called()
                )));
            }
        };
        variant.map_err(|misfit| misfit.at(self.at))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Misfit> for &'de Node {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Misfit;
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let Some(node) = self.0.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|misfit| misfit.at(node.at))
    }
}

struct Entries<'a> {
    left: std::slice::Iter<'a, (Node, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Misfit> {
        let Some((key, value)) = self.left.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key).map(Some).map_err(|misfit| misfit.at(key.at))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Misfit> {
        let value = self.value.take().ok_or_else(|| de::Error::custom("a value without a key"))?;
        seed.deserialize(value).map_err(|misfit| misfit.at(value.at))
    }
}

struct Variant<'a> {
    name: &'a Node,
    value: Option<&'a Node>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Misfit;
    type Variant = Self;
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Misfit> {
        let variant = seed.deserialize(self.name).map_err(|misfit| misfit.at(self.name.at))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        match self.value {
            None => Ok(()),
            Some(value) => Err(Misfit::at(
                de::Error::custom("this word stands alone, without a value"),
                value.at,
            )),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Misfit> {
        match self.value {
            Some(value) => seed.deserialize(value).map_err(|misfit| misfit.at(value.at)),
            None => Err(Misfit::at(
                de::Error::custom("this word wants a value, as in `{ word: value }`"),
                self.name.at,
            )),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Misfit> {
        Err(de::Error::custom("a list was not expected here"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Misfit> {
        Err(de::Error::custom("a map was not expected here"))
    }
}
