//! The files in which a member keeps who it is. Certificates and keys are files of their own, in
//! DER and PKCS #8.

use crate::state_files::StateFile;
use meshward_types::NodeName;
use serde::{Deserialize, Serialize};

/// The membership of this machine.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The member's name.
    pub name: NodeName,
    /// The coordinator's `HOST:PORT`.
    pub coordinator: String,
    /// The mesh's id.
    pub mesh: String,
    /// The member's site.
    pub site: Option<String>,
}

/// `node.json` or `relay.json`: the membership.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MembershipFile {
    name: NodeName,
    coordinator: String,
    mesh: String,
    site: Option<String>,
}

/// `removed.json`: the member was removed from its mesh.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RemovedFile {
    /// The time at which it learned that, in seconds since 1970.
    pub(crate) at: u64,
}

impl StateFile for MembershipFile {}

impl StateFile for RemovedFile {
    /// The time alone.
    fn read_format_1(bytes: &[u8]) -> serde_json::Result<Self> {
        Ok(Self { at: serde_json::from_slice(bytes)? })
    }
}

impl From<&Membership> for MembershipFile {
    fn from(membership: &Membership) -> Self {
        let Membership { name, coordinator, mesh, site } = membership.clone();
        Self { name, coordinator, mesh, site }
    }
}

impl From<MembershipFile> for Membership {
    fn from(file: MembershipFile) -> Self {
        let MembershipFile { name, coordinator, mesh, site } = file;
        Self { name, coordinator, mesh, site }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_files::{decode, encode};

    fn membership() -> MembershipFile {
        MembershipFile {
            name: "rack-7".parse().unwrap(),
            coordinator: "mesh.example:7443".into(),
            mesh: "0123456789ab".into(),
            site: Some("aws-eu1".into()),
        }
    }

    #[test]
    fn files_of_every_format_are_read_and_the_newest_is_written_byte_for_byte() {
        for membership_json in [
            &include_bytes!("testdata/format-1/node.json")[..],
            include_bytes!("testdata/format-2/node.json"),
        ] {
            assert_eq!(decode::<MembershipFile>(membership_json).unwrap(), membership());
        }
        for removed_json in [
            &include_bytes!("testdata/format-1/removed.json")[..],
            include_bytes!("testdata/format-2/removed.json"),
        ] {
            assert_eq!(decode::<RemovedFile>(removed_json).unwrap().at, 1_790_000_000);
        }
        let written = [
            (encode(&membership()), &include_bytes!("testdata/format-2/node.json")[..]),
            (
                encode(&RemovedFile { at: 1_790_000_000 }),
                include_bytes!("testdata/format-2/removed.json"),
            ),
        ];
        for (written, golden) in written {
            assert_eq!(String::from_utf8_lossy(&written.unwrap()), String::from_utf8_lossy(golden));
        }
    }
}
