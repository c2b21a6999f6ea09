//! The node's files of state: a type for each, apart from messages, bodies of APIs and what the
//! daemon works with, and the conversions between them.
//!
//! | file | type |
//! |---|---|
//! | `workloads/ID.json` | [`WorkloadFile`] |
//! | `relays.json` | [`RelaysFile`] |
//! | `docker.json` | [`DockerFile`] |
//! | `endpoints/NETWORK.port` | [`PortFile`] |
//! | `endpoints/NETWORK.previous` | [`PreviousKeyFile`] |
//! | `endpoints/NETWORK.stamp` | [`TimestampFile`] |
//! | `endpoints/NETWORK.key`, `.previous.key`, `.devices.key` | 32 bytes: the key |
//! | `view`, `view.log` | [`view`] |
//! | `names/NETWORK.json` | [`NamesFile`] |
//! | `flows/NETWORK` | `saved_flows.rs` of the data path |
//!
//! The membership (`node.json`, `removed.json`) is stored by `meshward-runtime`.

mod docker;
mod endpoint;
mod names;
mod relays;
mod view;
mod workload;

pub(crate) use docker::{DockerEndpoint, DockerFile};
pub(crate) use endpoint::{PortFile, PreviousKeyFile, TimestampFile};
pub(crate) use names::NamesFile;
pub(crate) use relays::RelaysFile;
pub(crate) use view::{
    LogHeader, Update, encode_log_header, encode_update, encode_view, read_log_header, read_update,
    read_view,
};
pub(crate) use workload::WorkloadFile;

#[cfg(test)]
mod tests;
