//! The resources.

mod admission;
mod device;
mod join_token;
mod network;
mod node;
mod part;
mod policy;
mod route;
mod service_account;
mod state;

pub(crate) use admission::Admission;
pub(crate) use device::DeviceResource;
pub(crate) use join_token::JoinToken;
pub(crate) use network::NetworkResource;
pub(crate) use node::NodeResource;
pub(crate) use policy::{PolicyResource, files, files_attribute};
pub(crate) use route::RouteResource;
pub(crate) use service_account::ServiceAccount;
pub(crate) use state::duration_text;
