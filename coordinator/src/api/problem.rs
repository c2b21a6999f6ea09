//! How the coordinator refuses.

use crate::mesh::Refusal;
use axum::http::{Method, StatusCode, Uri};
pub use meshward_runtime::problem::{ApiError, PROBLEM_JSON, documented};

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::About { field, refusal } => {
                return Self::from(Refusal::clone(refusal)).about(*field);
            }
            Refusal::Busy(busy) => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, busy.to_string());
                return error.retry_after(busy.retry_after());
            }
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Missing(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) | Refusal::Stale => StatusCode::CONFLICT,
            Refusal::Changed(_) => StatusCode::PRECONDITION_FAILED,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self::new(status, refusal.to_string())
    }
}

pub async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::missing(format!(
        "there is no {}; GET /v1/openapi.json lists what there is",
        uri.path()
    ))
}

pub async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let text =
        format!("{} does not take {method}; GET /v1/openapi.json says what it takes", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text)
}
