//! Refusals as problem documents (RFC 9457).

use crate::pool::Busy;
use axum::{
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use meshward_api_types::Problem;
use meshward_control_state::Refusal;
use meshward_runtime::problem;
pub(crate) use meshward_runtime::problem::{PROBLEM_JSON, documented};

/// A refusal with its HTTP status.
#[derive(Debug)]
pub struct ApiError(problem::ApiError);

impl ApiError {
    /// Creates a refusal. `detail` says what is wrong and how to mend it.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self(problem::ApiError::new(status, detail))
    }

    /// Creates the refusal of a request that does not conform to the API's document.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self(problem::ApiError::malformed(detail))
    }

    /// Creates the refusal of a request for something that is not there.
    pub fn missing(detail: impl Into<String>) -> Self {
        Self(problem::ApiError::missing(detail))
    }

    /// Returns the refusal as a problem document.
    pub fn problem(&self) -> Problem {
        self.0.problem()
    }

    /// Names the field of the body, or the parameter, that is the reason.
    #[must_use]
    pub fn about(self, field: impl Into<String>) -> Self {
        Self(self.0.about(field))
    }

    /// Sets the seconds after which the request may be sent again (`Retry-After`).
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self(self.0.retry_after(seconds))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl From<problem::ApiError> for ApiError {
    fn from(error: problem::ApiError) -> Self {
        Self(error)
    }
}

impl From<Busy> for ApiError {
    fn from(busy: Busy) -> Self {
        Self::from(Refusal::from(busy))
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::About { field, refusal } => {
                return Self::from(Refusal::clone(refusal)).about(*field);
            }
            Refusal::Busy { reason, retry_after } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, reason);
                return error.retry_after(*retry_after);
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

pub(super) async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::missing(format!(
        "there is no {}; GET /v1/openapi.json lists what there is",
        uri.path()
    ))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let text = format!(
        "{} does not support {method}; GET /v1/openapi.json lists the methods of each path",
        uri.path()
    );
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text)
}
