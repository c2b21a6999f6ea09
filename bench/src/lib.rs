//! Benchmarks: the release binaries beside what others use, in one run, alternating.
#![forbid(unsafe_code)]

mod contender;
mod link;
mod measure;
mod report;

pub use contender::{PROGRAMS, Tools};
pub use link::link;
pub use report::{Row, print};
