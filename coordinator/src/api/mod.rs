//! The HTTP API, version 1. Everything but the `OpenAPI` document wants a bearer token.

mod backup;
mod caller;
mod credentials;
mod devices;
mod document;
mod drains;
mod enforcement;
mod external_metrics;
mod health;
mod idempotency;
mod inventory;
mod keys;
mod limits;
mod links;
mod lists;
mod logs;
mod networks;
mod policies;
mod problem;
mod quarantines;
mod relays;
mod request;
mod router;
mod routes;
mod services;
mod shape;
mod state;
mod tokens;
mod watch;

pub use caller::{Caller, Origin};
pub use credentials::secret;
pub use problem::ApiError;
pub use router::{router, serve};
