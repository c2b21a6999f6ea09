//! Bad days: what ends, steps, fills up or goes away. After each, nothing that was acknowledged is
//! lost, nothing denied has passed, and everything is back by itself.

mod clocks;
mod kills;
mod surroundings;
mod witness;
