//! The protocol between container runtimes and the plugin (CNI specification, 0.4.0, 1.0.0 and
//! 1.1.0): reads calls, writes results and errors. Nothing here does I/O.
#![forbid(unsafe_code)]

mod call;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod result;

pub use call::{Attachment, Call, Command, Config, Environment, read};
pub use error::{Code, Error};
pub use result::{Added, Dns, added, versions};

/// The versions of the specification that are spoken, the oldest first.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// The version to answer in where the caller names none.
pub const NEWEST: &str = "1.1.0";
