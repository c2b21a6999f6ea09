//! The state that handlers share.

use super::{idempotency, shape};
use crate::mesh::Mesh;
use axum::extract::FromRef;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What serves the API.
#[derive(Clone)]
pub struct Api {
    pub(super) mesh: Arc<Mesh>,
    pub(super) shapes: Arc<shape::Shapes>,
    pub(super) answers: Arc<idempotency::Answers>,
    pub(super) watches: Arc<Semaphore>,
}

impl FromRef<Api> for Arc<Mesh> {
    fn from_ref(api: &Api) -> Self {
        api.mesh.clone()
    }
}
