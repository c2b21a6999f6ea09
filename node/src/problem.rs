//! How the local API refuses: problem documents (RFC 9457), whoever refuses.

use crate::daemon::Refusal;
use axum::{
    body::to_bytes,
    extract::Request,
    http::{
        Method, StatusCode, Uri,
        header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use meshward_model::api::Problem;
use tracing::error;

/// The media type of a problem document.
const PROBLEM_JSON: &str = "application/problem+json";
/// The most bytes that are read of what a library says of a refusal.
const MAX_TEXT: usize = 8 << 10;
/// After how many seconds it may be asked again what was too early.
const EARLY: &str = "1";

/// What kind of problem a status stands for, for programs and in words. They are those of the coordinator's API.
fn kind(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 => ("malformed", "The request is malformed"),
        404 => ("not-found", "There is no such thing"),
        405 => ("method-not-allowed", "The path does not take this method"),
        413 => ("too-large", "The request is too large"),
        415 => ("unsupported-media-type", "The body is not of a type that is understood"),
        422 => ("invalid", "What was asked makes no sense as it stands"),
        503 => ("unavailable", "The node is not ready for that yet"),
        code if code < 500 => ("refused", "The request is refused"),
        _ => ("failed", "The node has failed"),
    }
}

/// A refusal with a status.
pub fn document(status: StatusCode, detail: String) -> Response {
    let (kind, title) = kind(status);
    let problem = Problem {
        kind: format!("urn:meshward:problem:{kind}"),
        title: title.to_owned(),
        status: status.as_u16(),
        detail,
        field: None,
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    (status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::Early(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = document(status, self.to_string());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static(EARLY));
        }
        response
    }
}

/// Gives a problem document to what fails without one, a panic included.
pub async fn documented(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(panic) => {
            error!(%path, %panic, "a request failed");
            let text = "the node has failed over this request; its log says where";
            return document(StatusCode::INTERNAL_SERVER_ERROR, text.into());
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
    let (own, body) = document(status, detail).into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.extend(own.headers);
    Response::from_parts(parts, body)
}

pub async fn no_such_route(uri: Uri) -> Refusal {
    Refusal::Missing(format!("there is no {} in the node's local API", uri.path()))
}

pub async fn no_such_method(method: Method, uri: Uri) -> Response {
    document(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
