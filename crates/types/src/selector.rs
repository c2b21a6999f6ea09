//! Selectors: requirements that pick workloads by their labels.

use crate::labels::{BadLabel, LabelKey, Labels, check_value};
use serde::{Deserialize, Serialize, de};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Requirements on labels, all of which must hold. The empty selector matches everything.
///
/// In YAML and JSON: `{ app: web, env: { in: [prod, stage] }, tier: { not: test }, team: { exists:
/// true } }`. On a command line: `app=web,env in (prod,stage),tier!=test,team,!old`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(BTreeMap<LabelKey, Requirement>);

/// The requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label exists and has one of these values.
    In(Vec<String>),
    /// The label does not exist, or has none of these values.
    Not(Vec<String>),
    /// The label exists.
    Exists,
    /// The label does not exist.
    Missing,
}

/// The error for text that is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSelector {
    /// A key or value is malformed.
    #[error(transparent)]
    Label(#[from] BadLabel),
    /// A parenthesis is not closed, or a part is not a requirement.
    #[error("`{0}` is not a selector: write app=web,env in (prod,stage),tier!=test,team,!old")]
    Form(String),
    /// A key has two requirements.
    #[error("label `{0}` is required twice")]
    Twice(LabelKey),
}

impl Selector {
    /// Returns `true` if labels fulfil every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, requirement)| requirement.holds(labels.get(key.as_str())))
    }

    /// Returns the requirements by key.
    pub fn requirements(&self) -> impl Iterator<Item = (&LabelKey, &Requirement)> {
        self.0.iter()
    }

    /// Returns the requirement on a label.
    pub fn get(&self, key: &LabelKey) -> Option<&Requirement> {
        self.0.get(key)
    }

    /// Returns the cost of matching: the largest number of values to compare with, plus one.
    pub fn weight(&self) -> u64 {
        let values = |requirement: &Requirement| match requirement {
            Requirement::In(values) | Requirement::Not(values) => values.len(),
            Requirement::Exists | Requirement::Missing => 1,
        };
        1 + self.0.values().map(values).sum::<usize>() as u64
    }

    /// Returns `true` if it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(LabelKey, Requirement)> for Selector {
    fn from_iter<T: IntoIterator<Item = (LabelKey, Requirement)>>(parts: T) -> Self {
        Self(parts.into_iter().collect())
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|v| values.iter().any(|own| own == v)),
            Self::Not(values) => !value.is_some_and(|v| values.iter().any(|own| own == v)),
            Self::Exists => value.is_some(),
            Self::Missing => value.is_none(),
        }
    }
}

impl FromStr for Selector {
    type Err = BadSelector;
    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let mut parts = BTreeMap::new();
        for part in split(text).ok_or_else(|| BadSelector::Form(text.to_owned()))? {
            let (key, requirement) = parse_part(part)?;
            if parts.insert(key.clone(), requirement).is_some() {
                return Err(BadSelector::Twice(key));
            }
        }
        Ok(Self(parts))
    }
}

/// Splits text at the commas outside parentheses; `None` if the parentheses do not match.
pub(crate) fn split(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut from, mut open) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if open => return None,
            ')' if !open => return None,
            '(' | ')' => open = !open,
            ',' if !open => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect();
    (!open).then_some(parts)
}

fn parse_part(part: &str) -> Result<(LabelKey, Requirement), BadSelector> {
    let value = |text: &str| -> Result<String, BadSelector> {
        check_value(text.trim())?;
        Ok(text.trim().to_owned())
    };
    if let Some((head, list)) = part.strip_suffix(')').and_then(|head| head.split_once('(')) {
        let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let words: Vec<&str> = head.split_whitespace().collect();
        return match words[..] {
            [key, "in"] => Ok((key.parse()?, Requirement::In(values))),
            [key, "not", "in"] | [key, "notin"] => Ok((key.parse()?, Requirement::Not(values))),
            _ => Err(BadSelector::Form(part.to_owned())),
        };
    }
    if let Some((key, text)) = part.split_once("!=") {
        return Ok((key.trim().parse()?, Requirement::Not(vec![value(text)?])));
    }
    if let Some((key, text)) = part.split_once('=') {
        return Ok((key.trim().parse()?, Requirement::In(vec![value(text)?])));
    }
    if let Some(key) = part.strip_prefix('!') {
        return Ok((key.trim().parse()?, Requirement::Missing));
    }
    Ok((part.parse()?, Requirement::Exists))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |(key, requirement): (&LabelKey, &Requirement)| match requirement {
            Requirement::In(values) if values.len() == 1 => format!("{key}={}", values[0]),
            Requirement::In(values) => format!("{key} in ({})", values.join(",")),
            Requirement::Not(values) if values.len() == 1 => format!("{key}!={}", values[0]),
            Requirement::Not(values) => format!("{key} notin ({})", values.join(",")),
            Requirement::Exists => key.to_string(),
            Requirement::Missing => format!("!{key}"),
        };
        let text = self.0.iter().map(part).collect::<Vec<_>>().join(",");
        f.pad(if text.is_empty() { "everything" } else { &text })
    }
}

