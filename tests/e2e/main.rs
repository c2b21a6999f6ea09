//! End-to-end tests: the real binaries, real TUN devices and real packets, in network namespaces.

mod admission;
mod away;
mod cli;
mod cni;
mod datapath;
mod demo;
mod devices;
mod disk;
mod docker;
mod flows;
mod gateways;
mod guide;
mod joining;
mod nat;
mod policy;
mod reactions;
mod relay;
mod support;
mod terraform;
mod traffic;
mod wireguard;
mod workflow;
