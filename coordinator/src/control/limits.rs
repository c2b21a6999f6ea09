//! Limits of all connections of the control channel.

use std::time::Duration;

/// Time limit for the first message of a connection.
pub(super) const FIRST_MESSAGE: Duration = Duration::from_secs(10);
