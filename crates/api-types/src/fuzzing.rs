//! Inputs from outside that fuzz targets judge; see the crate `meshward-fuzzing`.

mod samples;

use meshward_types::measurement::Measurement;
use serde::{Serialize, de::DeserializeOwned};

meshward_fuzzing::targets! {
    api_bodies: api_bodies, samples::api_bodies;
}

fn json<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(body) else { return };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("what was read can be written"), written);
}

/// Bodies of the coordinator's API and of a node's local one, and what is kept of workloads: read
/// and written alike.
fn api_bodies(body: &[u8]) {
    json::<crate::CreateToken>(body);
    json::<crate::CreateNetwork>(body);
    json::<crate::ApproveNode>(body);
    json::<crate::SubmitPolicy>(body);
    json::<crate::Rollback>(body);
    json::<crate::Impose>(body);
    json::<crate::QuarantineTarget>(body);
    json::<crate::ExplainQuery>(body);
    json::<crate::CreateCredential>(body);
    json::<crate::ChangeCredential>(body);
    json::<crate::Context>(body);
    json::<crate::RotateKeys>(body);
    json::<crate::CreateDevice>(body);
    json::<crate::ApproveRoute>(body);
    json::<crate::ApproveEgress>(body);
    json::<crate::local::Attach>(body);
    json::<crate::local::Advertise>(body);
    json::<crate::local::AddContainer>(body);
    json::<crate::local::ContainerKey>(body);
    json::<crate::local::Relabel>(body);
    json::<Measurement>(body);
}
