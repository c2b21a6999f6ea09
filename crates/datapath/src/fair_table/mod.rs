//! Bounded tables in which every owner has its share: no owner ever loses its share to another.
//!
//! Owners form a tree of two levels: the workloads of this node, and the peers with their
//! workloads. Room that nobody uses goes to whoever asks. Once the tables of a [`Ledger`] are full,
//! an owner that holds its share or more loses the oldest of its own entries; one that holds less
//! is given the room of whoever holds the most, who is then over its share (max-min fairness, as in
//! Demers, Keshav, Shenker: "Analysis and simulation of a fair queueing algorithm", 1989). Every
//! operation takes constant time, but for the logarithm of the number of owners when entries come
//! and go.

pub(crate) mod entry;
pub(crate) mod ledger;
pub(crate) mod shards;
pub(crate) mod table;

#[cfg(test)]
mod tests;
