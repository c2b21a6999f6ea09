//! The records: everything that the coordinator knows follows from them.

mod access;
mod node;
mod policy;
mod record;
mod standing;
mod workload;

pub use access::{CredentialRecord, TokenRecord};
pub use node::{ApprovalRecord, ApprovedNodeRecord, EndpointRecord, NodeRecord, RelayRecord};
pub use policy::PolicyRecord;
pub use record::{Mutation, Record, RecordKey};
pub use standing::Standing;
pub use workload::{IdentityRecord, ImageRecord, LabelOverride, RefusedRecord, WorkloadRecord};
