//! End-to-end tests: the real binaries, real TUN devices and real packets, in network namespaces.

mod admission;
mod away;
mod budgets;
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
mod identity;
mod joining;
mod nat;
mod policy;
mod reactions;
mod recovery;
mod relay;
mod strangers;
mod support;
mod terraform;
mod traffic;
mod wireguard;
mod workflow;
