//! Benchmarks: the release binaries beside what others use, in one run, alternating.
#![forbid(unsafe_code)]

mod attach;
mod checks;
mod compare;
mod contender;
mod control;
mod dns;
mod handshakes;
mod link;
mod local;
mod measure;
mod node;
mod quarantine;
mod relay;
mod report;
mod services;
mod swarm;
mod terraform;

pub use attach::attach;
pub use checks::checks;
pub use compare::{Figures, Target};
pub use contender::{PROGRAMS, Tools};
pub use control::control;
pub use dns::dns;
pub use handshakes::handshakes;
pub use link::{link, link_before, round_trips};
pub use local::{local, rules};
pub use node::node;
pub use quarantine::quarantine;
pub use relay::relay;
pub use report::{Row, median, p99, print};
pub use services::services;
pub use terraform::terraform;
