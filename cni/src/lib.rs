//! What container runtimes and the plugin say to each other (CNI specification, 0.4.0, 1.0.0 and
//! 1.1.0): reading a call, writing results and errors. Nothing here does I/O.
#![forbid(unsafe_code)]

mod call;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod result;

pub use call::{Attachment, Call, Command, Config, Environment, read};
pub use error::{Code, Error};
pub use result::{Added, added, versions};

/// The versions of the specification that are spoken, the oldest first.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// What is answered where nothing else was asked for.
pub const NEWEST: &str = "1.1.0";
