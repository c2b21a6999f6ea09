//! An attached workload: what is kept of it, its interface (a TUN in its namespace, whose other end
//! this daemon holds), and its routes in the kernel.

mod interface;
mod owner;
mod record;
mod routes;
mod unreachable;

pub(crate) use interface::{MakeInterface, allow_ipv6, close, close_left_behind, free_interface};
pub(crate) use owner::Owner;
pub(crate) use record::{Attachment, Findings, Origin, new_id, unhealthy_for};
pub(crate) use unreachable::{allow_other_interfaces, block_other_interfaces};
