//! The WireGuard protocol without I/O, threads or clocks (Donenfeld, "WireGuard: Next Generation
//! Kernel Network Tunnel", NDSS 2017, here "the paper").
//!
//! The crate has the parts of the protocol, and leaves to its user how peers are stored, which path
//! a message takes and when a timer fires:
//!
//! - [`message`]: the four messages and their fields.
//! - [`handshake`]: Noise `IKpsk2`, by `snow`; it leaves a key for each direction.
//! - [`session`]: sealing and opening data messages in place, by any number of threads.
//! - [`replay`]: the sliding window of counters that were received.
//! - [`cookie`]: MACs and cookies, which protect a responder from floods.
//! - [`load_gate`]: decides which handshake messages are worth public-key cryptography.
//! - [`timestamp`]: the TAI64N timestamps of initiations, which only grow.
//! - [`timers`]: the paper's constants.
//!
//! Pre-shared keys are not supported: the handshake uses the paper's default, 32 zero bytes.
#![forbid(unsafe_code)]

pub mod cookie;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod handshake;
#[cfg(test)]
mod interop_tests;
pub mod key;
pub mod load_gate;
pub mod message;
pub mod rate_limit;
pub mod replay;
pub mod session;
pub mod time;
pub mod timers;
pub mod timestamp;

pub use key::{PublicKey, SecretKey};
pub use time::Millis;
