//! Limits of requests.

/// The maximum size of a request's body, in bytes.
pub(super) const MAX_BODY: usize = 8 << 20;
