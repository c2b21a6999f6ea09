//! Hostile neighbours: a container with root and raw sockets.

mod container;
mod raw;
