//! What developer commands share. It depends on next to nothing: `cargo xtask` is there within
//! seconds of a fresh clone, and says what it builds from then on. What is heavy, the demo and the
//! benchmarks, are programs of their own.
#![forbid(unsafe_code)]

pub mod cargo;
pub mod packages;
pub mod python;
