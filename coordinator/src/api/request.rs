//! Extractors of a request's body, path, parameters and preconditions.

use super::{caller::Caller, problem::ApiError, state::Api};
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, MatchedPath, Path, Query, Request, State},
    http::{
        header::{ETAG, IF_MATCH},
        request::Parts,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use meshward_control_state::{Plan, Refusal};
use meshward_runtime::body;
use meshward_types::token::Fingerprint;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The maximum number of ETags in a precondition.
const MAX_TAGS: usize = 16;

#[derive(Deserialize)]
struct Switches {
    #[serde(default)]
    dry_run: bool,
}

/// Refuses parameters that the operation does not have, and records a dry run. It comes after
/// authentication.
pub(super) async fn shaped(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    if let Some(path) = parts.extensions.get::<MatchedPath>() {
        let query = parts.uri.query().unwrap_or_default();
        api.shapes.check_query(&parts.method, path.as_str(), query)?;
    }
    let Params(Switches { dry_run }) = Params::read(&parts)?;
    if let Some(caller) = parts.extensions.get_mut::<Caller>() {
        caller.context.dry_run = dry_run;
    }
    Ok(next.run(Request::from_parts(parts, body)).await)
}

/// The parameters of the query.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> Params<T> {
    fn read(parts: &Parts) -> Result<Self, ApiError> {
        let read = Query::try_from_uri(&parts.uri).map_err(|error| {
            let text = error.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            ApiError::malformed(format!("a parameter is malformed: {text}"))
        })?;
        Ok(Self(read.0))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::read(parts)
    }
}

/// The variables of the path.
pub(super) struct At<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Invalid URL: ").unwrap_or(&text);
                Err(ApiError::malformed(format!("the path is malformed: {text}")))
            }
        }
    }
}

/// A JSON body that conforms to the schema in the API's document.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        body::check_json(request.headers())?;
        let (method, path) =
            (request.method().clone(), request.extensions().get::<MatchedPath>().cloned());
        let bytes = body::read(request.into_body(), super::limits::MAX_BODY).await?;
        let mut body: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::malformed(format!("the body is no JSON: {error}")))?;
        whole(&mut body);
        if let Some(path) = path {
            api.shapes.check_body(&method, path.as_str(), &body)?;
        }
        serde_path_to_error::deserialize(&body).map(Self).map_err(|error| {
            let (path, why) = (error.path().to_string(), error.inner().to_string());
            match path.as_str() {
                "." | "?" => ApiError::malformed(format!("the body does not fit: {why}")),
                path => ApiError::malformed(format!("the field `{path}`: {why}")).about(path),
            }
        })
    }
}

/// Converts whole numbers to integers, however they are written: to JSON Schema, `1.0` is one
/// (2020-12, §6.1.1).
fn whole(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or_default();
            if float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 {
                *value = (float as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Object(fields) => fields.values_mut().for_each(whole),
        _ => {}
    }
}

/// Returns the `ETag` of a state.
pub(super) fn etag(state: &impl Serialize) -> String {
    let text = serde_json::to_vec(state).unwrap_or_default();
    format!("\"{:.32}\"", Fingerprint::of(&text).to_string())
}

/// Returns the answer with one resource, and its state as `ETag`.
pub(super) fn with_state(thing: &impl Serialize) -> Response {
    ([(ETAG, etag(thing))], Json(thing)).into_response()
}

/// The states that a write may overwrite (`If-Match`, RFC 9110 §13.1.1).
#[derive(Debug, Clone, Default)]
pub(super) struct Precondition(Option<Vec<String>>);

impl Precondition {
    /// Refuses a write if the resource is not in one of the states.
    ///
    /// # Errors
    /// [`Refusal::Changed`].
    pub(super) fn check(&self, current: Option<&str>) -> Result<(), Refusal> {
        let Some(wanted) = &self.0 else { return Ok(()) };
        let fits = |tag: &String| tag == "*" || Some(tag.as_str()) == current;
        match (current, wanted.iter().any(fits)) {
            (Some(_), true) => Ok(()),
            (Some(current), false) => Err(Refusal::Changed(format!(
                "it has been changed meanwhile: its ETag is {current} now; read it again, and \
                decide anew"
            ))),
            (None, _) => Err(Refusal::Changed(
                "it is not there, so it is in none of the states of If-Match".into(),
            )),
        }
    }

    /// Returns the plan of a removal, with the removed resource as its outcome.
    ///
    /// # Errors
    /// [`Refusal::Changed`], and those of the removal.
    pub(super) fn removing<T: Serialize>(
        &self,
        known: Option<T>,
        removal: impl FnOnce() -> Result<Plan<()>, Refusal>,
    ) -> Result<Plan<T>, Refusal> {
        self.check(known.as_ref().map(etag).as_deref())?;
        let plan = removal()?;
        let known = known.ok_or_else(|| Refusal::Missing("there is no such thing".into()))?;
        Ok(plan.with_outcome(known))
    }

    /// Returns `true` if the request has a precondition.
    pub(super) fn is_set(&self) -> bool {
        self.0.is_some()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Precondition {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut tags = Vec::new();
        for header in parts.headers.get_all(IF_MATCH) {
            let text = header.to_str().map_err(|_| ApiError::malformed("If-Match is no text"))?;
            for tag in text.split(',').map(str::trim) {
                let quoted = tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
                if !quoted && tag != "*" || tags.len() == MAX_TAGS {
                    let text = "If-Match needs at most 16 ETags in double quotes, as the API \
                        returned them, or *";
                    return Err(ApiError::malformed(text).about("If-Match"));
                }
                tags.push(tag.to_owned());
            }
        }
        Ok(Self(if tags.is_empty() { None } else { Some(tags) }))
    }
}
