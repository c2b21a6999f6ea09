//! How a refusal looks: problem documents (RFC 9457), whoever refuses.

use crate::mesh::Refusal;
use axum::{
    body::to_bytes,
    extract::Request,
    http::{
        HeaderValue, Method, StatusCode, Uri,
        header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use meshward_model::api::Problem;
use tracing::error;

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The most bytes that are read of what a library says of a refusal.
const MAX_TEXT: usize = 8 << 10;

/// A refusal with its HTTP status.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    field: Option<String>,
    /// After how many seconds the caller may try again.
    retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), field: None, retry_after: None }
    }

    /// A request that does not have the form that the API's document says.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// What is asked for is not there.
    pub fn missing(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// The same, because of one field of the body or one parameter.
    pub fn about(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// The refusal as a document.
    pub fn problem(&self) -> Problem {
        let (kind, title) = kind(self.status);
        Problem {
            kind: format!("urn:meshward:problem:{kind}"),
            title: title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            field: self.field.clone(),
        }
    }
}

/// What kind of problem a status stands for, for programs and in words.
fn kind(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 => ("malformed", "The request is malformed"),
        401 => ("unauthenticated", "The request has no valid credential"),
        403 => ("forbidden", "The credential does not reach that far"),
        404 => ("not-found", "There is no such thing"),
        405 => ("method-not-allowed", "The path does not take this method"),
        409 => ("conflict", "That cannot be done as things are"),
        410 => ("gone", "That is too long ago"),
        412 => ("changed", "It has been changed meanwhile"),
        413 => ("too-large", "The request is too large"),
        415 => ("unsupported-media-type", "The body is not of a type that is understood"),
        422 => ("invalid", "What was asked makes no sense as it stands"),
        429 => ("too-many", "There are too many such requests"),
        503 => ("unavailable", "The coordinator is not ready"),
        507 => ("full", "There is no room to write it down"),
        code if code < 500 => ("refused", "The request is refused"),
        _ => ("failed", "The coordinator has failed"),
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::About { field, refusal } => {
                return Self::from(Refusal::clone(refusal)).about(*field);
            }
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Busy(busy) => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, busy.to_string());
                return Self { retry_after: Some(busy.retry_after()), ..error };
            }
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

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = (self.status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Bearer realm=\"meshward\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, how);
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Serves a request to its end, though the client may go away: a change that has begun is not left half done. What fails without a
/// problem document, a panic included, gets one.
pub async fn documented(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(panic) => {
            error!(%path, %panic, "a request failed");
            let text = "the coordinator has failed over this request; its log says where";
            return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
        }
    };
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    let fails = status.is_client_error() || status.is_server_error();
    if !fails || kind.is_some_and(|kind| kind == PROBLEM_JSON) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let said = to_bytes(body, MAX_TEXT).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let detail = if said.is_empty() { kind_of(status).to_owned() } else { said };
    let (own, body) = ApiError::new(status, detail).into_response().into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.extend(own.headers);
    Response::from_parts(parts, body)
}

fn kind_of(status: StatusCode) -> &'static str {
    kind(status).1
}

pub async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::missing(format!("there is no {}; GET /v1/openapi.json lists what there is", uri.path()))
}

pub async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} does not take {method}; GET /v1/openapi.json says what it takes", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text)
}
