//! Errors as the specification wants them ("Error", section 5).

use serde_json::{Value, json};

/// Error codes of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration asks for another version of the specification.
    IncompatibleVersion = 1,
    /// A field of the configuration has a value that is not supported.
    UnsupportedField = 2,
    /// The container is not known, or is not there.
    UnknownContainer = 3,
    /// An environment variable is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The configuration on stdin is not JSON of the right form.
    Undecodable = 6,
    /// The network configuration makes no sense.
    InvalidConfig = 7,
    /// The call may succeed later.
    TryAgain = 11,
    /// The plugin cannot serve ADD (answer to STATUS).
    NotAvailable = 50,
    /// The node daemon refuses: a code of our own.
    Refused = 100,
}

/// An error, as a runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The error code (CNI specification, or one of ours).
    pub code: Code,
    /// The summary.
    pub message: &'static str,
    /// The cause, and how to fix it.
    pub details: String,
}

impl Error {
    /// Creates an error.
    pub fn new(code: Code, message: &'static str, details: impl Into<String>) -> Self {
        Self { code, message, details: details.into() }
    }

    /// Returns the error as the runtime reads it.
    pub fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
    }
}
