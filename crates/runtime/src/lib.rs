//! The code that all daemons share: configuration, logging, certificates on QUIC and TLS, framed
//! messages, metrics, and ending by a signal.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod body;
pub mod config;
pub mod connection_permits;
pub mod csr;
pub mod descriptors;
pub mod dial;
pub mod files;
pub mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod http;
pub mod join;
pub mod member;
mod member_files;
pub mod metrics;
pub mod problem;
pub mod sources;
pub mod state_files;
pub mod tls;
pub mod tunnel;
pub mod write_behind;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// The time without data after which a session has ended.
pub const SESSION_IDLE: std::time::Duration = std::time::Duration::from_secs(9);

/// Returns random bytes from the operating system.
///
/// # Panics
/// Panics if the kernel has no `getrandom`, which came with Linux 3.17.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // ring reads getrandom(2), which does not fail once the kernel is up.
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .expect("the kernel gives random bytes");
    bytes
}

/// Returns the setting by which the other side of a QUIC connection acknowledges rarely: relayed
/// packets come by the ten thousand, and each acknowledgement is a packet as well
/// (draft-ietf-quic-ack-frequency).
pub fn seldom_acknowledged() -> quinn::AckFrequencyConfig {
    let mut config = quinn::AckFrequencyConfig::default();
    config.ack_eliciting_threshold(32u32.into());
    config
}

/// The form of a daemon's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object of JSON a line, for programs.
    Json,
}

/// Sets up logging to stderr: colours only on a terminal and without `NO_COLOR` (no-color.org); the
/// filter of `RUST_LOG`, or `info` if it is not set or malformed, which is logged.
pub fn init_logging(format: LogFormat) {
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty());
    let info = || Targets::new().with_default(LevelFilter::INFO);
    // Levels by crate are enough: filters by spans and their fields need regular expressions.
    let (filter, mistake) = match wanted.as_deref().map(str::parse::<Targets>) {
        None => (info(), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (info(), Some(error)),
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(terminal && !plain)
        // Nothing can be reported if standard error is closed.
        .log_internal_errors(false)
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    if let Some(error) = mistake {
        tracing::warn!(
            "RUST_LOG is not understood ({error}); write such as info or meshward_node=debug,info"
        );
    }
}

/// Prints a line on standard output, and ignores that it is closed.
pub fn say(text: impl std::fmt::Display) {
    let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{text}\n"));
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// Fails if the signals cannot be watched.
pub async fn ended() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// A user's mistake: the process ends with exit code 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(pub String);

/// Prints an error as one sentence on stderr and returns the exit code: 2 for a user's mistake, 3
/// for a member that was removed from its mesh, 1 for any other failure.
pub fn report(program: &str, error: &anyhow::Error) -> std::process::ExitCode {
    // If standard error is closed, the exit code tells.
    let _ =
        std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{program}: {error:#}\n"));
    match error {
        error if error.is::<member::Removed>() => member::REMOVED.into(),
        error if error.is::<Mistake>() => 2.into(),
        _ => 1.into(),
    }
}
