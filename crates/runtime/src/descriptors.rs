//! File descriptors: how many this process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that are kept for what is no connection: the database, logs, files of state,
/// listeners, webhooks.
pub const RESERVED: usize = 128;
/// What is taken to be allowed if the kernel does not say.
const USUAL: u64 = 1024;

/// Raises the limit to what this process may have at the most (RLIMIT_NOFILE's hard limit), and
/// gives how many connections that leaves room for. Called once, at the start.
pub fn raise() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((USUAL, USUAL));
    let now = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let now = usize::try_from(now).unwrap_or(usize::MAX);
    now.saturating_sub(RESERVED).max(RESERVED / 2)
}
