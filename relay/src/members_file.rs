//! The file of the nodes that a relay serves: it goes on serving them while the coordinator is
//! away.

use meshward_runtime::state_files::StateFile;
use meshward_types::NodeName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `members.json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembersFile {
    /// The nodes, and the fingerprints of their keys.
    pub(crate) members: BTreeMap<NodeName, String>,
}

impl StateFile for MembersFile {
    /// The map alone.
    fn read_format_1(bytes: &[u8]) -> serde_json::Result<Self> {
        Ok(Self { members: serde_json::from_slice(bytes)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_runtime::state_files::{decode, encode};

    #[test]
    fn members_of_every_format_are_read_and_the_newest_is_written() {
        let newest = "{\n  \"format\": 2,\n  \"members\": {\n    \"rack-7\": \"ab12\"\n  }\n}";
        let members = MembersFile {
            members: BTreeMap::from([("rack-7".parse().unwrap(), "ab12".to_owned())]),
        };
        for file in [r#"{"rack-7":"ab12"}"#, newest] {
            assert_eq!(decode::<MembersFile>(file.as_bytes()).unwrap(), members);
        }
        assert_eq!(String::from_utf8(encode(&members).unwrap()).unwrap(), newest);
    }
}
