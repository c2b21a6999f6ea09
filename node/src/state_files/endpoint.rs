//! The state of an endpoint beside its keys.

use meshward_runtime::state_files::StateFile;
use serde::{Deserialize, Serialize};

/// The UDP port of an endpoint: peers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortFile {
    pub(crate) port: u16,
}

/// The validity of an endpoint's previous key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreviousKeyFile {
    /// The end of the validity, in seconds since 1970.
    pub(crate) until: u64,
}

/// The limit of the timestamps of an endpoint's handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimestampFile {
    /// All timestamps are below this, in seconds since 1970.
    pub(crate) below: u64,
}

/// A file of format 1: an object, or the number alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum PortFormat1 {
    Object { port: u16 },
    Number(u16),
}

impl StateFile for PortFile {
    fn read_format_1(bytes: &[u8]) -> serde_json::Result<Self> {
        let (PortFormat1::Object { port } | PortFormat1::Number(port)) =
            serde_json::from_slice(bytes)?;
        Ok(Self { port })
    }
}

impl StateFile for PreviousKeyFile {}

impl StateFile for TimestampFile {}
