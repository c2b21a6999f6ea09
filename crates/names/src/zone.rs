//! The zone of a mesh's names.

use hickory_proto::rr::Name;
use std::{fmt, str::FromStr};

/// Labels of a zone at the most, so that the names in it stay short.
const MAX_LABELS: usize = 8;
/// Characters of a zone at the most: a name in it has up to four labels of 64 bytes before it.
const MAX_LENGTH: usize = 100;

/// The error for a text that is no zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not a zone: write a domain name of at most {MAX_LABELS} labels of a-z, 0-9 and \
    `-`, such as `mesh` or `mesh.example.com`"
)]
pub struct BadZone {
    given: String,
}

/// The zone that a network's names are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneName(Name);

impl ZoneName {
    /// Returns the name of the zone.
    pub(crate) fn apex(&self) -> &Name {
        &self.0
    }
}

impl FromStr for ZoneName {
    type Err = BadZone;
    fn from_str(text: &str) -> Result<Self, BadZone> {
        let bad = || BadZone { given: text.chars().take(80).collect() };
        let labels: Vec<&str> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_label = |label: &&str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_good = text.len() <= MAX_LENGTH
            && labels.len() <= MAX_LABELS
            && labels.iter().all(is_label)
            && labels.last() != Some(&"arpa");
        if !is_good {
            return Err(bad());
        }
        Name::from_labels(labels).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.to_ascii().trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_a_domain_name() {
        for text in ["mesh", "mesh.example.com"] {
            assert_eq!(text.parse::<ZoneName>().unwrap().to_string(), text);
        }
        for text in ["", ".", "a..b", "-a", "A", "in-addr.arpa", &"a".repeat(64)] {
            assert!(text.parse::<ZoneName>().is_err(), "{text}");
        }
    }
}
