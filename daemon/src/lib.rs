//! What both daemons share: configuration, logging, certificates on QUIC and TLS, framed messages, metrics, and the end
//! by signal.
#![forbid(unsafe_code)]

pub mod config;
pub mod descriptors;
pub mod dial;
pub mod files;
pub mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod http;
pub mod join;
pub mod member;
pub mod metrics;
pub mod places;
pub mod sources;
pub mod tls;
pub mod tunnel;
pub mod write_behind;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A session in which nothing is heard for this long has ended.
pub const SESSION_IDLE: std::time::Duration = std::time::Duration::from_secs(9);

/// Random bytes of the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // ring reads getrandom(2), which does not fail once the kernel is up.
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .expect("the kernel gives random bytes");
    bytes
}

/// How seldom the other side of a QUIC connection is to acknowledge: relayed packets come by the ten thousand, and each
/// acknowledgement is a packet, too (draft-ietf-quic-ack-frequency).
pub fn seldom_acknowledged() -> quinn::AckFrequencyConfig {
    let mut config = quinn::AckFrequencyConfig::default();
    config.ack_eliciting_threshold(32u32.into());
    config
}

/// Logs to stderr: colours on a terminal only, and what `RUST_LOG` selects (`info` if it is not set).
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .with_target(false)
        .init();
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// If the signals cannot be watched.
pub async fn ended() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// A mistake of the user's: the process ends with exit code 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(pub String);

/// Prints an error as one sentence on stderr and gives the exit code: 2 for a user's mistake, 1 for a failure of ours.
pub fn report(program: &str, error: &anyhow::Error) -> std::process::ExitCode {
    eprintln!("{program}: {error:#}");
    if error.is::<Mistake>() { 2.into() } else { 1.into() }
}
