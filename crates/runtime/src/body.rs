//! Request bodies: read with a bound, and refused in a way that lets the client read the answer.

use crate::problem::ApiError;
use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
};
use http_body_util::BodyExt;
use std::time::Duration;

/// The multiple of the limit that is still read of a body that is too large, and the time for it. A
/// client that is not read from while it sends never reads the answer.
const LINGER: usize = 64;
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Reads a body of at most `most` bytes.
///
/// # Errors
/// Fails if the body is too large, or ends too early.
pub async fn read(mut body: Body, most: usize) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::malformed(format!("the body broke off: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > most {
            let left = most.saturating_mul(LINGER);
            let _ = tokio::time::timeout(LINGER_TIME, discard(body, left)).await;
            return Err(ApiError::too_large(most));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

/// Reads up to `left` bytes of a body and discards them.
async fn discard(mut body: Body, mut left: usize) {
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

/// Refuses a body that is not declared as JSON.
///
/// # Errors
/// Fails if it has another media type, or none.
pub fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON; send the header `content-type: application/json`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound_and_the_rest_of_a_larger_one_is_forgotten() {
        let body = |length: usize| Body::from(vec![7; length]);
        assert_eq!(read(body(10), 10).await.unwrap().len(), 10);
        for length in [11, 1000] {
            let problem = read(body(length), 10).await.unwrap_err().problem();
            assert_eq!((problem.status, &*problem.kind), (413, "urn:meshward:problem:too-large"));
        }
    }
}
