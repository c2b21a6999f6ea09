//! Hostile neighbours: a container with root and raw sockets, a member that lies, a stranger, and
//! credentials with few rights.

mod container;
mod credentials;
mod liar;
mod lies;
mod raw;
mod stranger;
