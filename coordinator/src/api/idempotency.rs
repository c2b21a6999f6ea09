//! Idempotency of requests: with one `Idempotency-Key`, a request is carried out once
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
/// The header that marks a repeated answer.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The time for which an answer is kept. A restart of the coordinator forgets it: answers contain
/// secrets, which are not stored.
const KEPT: Duration = Duration::from_hours(1);
/// The maximum number of answers kept for one credential; the oldest are dropped first.
const MAX_OWN_ANSWERS: usize = 128;
/// The maximum size of the answers kept for one credential, in bytes.
const MAX_OWN_BYTES: usize = 2 << 20;
/// The maximum size of all answers, in bytes; the credential with the largest share loses its
/// oldest first.
const MAX_BYTES: usize = 16 << 20;
/// The maximum size of an answer that is kept, in bytes.
const MAX_ANSWER: usize = 1 << 20;
const MAX_KEY: usize = 128;

/// The recent answers.
#[derive(Default)]
pub(super) struct Answers(Mutex<Kept>);

/// The answers by the hash of the credential.
#[derive(Default)]
struct Kept(HashMap<String, Share>);

/// The answers kept for one credential. Requests of others do not displace them, unless all answers
/// together are too large.
#[derive(Default)]
struct Share {
    answers: HashMap<String, Known>,
    /// The times and keys of the answers, the oldest first.
    order: VecDeque<(Instant, String)>,
    bytes: usize,
}

/// A request under a key, and its answer once there is one.
struct Known {
    /// The fingerprint of method, path and body.
    request: Fingerprint,
    /// `None` while the request is being carried out.
    answer: Option<Answer>,
}

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Carries out a request, or repeats the answer that it got before.
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
    let mut contents = format!("{} {}\n", parts.method, parts.uri).into_bytes();
    contents.extend_from_slice(&body);
    if let Some(answer) = answers.begin(&hash, &key, Fingerprint::of(&contents), Instant::now())? {
        return Ok(answer.into_response());
    }
    // The key becomes free again unless there is an answer, whatever happens to the request.
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
    /// Returns the answer that a request got before; `None` if it is to be carried out now.
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
                    "this Idempotency-Key was used for another request; use a new key for each";
                return Err(ApiError::new(StatusCode::CONFLICT, text).about("Idempotency-Key"));
            }
            Some(Known { answer: Some(answer), .. }) => return Ok(Some(answer.clone())),
            Some(Known { answer: None, .. }) => {
                let text = "the same request is being carried out; ask again in a moment";
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
    fn one_key_is_for_one_request() {
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
    fn answers_are_bounded_and_expire_and_do_not_displace_those_of_others() {
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
