//! The state that handlers share.

use super::{idempotency, shape};
use crate::mesh::Mesh;
use axum::extract::FromRef;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The state of the API.
#[derive(Clone)]
pub struct Api {
    /// The mesh.
    pub(super) mesh: Arc<Mesh>,
    /// The forms of all requests.
    pub(super) shapes: Arc<shape::Shapes>,
    /// The answers to requests with an `Idempotency-Key`.
    pub(super) answers: Arc<idempotency::Answers>,
    /// The permits of watches.
    pub(super) watches: Arc<Semaphore>,
}

impl FromRef<Api> for Arc<Mesh> {
    fn from_ref(api: &Api) -> Self {
        api.mesh.clone()
    }
}
