//! Identifiers: names, workload ids, identities and revisions.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// The error for a name that is not a DNS label (RFC 1123 §2.1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not a {what}: use 1 to 63 of a-z, 0-9 and `-`, beginning and ending with a \
    letter or digit"
)]
pub struct BadName {
    what: &'static str,
    given: String,
}

fn check(what: &'static str, text: &str) -> Result<(), BadName> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        return Ok(());
    }
    let given = text.chars().take(80).collect();
    Err(BadName { what, given })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                check($what, text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.to_string()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

name!(
    /// The name of a container network, such as `shop`.
    NetworkName,
    "network name"
);
name!(
    /// The name of a node, unique in the mesh.
    NodeName,
    "node name"
);
name!(
    /// The name that people use for a workload; not unique.
    WorkloadName,
    "workload name"
);
name!(
    /// The name of a service, unique in its network.
    ServiceName,
    "service name"
);
name!(
    /// The id of one workload instance, made by its node and never reused.
    WorkloadId,
    "workload id"
);

impl WorkloadName {
    /// Returns the name most like the one that a runtime uses for a container, which allows more
    /// characters; `None` if no character is left.
    pub fn like(text: &str) -> Option<Self> {
        let plain: String = text
            .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(63)
            .collect();
        plain.trim_matches('-').parse().ok()
    }
}

/// The number of an identity: a label set as policy sees it. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityId(pub u32);

impl fmt::Display for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A revision: the coordinator's monotonic version number of everything that it distributes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

impl Revision {
    /// Returns the revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl FromStr for Revision {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('r').unwrap_or(text).parse();
        number.map(Self).map_err(|_| format!("`{text}` is not a revision: write its number"))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "shop", "aws-eu1", "0x"] {
            assert_eq!(good.parse::<NetworkName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "Shop", "a.b", "a b", long.as_str()] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_found_for_whatever_a_runtime_calls_a_container() {
        assert_eq!(WorkloadName::like("/Shop_Web.1").unwrap().as_str(), "shop-web-1");
        assert_eq!(WorkloadName::like(&"a.".repeat(60)).unwrap().as_str().len(), 63);
        assert!(WorkloadName::like("///").is_none());
    }

    #[test]
    fn a_name_from_json_is_checked_too() {
        let error = serde_json::from_str::<NodeName>("\"A/B\"").unwrap_err();
        assert!(error.to_string().contains("is not a node name"), "{error}");
    }
}
