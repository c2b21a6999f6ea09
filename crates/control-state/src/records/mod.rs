//! The records: everything that the coordinator keeps, in the form in which its database has it.
//!
//! A record is stored as JSON ([`Record`]'s derived form) under a [`RecordKey`]. These types are
//! the database's alone: no message of the wire and no body of the API is part of them, so each of
//! the three can change without the others. [`conversions`] is the one place where they meet.
//!
//! Types of the shared vocabulary that serialize to a string or a map of strings are stored in that
//! form: names, ids, labels, selectors, `accepts` declarations, prefixes, addresses, keys, digests
//! and timestamps (RFC 3339). Structures have a stored form of their own in [`forms`].
//!
//! [`FORMAT`] numbers the form of all records. A change of what is stored is a new format: a
//! migration in the coordinator's store, and a file beside `testdata/format-4.jsonl`, with which a
//! test compares every kind of record byte for byte.

mod access;
mod conversions;
mod drain;
mod form;
mod forms;
mod network;
mod node;
mod policy;
mod quarantine;
mod record;
mod workload;
mod workload_ref;

#[cfg(test)]
mod tests;

pub use access::{CredentialRecord, TokenRecord};
pub use drain::{DrainRecord, DrainTarget};
pub use network::{NetworkRecord, ServiceRecord};
pub use node::{ApprovalRecord, ApprovedNodeRecord, EndpointRecord, NodeRecord, RelayRecord};
pub use policy::PolicyRecord;
pub use quarantine::{QuarantineRecord, TargetRecord};
pub use record::{Mutation, Record, RecordKey, StoredKey};
pub use workload::{
    IdentityRecord, ImageRecord, LabelOverride, RefusedRecord, ReportRecord, WorkloadRecord,
};
pub use workload_ref::WorkloadRef;

/// The format in which records are stored: the number of the migration that leads to it.
pub const FORMAT: u32 = 5;
