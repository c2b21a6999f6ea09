//! The caller of a request: a credential, its role, and the networks that it reaches.

use super::problem::ApiError;
use crate::mesh::{ChangeContext, Mesh};
use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{StatusCode, header::AUTHORIZATION, request::Parts},
    middleware::Next,
    response::Response,
};
use meshward_api_types::Role;
use meshward_control_state::{
    plans::credentials::{covers, role_name, shown_time},
    records::CredentialRecord,
    world::World,
};
use meshward_runtime::connection_permits::ConnectionPermit;
use meshward_types::{NetworkName, token::secret_hash};
use std::{net::SocketAddr, sync::Arc, time::Instant};
use time::OffsetDateTime;

/// The caller of a request, known by a credential.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The context of the changes that the request makes, a dry run (`?dry_run=true`) included.
    pub context: ChangeContext,
    /// The credential's role.
    pub role: Role,
    /// The networks that the credential reaches; empty for all.
    pub networks: Vec<NetworkName>,
    /// The SHA-256 hash of the bearer token, by which the credential is found.
    pub hash: String,
}

impl Caller {
    /// Refuses a credential with a lesser role.
    ///
    /// # Errors
    /// 403, with the role that is needed.
    pub fn must_be(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        let (own, needed) = (with_article(self.role), with_article(role));
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!(
                "this credential has the role of {own}, and this needs that of {needed}; an \
                admin makes such a credential with `meshctl credential create`"
            ),
        ))
    }

    /// Returns `true` if the credential reaches a network.
    pub fn reaches(&self, network: &NetworkName) -> bool {
        covers(&self.networks, network)
    }

    /// Refuses a credential that does not reach a network.
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

    /// Refuses a credential that does not reach all networks.
    ///
    /// # Errors
    /// 403.
    pub fn must_reach_all(&self) -> Result<(), ApiError> {
        match self.networks.is_empty() {
            true => Ok(()),
            false => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "this credential reaches some networks only, and this request is about all of them",
            )),
        }
    }

    /// Returns `true` if the credential is valid, with the same role and networks as when the
    /// request began.
    pub fn still_stands(&self, world: &World) -> bool {
        let known =
            world.credentials.values().find(|credential| credential.secret_hash == self.hash);
        let as_before =
            |known: &CredentialRecord| known.role == self.role && known.networks == self.networks;
        known.is_some_and(|known| as_before(known) && !known.is_expired(unix_now()))
    }

    fn find(mesh: &Mesh, parts: &Parts) -> Result<Self, ApiError> {
        let refused = |text: &str| ApiError::new(StatusCode::UNAUTHORIZED, text);
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let secret = header
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, secret)| secret.trim())
            .ok_or_else(|| refused("a credential is missing; send `authorization: Bearer ...`"))?;
        let origin = parts.extensions.get::<ConnectInfo<Origin>>().map(|info| info.0.clone());
        let source = origin.as_ref().map(|origin| origin.address.ip().to_canonical());
        let now = Instant::now();
        if source.is_some_and(|source| !mesh.guard.may_authenticate(source, now)) {
            let text = "too many wrong credentials came from this address; wait a minute";
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        // Hashes are compared: what the timing of that comparison reveals does not help to find a
        // secret.
        let hash = secret_hash(secret);
        let caller = mesh.look(|world| {
            let known =
                world.credentials.values().find(|credential| credential.secret_hash == hash)?;
            if known.is_expired(unix_now()) {
                let at = known.expires.map(shown_time).unwrap_or_default();
                return Some(Err(refused(&format!(
                    "the credential `{}` expired at {at}; an admin extends it with \
                    `meshctl credential change {} --lifetime TIME`, or makes a new one",
                    known.name, known.name
                ))));
            }
            Some(Ok(Self {
                context: ChangeContext {
                    actor: format!("user:{}", known.name),
                    dry_run: false,
                    why: None,
                    origin: source.map(|source| source.to_string()),
                },
                role: known.role,
                networks: known.networks.clone(),
                hash: hash.clone(),
            }))
        });
        let caller = caller.transpose()?;
        match (&caller, origin) {
            (Some(caller), Some(origin)) => {
                origin.permit.iter().for_each(|permit| permit.trust(&caller.context.actor));
            }
            (None, Some(origin)) => {
                mesh.guard.note_failure(origin.address.ip().to_canonical(), "an API token", now);
            }
            (_, None) => {}
        }
        caller.ok_or_else(|| {
            refused("the credential is unknown: it was revoked, or belongs to another mesh")
        })
    }
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn with_article(role: Role) -> String {
    let name = role_name(role);
    let article = if name.starts_with(['a', 'o']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// The origin of a request.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The client's address.
    pub address: SocketAddr,
    /// The connection's permit, if it needs one.
    pub permit: Option<Arc<ConnectionPermit>>,
}

/// Lets in requests with a valid credential. It comes before everything else: strangers learn
/// nothing about the request.
pub(super) async fn authenticated(
    State(mesh): State<Arc<Mesh>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let caller = Caller::find(&mesh, &parts)?;
    parts.extensions.insert(caller);
    Ok(next.run(Request::from_parts(parts, body)).await)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request was not authenticated")
        })
    }
}
