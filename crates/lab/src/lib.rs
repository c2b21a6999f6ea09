//! A small internet of network namespaces with a real mesh in it: for the demo, the end-to-end
//! tests and the benchmarks.
//!
//! Namespaces have no names here and leave nothing behind: they end with the processes that hold
//! them.
#![forbid(unsafe_code)]

mod capture;
mod containerd;
mod crafted;
mod docker;
mod flood;
mod hex;
mod host;
mod internet;
mod kubernetes;
mod machine;
mod mesh;
mod node;
mod node_builder;
mod podman;
mod process;
mod registry;
mod relay;
mod root;
mod terraform;
mod uplink;
mod workload;

pub use capture::Watch;
pub use containerd::Containerd;
pub use crafted::CraftedSession;
pub use docker::{Docker, busybox};
pub use flood::{HandshakeFlood, idle_connections};
pub use hex::hex;
pub use host::host;
pub use internet::{Hop, Internet, Site, back_to_back};
pub use kubernetes::Kubernetes;
pub use machine::Machine;
pub use mesh::{Mesh, MeshBuilder};
pub use node::Node;
pub use node_builder::NodeBuilder;
pub use podman::Podman;
pub use process::{Binaries, Process, output};
pub use registry::{ImageKey, Registry};
pub use relay::Relay;
pub use root::{Rights, become_root};
pub use terraform::Terraform;
pub use uplink::{NatBehavior, NatProfile, Uplink};
pub use workload::{Workload, WorkloadBuilder};
