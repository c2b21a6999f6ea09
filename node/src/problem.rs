//! Refusals of the local API.

use crate::refusal::Refusal;
use axum::{
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
pub(crate) use meshward_runtime::problem::{ApiError, documented};

/// The time after which a request that came too early may be repeated, in seconds.
const EARLY: u64 = 1;

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Missing(_) => StatusCode::NOT_FOUND,
            Refusal::Changed(_) => StatusCode::PRECONDITION_FAILED,
            Refusal::Early(_) => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string())
                    .retry_after(EARLY);
            }
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, refusal.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        ApiError::from(self).into_response()
    }
}

pub(crate) async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::missing(format!("there is no {} in the node's local API", uri.path()))
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
