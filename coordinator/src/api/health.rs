//! Health checks, without authentication.

use super::problem::ApiError;
use crate::mesh::Mesh;
use axum::{Json, extract::State, http::StatusCode};
use meshward_api_types::{Health, Version};
use std::{sync::Arc, time::Duration};

/// Time limit for the store to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers if the process runs.
#[utoipa::path(get, path = "/healthz", tag = "health", operation_id = "healthz",
    responses((status = 200, body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".into() })
}

/// Answers 200 if the database answers, else 503.
#[utoipa::path(get, path = "/readyz", tag = "health", operation_id = "readyz",
    responses((status = 200, body = Health)))]
pub(super) async fn readyz(State(mesh): State<Arc<Mesh>>) -> Result<Json<Health>, ApiError> {
    let unready = |why: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why);
    match tokio::time::timeout(PATIENCE, mesh.audit(None, 1)).await {
        Ok(Ok(_)) => Ok(Json(Health { status: "ready".into() })),
        Ok(Err(_)) => Err(unready("the store cannot be read; see the coordinator's log".into())),
        Err(_) => Err(unready(format!("the store does not answer within {PATIENCE:?}"))),
    }
}

/// Returns the version of the coordinator, and of its API.
#[utoipa::path(get, path = "/version", tag = "health", operation_id = "version",
    responses((status = 200, body = Version)))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION").into(), api: "v1".into() })
}
