//! The workloads of this node: attaching and detaching them, containers, devices, routes, and what
//! the node decides about them by itself.
//!
//! An attach prepares under the lock of the state (addresses are reserved), works in the kernel and
//! on disk without a lock, and commits under the lock: at an endpoint that has gone meanwhile the
//! commit fails, and routes that have changed meanwhile are caught up with.
//!
//! Lock order: this state, then enforcement's. The turn to attach is taken before either.

mod admission;
mod attach;
mod cni;
mod containers;
mod default_routes;
mod denied_attempts;
mod devices;
mod egress;
mod health;
mod interfaces;
mod kernel_changes;
mod reservations;
mod routes;
mod show;
mod source_nat;
mod state;
mod supervision;
mod triggers;

pub(crate) use containers::{Container, ContainerFacts, NewContainer};
pub(crate) use state::Workloads;
#[cfg(test)]
pub(crate) use state::plain_report;

#[cfg(test)]
mod tests;
