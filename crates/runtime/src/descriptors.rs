//! The limit of file descriptors of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that are reserved for everything but connections: the database, logs, state files,
/// listeners, webhooks.
pub const RESERVED: usize = 128;
/// The assumed limit if the kernel does not tell it.
const USUAL: u64 = 1024;

/// Raises the limit to the most that this process may have (the hard limit of `RLIMIT_NOFILE`), and
/// returns the number of connections that it leaves room for. Called once, at the start.
pub fn raise() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((USUAL, USUAL));
    let now = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let now = usize::try_from(now).unwrap_or(usize::MAX);
    now.saturating_sub(RESERVED).max(RESERVED / 2)
}
