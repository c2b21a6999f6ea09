//! Errors of HTTP APIs as problem documents (RFC 9457).

use axum::{
    body::to_bytes,
    extract::Request,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use meshward_api_types::Problem;
use tracing::error;

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The largest text of a library's error that is read, in bytes.
const MAX_TEXT: usize = 8 << 10;

/// An error with its HTTP status.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    field: Option<String>,
    /// The time after which the caller may try again, in seconds.
    retry_after: Option<u64>,
}

impl ApiError {
    /// Creates an error that says what is wrong and how to fix it.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), field: None, retry_after: None }
    }

    /// Creates the error for a request that does not have the required form.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Creates the error for something that does not exist.
    pub fn missing(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// Creates the error for a body of more than `most` bytes.
    pub fn too_large(most: usize) -> Self {
        let most = match most >> 20 {
            0 => format!("{most} bytes"),
            mebibytes => format!("{mebibytes} MiB"),
        };
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {most}"))
    }

    /// Names the field of the body, or the parameter, that caused the error.
    #[must_use]
    pub fn about(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// Says after how many seconds the request may be repeated.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Returns the error as a document.
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

/// Returns the type of problem that a status stands for, for programs and in words.
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
        503 => ("unavailable", "It is not ready for that yet"),
        507 => ("full", "There is no room to write it down"),
        code if code < 500 => ("refused", "The request is refused"),
        _ => ("failed", "The request has failed, by no mistake of the caller"),
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

/// Serves a request to its end even if the client goes away, so that no change is left half done. A
/// failure without a problem document, a panic included, gets one.
pub async fn documented(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(panic) => {
            error!(%path, %panic, "a request failed");
            let text = "the daemon has failed over this request; its log says where";
            return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
        }
    };
    let status = response.status();
    let fails = status.is_client_error() || status.is_server_error();
    if !fails || response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let said = to_bytes(body, MAX_TEXT).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let detail = if said.is_empty() { kind(status).1.to_owned() } else { said };
    let (own, body) = ApiError::new(status, detail).into_response().into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.extend(own.headers);
    Response::from_parts(parts, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, body::Body, middleware::from_fn, routing::get};
    use tower::ServiceExt;

    async fn panics() -> StatusCode {
        panic!("for a test")
    }

    #[tokio::test]
    async fn whatever_fails_leaves_with_a_problem_document() {
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/text", get(async || (StatusCode::IM_A_TEAPOT, " short and stout ")))
            .route("/own", get(async || ApiError::malformed("no").about("x").retry_after(7)))
            .route("/stranger", get(async || ApiError::new(StatusCode::UNAUTHORIZED, "who?")))
            .route("/fine", get(async || "fine"))
            .layer(from_fn(documented));
        for (path, status, kind, detail) in [
            ("/panics", 500, "failed", "log says where"),
            ("/text", 418, "refused", "short and stout"),
            ("/own", 400, "malformed", "no"),
            ("/stranger", 401, "unauthenticated", "who?"),
            ("/nowhere", 404, "not-found", "There is no such thing"),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            let headers = response.headers().clone();
            assert_eq!(headers[CONTENT_TYPE], PROBLEM_JSON, "{path}");
            assert_eq!(headers.contains_key(RETRY_AFTER), path == "/own");
            assert_eq!(headers.contains_key(WWW_AUTHENTICATE), path == "/stranger");
            let body = to_bytes(response.into_body(), MAX_TEXT).await.unwrap();
            let problem: Problem = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (problem.status, problem.kind),
                (status, format!("urn:meshward:problem:{kind}"))
            );
            assert!(problem.detail.contains(detail), "{path}: {}", problem.detail);
        }
        let request = Request::get("/fine").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(to_bytes(response.into_body(), MAX_TEXT).await.unwrap(), "fine");
    }
}