/// The encoding of selectors as text, for `#[serde(with = "as_text")]`: the wire format is not
/// self-describing, as YAML and JSON are.
pub mod as_text {
    use super::Selector;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// Writes a selector.
    ///
    /// # Errors
    /// Fails as the serializer does.
    pub fn serialize<S: Serializer>(selector: &Selector, to: S) -> Result<S::Ok, S::Error> {
        let text = if selector.is_empty() { String::new() } else { selector.to_string() };
        text.serialize(to)
    }

    /// Reads a selector.
    ///
    /// # Errors
    /// Fails if the text is not a selector.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Selector, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A requirement as it is written in YAML and JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "in", default, skip_serializing_if = "Option::is_none")]
    any_of: Option<OneOrMany>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not: Option<OneOrMany>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exists: Option<bool>,
}

struct OneOrMany(Vec<String>);

impl Serialize for OneOrMany {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a label value or a list of them")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                check_value(text).map_err(E::custom)?;
                Ok(OneOrMany(vec![text.to_owned()]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut values = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    check_value(&text).map_err(de::Error::custom)?;
                    values.push(text);
                }
                if values.is_empty() {
                    return Err(de::Error::custom(
                        "an empty list of values selects nothing; name at least one",
                    ));
                }
                Ok(OneOrMany(values))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Requirement {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = Written { any_of: None, not: None, exists: None };
        match self {
            Self::In(values) if values.len() == 1 => return serializer.serialize_str(&values[0]),
            Self::In(values) => written.any_of = Some(OneOrMany(values.clone())),
            Self::Not(values) => written.not = Some(OneOrMany(values.clone())),
            Self::Exists => written.exists = Some(true),
            Self::Missing => written.exists = Some(false),
        }
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Requirement {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Requirement;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a label value, or one of {in: [..]}, {not: ..}, {exists: true|false}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Requirement, E> {
                check_value(text).map_err(E::custom)?;
                Ok(Requirement::In(vec![text.to_owned()]))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Requirement, E> {
                self.visit_str(&value.to_string())
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Requirement, E> {
                self.visit_str(&value.to_string())
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Requirement, E> {
                self.visit_str(&value.to_string())
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Requirement, A::Error> {
                let written = Written::deserialize(de::value::MapAccessDeserializer::new(map))?;
                match (written.any_of, written.not, written.exists) {
                    (Some(OneOrMany(values)), None, None) => Ok(Requirement::In(values)),
                    (None, Some(OneOrMany(values)), None) => Ok(Requirement::Not(values)),
                    (None, None, Some(true)) => Ok(Requirement::Exists),
                    (None, None, Some(false)) => Ok(Requirement::Missing),
                    _ => Err(de::Error::custom("write exactly one of `in`, `not` and `exists`")),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &str) -> bool {
        selector.parse::<Selector>().unwrap().matches(&labels.parse().unwrap())
    }

    #[test]
    fn every_requirement_must_hold() {
        assert!(selects("app=web,env in (prod,stage)", "app=web,env=stage"));
        assert!(!selects("app=web,env in (prod,stage)", "app=web"));
        assert!(selects("env!=dev", "app=web"));
        assert!(!selects("env notin (dev,test)", "env=test"));
        assert!(selects("team,!old", "team=a"));
        assert!(!selects("team,!old", "team=a,old=1"));
        assert!(selects("", "a=b"));
    }

    #[test]
    fn text_and_json_forms_mean_the_same() {
        let text = "app=web,env in (prod,stage),old!=1,team,!x";
        let selector: Selector = text.parse().unwrap();
        let json = serde_json::to_string(&selector).unwrap();
        assert_eq!(serde_json::from_str::<Selector>(&json).unwrap(), selector);
        assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
    }

    #[test]
    fn malformed_selectors_are_refused() {
        for bad in ["app in (a", "a)b", "a b", "a=1,a=2", "x is (1)"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
        for bad in [r#"{"a":{}}"#, r#"{"a":{"in":[]}}"#, r#"{"a":{"on":"x"}}"#, r#"{"a":null}"#] {
            assert!(serde_json::from_str::<Selector>(bad).is_err(), "{bad}");
        }
    }
}
