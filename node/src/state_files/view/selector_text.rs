//! The form of selectors.

use meshward_types::Selector;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The conversion of selectors, which are kept as text.
pub(super) struct SelectorText;

impl SelectorText {
    pub(super) fn serialize<S: Serializer>(selector: &Selector, to: S) -> Result<S::Ok, S::Error> {
        let text = if selector.is_empty() { String::new() } else { selector.to_string() };
        text.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Selector, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
