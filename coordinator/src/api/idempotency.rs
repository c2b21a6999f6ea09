//! Requests that come again: under one `Idempotency-Key`, a request is done once (draft-ietf-httpapi-idempotency-key-header).

use super::{Api, caller::Caller, problem::ApiError};
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use meshward_model::token::Fingerprint;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// For how long an answer is kept. A restart of the coordinator forgets it: answers have secrets in them, which are not stored.
const KEPT: Duration = Duration::from_secs(3600);
/// The most answers that are kept, and their bytes together.
const MAX_ANSWERS: usize = 1024;
const MAX_BYTES: usize = 16 << 20;
/// The longest answer that is kept.
const MAX_ANSWER: usize = 1 << 20;
const MAX_KEY: usize = 128;

/// The answers that were given of late.
#[derive(Default)]
pub struct Answers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    answers: HashMap<String, Known>,
    /// In the order in which they were given.
    order: VecDeque<(Instant, String)>,
    bytes: usize,
}

/// What is known of a request under a key.
struct Known {
    /// Of the method, the path and the body.
    request: Fingerprint,
    /// Nothing while it is being worked on.
    answer: Option<Answer>,
}

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Does a request, or gives the answer that it has got before.
pub async fn once(State(api): State<Api>, request: Request, next: Next) -> Result<Response, ApiError> {
    let Some(key) = request.headers().get(HEADER).filter(|_| request.method() == Method::POST) else {
        return Ok(next.run(request).await);
    };
    let key = key.to_str().ok().filter(|key| is_key(key)).map(ToOwned::to_owned).ok_or_else(|| {
        let text = "Idempotency-Key is 1 to 128 letters, digits, `-`, `_`, `.` and `:`, such as a UUID";
        ApiError::malformed(text).about("Idempotency-Key")
    })?;
    let (parts, body) = request.into_parts();
    let hash = parts.extensions.get::<Caller>().map(|caller| caller.hash.clone()).unwrap_or_default();
    let body = to_bytes(body, super::MAX_BODY).await.map_err(|_| super::too_large())?;
    let mut said = format!("{} {}\n", parts.method, parts.uri).into_bytes();
    said.extend_from_slice(&body);
    let name = format!("{hash} {key}");
    let answers = api.answers.clone();
    if let Some(answer) = answers.begin(&name, Fingerprint::of(&said), Instant::now())? {
        return Ok(answer.into_response());
    }
    // Whatever becomes of the request, its key is free again unless there is an answer.
    let pending = Pending { answers: &answers, name: &name };
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer broke off: {error}"))
    })?;
    if body.len() <= MAX_ANSWER {
        let answer = Answer { status: parts.status, headers: parts.headers.clone(), body: body.clone() };
        std::mem::forget(pending);
        answers.finish(&name, answer, Instant::now());
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

struct Pending<'a> {
    answers: &'a Arc<Answers>,
    name: &'a str,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.answers.0.lock().answers.remove(self.name);
    }
}

impl Answers {
    /// The answer that a request has got; nothing if it is to be done now.
    fn begin(&self, name: &str, request: Fingerprint, now: Instant) -> Result<Option<Answer>, ApiError> {
        let mut state = self.0.lock();
        state.forget_old(now);
        match state.answers.get(name) {
            None => {}
            Some(known) if known.request != request => {
                let text = "this Idempotency-Key was used for another request; take a new key for each";
                return Err(ApiError::new(StatusCode::CONFLICT, text).about("Idempotency-Key"));
            }
            Some(Known { answer: Some(answer), .. }) => return Ok(Some(answer.clone())),
            Some(Known { answer: None, .. }) => {
                let text = "the same request is being worked on; ask again in a moment";
                return Err(ApiError::new(StatusCode::CONFLICT, text).about("Idempotency-Key"));
            }
        }
        state.answers.insert(name.to_owned(), Known { request, answer: None });
        Ok(None)
    }

    fn finish(&self, name: &str, answer: Answer, now: Instant) {
        let mut state = self.0.lock();
        state.bytes += answer.body.len();
        if let Some(known) = state.answers.get_mut(name) {
            known.answer = Some(answer);
        }
        state.order.push_back((now, name.to_owned()));
        while state.order.len() > MAX_ANSWERS || state.bytes > MAX_BYTES {
            state.forget_first();
        }
    }
}

impl Kept {
    fn forget_old(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.duration_since(*at) >= KEPT) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let known = self.order.pop_front().and_then(|(_, name)| self.answers.remove(&name));
        self.bytes -= known.and_then(|known| known.answer).map_or(0, |answer| answer.body.len());
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.headers, self.body).into_response();
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: usize) -> Answer {
        Answer { status: StatusCode::CREATED, headers: HeaderMap::new(), body: vec![0; bytes].into() }
    }

    #[test]
    fn under_one_key_there_is_one_request() {
        let (answers, request, now) = (Answers::default(), Fingerprint::of(b"a"), Instant::now());
        assert!(answers.begin("k", request, now).unwrap().is_none());
        let busy = answers.begin("k", request, now).err().unwrap().problem();
        assert_eq!(busy.status, 409);
        answers.finish("k", answer(3), now);
        assert_eq!(answers.begin("k", request, now).unwrap().unwrap().body.len(), 3);
        let other = answers.begin("k", Fingerprint::of(b"b"), now).err().unwrap().problem();
        assert_eq!(other.status, 409);
        assert!(other.detail.contains("another request"), "{}", other.detail);
    }

    #[test]
    fn answers_are_few_small_and_for_a_time() {
        let (answers, request, now) = (Answers::default(), Fingerprint::of(b"a"), Instant::now());
        for at in 0..MAX_ANSWERS + 10 {
            answers.begin(&at.to_string(), request, now).unwrap();
            answers.finish(&at.to_string(), answer(10), now);
        }
        assert_eq!(answers.0.lock().answers.len(), MAX_ANSWERS);
        for at in 0..20 {
            answers.begin(&format!("big {at}"), request, now).unwrap();
            answers.finish(&format!("big {at}"), answer(MAX_ANSWER), now);
            assert!(answers.0.lock().bytes <= MAX_BYTES);
        }
        assert!(answers.begin("big 19", request, now + KEPT).unwrap().is_none());
        assert_eq!(answers.0.lock().bytes, 0);
    }
}
