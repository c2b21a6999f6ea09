//! Health checks of this node's instances, as the services in the view say.
//!
//! [`wanted`] works out from the view which workload is checked how. [`checker`] is a thread of its
//! own, in which each check is a task: it makes a probe from within the workload's network
//! namespace ([`probes`]), and has what follows from it ([`check`], pure) enforced and reported.
//! One probe of a check is under way at a time, so a workload that answers late delays nobody
//! else's checks.

mod check;
mod checker;
mod probes;
mod wanted;

pub use checker::start;
