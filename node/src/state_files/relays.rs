//! The relays that the coordinator has named last.

use meshward_control_proto::relay::RelaySpec;
use meshward_runtime::state_files::StateFile;
use meshward_types::{NodeName, relay::RelayNumber};
use serde::{Deserialize, Serialize};

/// The relays, apart from the coordinator.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelaysFile {
    relays: Vec<RelayEntry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RelayEntry {
    number: RelayNumber,
    name: NodeName,
    /// `HOST:PORT` each.
    addresses: Vec<String>,
    stun_port: u16,
}

impl StateFile for RelaysFile {
    /// The list alone.
    fn read_format_1(bytes: &[u8]) -> serde_json::Result<Self> {
        Ok(Self { relays: serde_json::from_slice(bytes)? })
    }
}

impl From<&[RelaySpec]> for RelaysFile {
    fn from(specs: &[RelaySpec]) -> Self {
        let entry = |spec: &RelaySpec| {
            let RelaySpec { number, name, addresses, stun_port } = spec.clone();
            RelayEntry { number, name, addresses, stun_port }
        };
        Self { relays: specs.iter().map(entry).collect() }
    }
}

impl From<RelaysFile> for Vec<RelaySpec> {
    fn from(file: RelaysFile) -> Self {
        let spec = |entry: RelayEntry| {
            let RelayEntry { number, name, addresses, stun_port } = entry;
            RelaySpec { number, name, addresses, stun_port }
        };
        file.relays.into_iter().map(spec).collect()
    }
}
