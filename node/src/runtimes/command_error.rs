//! The reason why a command has no status.

/// The error for a command without a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// It cannot be run here, for this reason: that says nothing about the workload.
    Impossible(String),
    /// It has not been run, for this reason.
    Failed(String),
}
