//! Retries of writes for which the disk had no room.

use anyhow::Result;
use meshward_control_state::Refusal;
use std::time::Duration;
use tokio::time::Instant;

/// The time until a write is retried.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Returns the time at which to retry a write that was refused because the disk is full: the
/// session goes on meanwhile.
///
/// # Errors
/// The refusal, if it has another reason.
pub(super) fn retry_at(refusal: Refusal) -> Result<Instant> {
    match refusal {
        Refusal::Full(_) => Ok(Instant::now() + RETRY_AFTER),
        other => Err(other.into()),
    }
}
