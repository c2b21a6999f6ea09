//! Labels: key-value pairs that describe a workload and that policy selects by.

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, collections::BTreeMap, fmt, str::FromStr, sync::Arc};

/// The prefix of keys that carry facts verified by Meshward; users cannot set them.
pub const RESERVED_PREFIX: &str = "meshward/";

/// The largest number of labels of one workload, verified ones included.
pub const MAX_LABELS: usize = 256;

const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 256;

/// The error for a label that is not of the form `key=value`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLabel {
    /// The key is empty, too long, or has a character that keys cannot have.
    #[error(
        "`{0}` is not a label key: use 1 to 128 of a-z, A-Z, 0-9, `.`, `_`, `-` and `/`, beginning \
        with a letter or digit"
    )]
    Key(String),
    /// The value is too long, or has a control character, a comma or a quote.
    #[error(
        "`{0}` is not a label value: use at most 256 printable characters without `,`, `=`, `(`, \
        `)` and quotes"
    )]
    Value(String),
    /// There is no `=`.
    #[error("`{0}` is not a label: write key=value")]
    Form(String),
    /// The key is reserved for verified facts.
    #[error("label `{0}` cannot be set by hand: keys below `meshward/` carry verified facts")]
    Reserved(String),
    /// There are more than [`MAX_LABELS`] labels.
    #[error("{0} labels are too many: one workload may carry {MAX_LABELS}")]
    TooMany(usize),
}

/// A label's key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelKey(Arc<str>);

impl LabelKey {
    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns `true` if the key begins with [`RESERVED_PREFIX`].
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

impl Borrow<str> for LabelKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabelKey {
    type Err = BadLabel;
    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        let fits = (1..=MAX_KEY).contains(&text.len())
            && text.bytes().all(allowed)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if !fits {
            return Err(BadLabel::Key(text.chars().take(MAX_KEY).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for LabelKey {
    type Error = BadLabel;
    fn try_from(text: String) -> Result<Self, BadLabel> {
        text.parse()
    }
}

impl From<LabelKey> for String {
    fn from(key: LabelKey) -> String {
        key.0.to_string()
    }
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Checks a label's value: at most 256 printable characters, none of which has a meaning in
/// selectors.
///
/// # Errors
/// [`BadLabel::Value`].
pub fn check_value(text: &str) -> Result<(), BadLabel> {
    let bad = |c: char| c.is_control() || ",=()\"'".contains(c);
    if text.chars().count() > MAX_VALUE || text.chars().any(bad) {
        return Err(BadLabel::Value(text.chars().take(MAX_VALUE).collect()));
    }
    Ok(())
}

/// A set of labels: each key once, sorted by key. Clones share one map, since a coordinator has a
/// workload's labels in its record, its identity and every snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<LabelKey, String>", into = "BTreeMap<LabelKey, String>")]
pub struct Labels(Arc<BTreeMap<LabelKey, String>>);

impl Labels {
    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns all labels, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&LabelKey, &str)> {
        self.0.iter().map(|(k, v)| (k, v.as_str()))
    }

    /// Returns the number of labels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds labels, which replace those with the same keys.
    ///
    /// # Errors
    /// Fails if the result has more than [`MAX_LABELS`] labels.
    pub fn with_all(self, others: &Self) -> Result<Self, BadLabel> {
        let mut map = BTreeMap::from(self);
        map.extend(others.0.iter().map(|(key, value)| (key.clone(), value.clone())));
        Self::try_from(map)
    }

    /// Removes the label with a key.
    #[must_use]
    pub fn without(mut self, key: &LabelKey) -> Self {
        Arc::make_mut(&mut self.0).remove(key);
        self
    }

    /// Adds a verified fact below [`RESERVED_PREFIX`].
    ///
    /// # Errors
    /// [`BadLabel`] if the fact cannot be a key, or the value cannot be a label's.
    pub fn with_fact(mut self, fact: &str, value: &str) -> Result<Self, BadLabel> {
        check_value(value)?;
        let key: LabelKey = format!("{RESERVED_PREFIX}{fact}").parse()?;
        Arc::make_mut(&mut self.0).insert(key, value.to_owned());
        Ok(self)
    }

    /// Refuses labels that only Meshward may set.
    ///
    /// # Errors
    /// [`BadLabel::Reserved`].
    pub fn check_unreserved(&self) -> Result<(), BadLabel> {
        match self.0.keys().find(|key| key.is_reserved()) {
            Some(key) => Err(BadLabel::Reserved(key.to_string())),
            None => Ok(()),
        }
    }

    /// Parses `key=value` texts; of a key that comes twice, the last value counts.
    ///
    /// # Errors
    /// [`BadLabel`] of the first text that is malformed.
    pub fn parse_each<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadLabel> {
        let mut labels = BTreeMap::new();
        for text in texts {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| BadLabel::Form(text.chars().take(80).collect()))?;
            labels.insert(key.trim().parse()?, value.trim().to_owned());
        }
        Self::try_from(labels)
    }
}

impl TryFrom<BTreeMap<LabelKey, String>> for Labels {
    type Error = BadLabel;
    fn try_from(map: BTreeMap<LabelKey, String>) -> Result<Self, BadLabel> {
        if map.len() > MAX_LABELS {
            return Err(BadLabel::TooMany(map.len()));
        }
        map.values().try_for_each(|value| check_value(value))?;
        Ok(Self(Arc::new(map)))
    }
}

impl From<Labels> for BTreeMap<LabelKey, String> {
    fn from(labels: Labels) -> Self {
        Arc::unwrap_or_clone(labels.0)
    }
}

impl FromStr for Labels {
    type Err = BadLabel;
    /// Parses `a=b,c=d`; empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, BadLabel> {
        Self::parse_each(text.split(',').map(str::trim).filter(|part| !part.is_empty()))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        f.pad(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_printed_alike() {
        let labels: Labels = "app=web, env=prod".parse().unwrap();
        assert_eq!(labels.get("env"), Some("prod"));
        assert_eq!(labels.to_string(), "app=web,env=prod");
        assert_eq!("".parse::<Labels>().unwrap(), Labels::default());
    }

    #[test]
    fn a_reserved_key_cannot_be_set_by_hand() {
        let labels: Labels = "meshward/site=aws".parse().unwrap();
        assert!(matches!(labels.check_unreserved(), Err(BadLabel::Reserved(_))));
    }

    #[test]
    fn malformed_labels_are_refused() {
        for bad in ["app", "=x", "a b=c", "-a=b", "a=b'c"] {
            assert!(bad.parse::<Labels>().is_err(), "{bad}");
        }
    }
}
