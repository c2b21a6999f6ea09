//! Limits of requests.

/// The most bytes of a request's body.
pub(super) const MAX_BODY: usize = 8 << 20;
