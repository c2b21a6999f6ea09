//! The zone of a mesh's names.

use hickory_proto::rr::Name;
use meshward_types::DomainName;
use std::fmt;

/// The zone that a network's names are in: `mesh` unless the network's policy sets another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneName(Name);

impl ZoneName {
    /// Returns the name of the zone.
    pub(crate) fn apex(&self) -> &Name {
        &self.0
    }
}

impl From<&DomainName> for ZoneName {
    fn from(name: &DomainName) -> Self {
        // It is one already, but for the length that its labels have in a message.
        Self(Name::from_labels(name.as_str().split('.')).unwrap_or_default())
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.to_ascii().trim_end_matches('.'))
    }
}
