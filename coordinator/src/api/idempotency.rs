//! Requests that come again: under one `Idempotency-Key`, a request is done once
//! (draft-ietf-httpapi-idempotency-key-header).

use super::{caller::Caller, problem::ApiError};
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use meshward_types::token::Fingerprint;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// For how long an answer is kept. A restart of the coordinator forgets it: answers have secrets in
/// them, which are not stored.
const KEPT: Duration = Duration::from_hours(1);
/// The most answers that are kept, and their bytes together: of one credential, whose own oldest
/// give way, and of all, where those of who has most give way.
const MAX_OWN_ANSWERS: usize = 128;
const MAX_OWN_BYTES: usize = 2 << 20;
const MAX_BYTES: usize = 16 << 20;
/// The longest answer that is kept.
const MAX_ANSWER: usize = 1 << 20;
const MAX_KEY: usize = 128;

/// The answers that were given of late.
#[derive(Default)]
pub(super) struct Answers(Mutex<Kept>);

/// By the hash of the credential.
#[derive(Default)]
struct Kept(HashMap<String, Share>);

/// What is kept for one credential: nobody's answers go because of another's requests, unless all
/// together are too many.
#[derive(Default)]
struct Share {
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
pub(super) async fn once(
    State(answers): State<Arc<Answers>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(key) = request.headers().get(HEADER).filter(|_| request.method() == Method::POST)
    else {
        return Ok(next.run(request).await);
    };
    let key = key.to_str().ok().filter(|key| is_key(key)).map(ToOwned::to_owned).ok_or_else(|| {
        let text = "Idempotency-Key is 1 to 128 letters, digits, `-`, `_`, `.` and `:`, such as a \
            UUID";
        ApiError::malformed(text).about("Idempotency-Key")
    })?;
    let (parts, body) = request.into_parts();
    let hash =
        parts.extensions.get::<Caller>().map(|caller| caller.hash.clone()).unwrap_or_default();
    let body = meshward_runtime::body::read(body, super::limits::MAX_BODY).await?;
    let mut said = format!("{} {}\n", parts.method, parts.uri).into_bytes();
    said.extend_from_slice(&body);
    if let Some(answer) = answers.begin(&hash, &key, Fingerprint::of(&said), Instant::now())? {
        return Ok(answer.into_response());
    }
    // Whatever becomes of the request, its key is free again unless there is an answer.
    let pending = Pending { answers: &answers, credential: &hash, key: &key };
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer broke off: {error}"))
    })?;
    if body.len() <= MAX_ANSWER {
        let answer =
            Answer { status: parts.status, headers: parts.headers.clone(), body: body.clone() };
        std::mem::forget(pending);
        answers.finish(&hash, &key, answer, Instant::now());
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

struct Pending<'a> {
    answers: &'a Arc<Answers>,
    credential: &'a str,
    key: &'a str,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut kept = self.answers.0.lock();
        if let Some(share) = kept.0.get_mut(self.credential) {
            share.answers.remove(self.key);
        }
    }
}

impl Answers {
    /// The answer that a request has got; nothing if it is to be done now.
    fn begin(
        &self,
        credential: &str,
        key: &str,
        request: Fingerprint,
        now: Instant,
    ) -> Result<Option<Answer>, ApiError> {
        let mut kept = self.0.lock();
        kept.forget_old(now);
        let share = kept.0.entry(credential.to_owned()).or_default();
        match share.answers.get(key) {
            None => {}
            Some(known) if known.request != request => {
                let text =
                    "this Idempotency-Key was used for another request; take a new key for each";
                return Err(ApiError::new(StatusCode::CONFLICT, text).about("Idempotency-Key"));
            }
            Some(Known { answer: Some(answer), .. }) => return Ok(Some(answer.clone())),
            Some(Known { answer: None, .. }) => {
                let text = "the same request is being worked on; ask again in a moment";
                return Err(ApiError::new(StatusCode::CONFLICT, text).about("Idempotency-Key"));
            }
        }
        share.answers.insert(key.to_owned(), Known { request, answer: None });
        Ok(None)
    }

    fn finish(&self, credential: &str, key: &str, answer: Answer, now: Instant) {
        let mut kept = self.0.lock();
        let share = kept.0.entry(credential.to_owned()).or_default();
        share.bytes += answer.body.len();
        if let Some(known) = share.answers.get_mut(key) {
            known.answer = Some(answer);
        }
        share.order.push_back((now, key.to_owned()));
        while share.order.len() > MAX_OWN_ANSWERS || share.bytes > MAX_OWN_BYTES {
            share.forget_first();
        }
        while kept.0.values().map(|share| share.bytes).sum::<usize>() > MAX_BYTES {
            let Some(largest) = kept.0.values_mut().max_by_key(|share| share.bytes) else { return };
            largest.forget_first();
        }
    }
}

impl Kept {
    fn forget_old(&mut self, now: Instant) {
        self.0.retain(|_, share| {
            while share.order.front().is_some_and(|(at, _)| now.duration_since(*at) >= KEPT) {
                share.forget_first();
            }
            !share.answers.is_empty()
        });
    }
}

impl Share {
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
        Answer {
            status: StatusCode::CREATED,
            headers: HeaderMap::new(),
            body: vec![0; bytes].into(),
        }
    }

    #[test]
    fn under_one_key_there_is_one_request() {
        let (answers, request, now) = (Answers::default(), Fingerprint::of(b"a"), Instant::now());
        assert!(answers.begin("ann", "k", request, now).unwrap().is_none());
        let busy = answers.begin("ann", "k", request, now).err().unwrap().problem();
        assert_eq!(busy.status, 409);
        answers.finish("ann", "k", answer(3), now);
        assert_eq!(answers.begin("ann", "k", request, now).unwrap().unwrap().body.len(), 3);
        assert!(
            answers.begin("bob", "k", request, now).unwrap().is_none(),
            "another's key is another"
        );
        let other = answers.begin("ann", "k", Fingerprint::of(b"b"), now).err().unwrap().problem();
        assert_eq!(other.status, 409);
        assert!(other.detail.contains("another request"), "{}", other.detail);
    }

    #[test]
    fn answers_are_few_small_and_for_a_time_and_nobody_takes_anothers_place() {
        let (answers, request, now) = (Answers::default(), Fingerprint::of(b"a"), Instant::now());
        answers.begin("ann", "one", request, now).unwrap();
        answers.finish("ann", "one", answer(10), now);
        for at in 0..MAX_OWN_ANSWERS + 10 {
            answers.begin("bob", &at.to_string(), request, now).unwrap();
            answers.finish("bob", &at.to_string(), answer(10), now);
        }
        assert_eq!(answers.0.lock().0["bob"].answers.len(), MAX_OWN_ANSWERS);
        let bytes = |who: &str| answers.0.lock().0.get(who).map_or(0, |share| share.bytes);
        for at in 0..20 {
            for who in 0..20 {
                let who = format!("many {who}");
                answers.begin(&who, &format!("big {at}"), request, now).unwrap();
                answers.finish(&who, &format!("big {at}"), answer(MAX_ANSWER), now);
                assert!(bytes(&who) <= MAX_OWN_BYTES);
            }
        }
        let all: usize = answers.0.lock().0.values().map(|share| share.bytes).sum();
        assert!(all <= MAX_BYTES);
        assert!(
            answers.begin("ann", "one", request, now).unwrap().is_some(),
            "hers is still there"
        );
        assert!(answers.begin("ann", "one", request, now + KEPT).unwrap().is_none());
        assert_eq!(answers.0.lock().0.values().map(|share| share.bytes).sum::<usize>(), 0);
    }
}
