//! The code that developer commands share. It has next to no dependencies: `cargo xtask` is built
//! within seconds of a fresh clone, and prints its builds from then on. Heavy commands, the demo
//! and the benchmarks, are programs of their own.
#![forbid(unsafe_code)]

pub mod cargo;
pub mod packages;
pub mod python;
