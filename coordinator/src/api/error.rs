//! Who calls, what they send, and how a refusal looks.

use crate::{
    mesh::{Author, Mesh, Refusal},
    plans::credentials::{covers, role_name},
};
use axum::{
    Json,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Query, Request, rejection::JsonRejection},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{AUTHORIZATION, RETRY_AFTER},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use meshward_daemon::places::Place;
use meshward_model::{
    NetworkName,
    api::{ErrorBody, Role},
    token::secret_hash,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{net::SocketAddr, sync::Arc, time::Instant};

/// A refusal with its HTTP status.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    /// After how many seconds the caller may try again.
    retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, error: String) -> Self {
        Self { status, body: ErrorBody { error, field: None }, retry_after: None }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::About { field, refusal } => {
                let mut error = Self::from(Refusal::clone(refusal));
                error.body.field = Some((*field).to_owned());
                return error;
            }
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Busy(busy) => {
                let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, busy.to_string());
                error.retry_after = Some(busy.retry_after());
                return error;
            }
            Refusal::Missing(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) | Refusal::Stale => StatusCode::CONFLICT,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self::new(status, refusal.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = self.retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds)));
        let headers: HeaderMap = retry_after.into_iter().collect();
        (self.status, headers, Json(self.body)).into_response()
    }
}

/// A JSON body; one that does not fit is refused with a sentence.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON; send the header `content-type: application/json`".into(),
            )),
            Err(rejection) => Err(ApiError::new(rejection.status(), rejection.body_text())),
        }
    }
}

/// Who calls, by the name of a credential, what they may, and whether it is a dry run (`?dry_run=true`).
pub struct Caller {
    pub author: Author,
    pub role: Role,
    /// Where; empty: everywhere.
    pub networks: Vec<NetworkName>,
}

impl Caller {
    /// Refuses who may less than a role.
    ///
    /// # Errors
    /// 403, with what it takes.
    pub fn must_be(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        let (own, needed) = (with_article(self.role), with_article(role));
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!(
                "this credential is {own}'s, and that takes {needed}'s; an admin makes one with `meshctl credential create`"
            ),
        ))
    }

    /// Whether the caller's word reaches a network.
    pub fn reaches(&self, network: &NetworkName) -> bool {
        covers(&self.networks, network)
    }

    /// Refuses who may not read about a network.
    ///
    /// # Errors
    /// 403.
    pub fn must_reach(&self, network: &NetworkName) -> Result<(), ApiError> {
        match self.reaches(network) {
            true => Ok(()),
            false => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!("this credential does not reach network `{network}`"),
            )),
        }
    }

    /// Refuses who may read about some networks only.
    ///
    /// # Errors
    /// 403.
    pub fn must_reach_all(&self) -> Result<(), ApiError> {
        match self.networks.is_empty() {
            true => Ok(()),
            false => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "this credential reaches some networks only, and that is about all of them".into(),
            )),
        }
    }
}

fn with_article(role: Role) -> String {
    let name = role_name(role);
    let article = if name.starts_with(['a', 'o']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Where a request comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub address: SocketAddr,
    /// Its connection's place, if it has one.
    pub place: Option<Arc<Place>>,
}

#[derive(Deserialize)]
struct Switches {
    #[serde(default)]
    dry_run: bool,
}

impl FromRequestParts<Arc<Mesh>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, mesh: &Arc<Mesh>) -> Result<Self, ApiError> {
        let refused = |text: &str| ApiError::new(StatusCode::UNAUTHORIZED, text.to_owned());
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let secret = header
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refused("a credential is missing; send `authorization: Bearer ...`"))?;
        let Query(Switches { dry_run }) = Query::try_from_uri(&parts.uri).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, format!("the query is malformed: {error}"))
        })?;
        let origin = parts.extensions.get::<ConnectInfo<Origin>>().map(|info| info.0.clone());
        let source = origin.as_ref().map(|origin| origin.address.ip().to_canonical());
        let now = Instant::now();
        if source.is_some_and(|source| !mesh.guard.may_authenticate(source, now)) {
            return Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong credentials came from this address; wait a minute".into(),
            ));
        }
        // Hashes are compared: what their comparison might tell by its timing is of no use to find a secret.
        let hash = secret_hash(secret);
        let caller = mesh.look(|world| {
            let known = world.credentials.values().find(|credential| credential.secret_hash == hash);
            known.map(|credential| Self {
                author: Author {
                    actor: format!("user:{}", credential.name),
                    dry_run,
                    why: None,
                    origin: source.map(|source| source.to_string()),
                },
                role: credential.role,
                networks: credential.networks.clone(),
            })
        });
        match (&caller, origin) {
            (Some(caller), Some(origin)) => {
                origin.place.iter().for_each(|place| place.trust(&caller.author.actor));
            }
            (None, Some(origin)) => {
                mesh.guard.note_failure(origin.address.ip().to_canonical(), "an API token", now);
            }
            (_, None) => {}
        }
        caller.ok_or_else(|| refused("the credential is unknown: it was revoked, or belongs to another mesh"))
    }
}

pub async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is no {}; GET /v1/openapi.json lists what there is", uri.path()),
    )
}

pub async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} does not take {method}; GET /v1/openapi.json says what it takes", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text)
}
