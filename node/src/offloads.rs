//! Offloads: work that the kernel does for many packets at once.

use crate::sys::TunOffloads;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An offload of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offload {
    /// Interfaces give and take super-packets of TCP
    Tso,
    /// Interfaces give and take super-packets of UDP
    Uso,
    /// Sockets send many datagrams in one call
    UdpSegment,
    /// Sockets receive many datagrams as one
    UdpGro,
}

/// The offloads that are used.
#[expect(clippy::struct_excessive_bools, reason = "offloads are independent of each other")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TUNs give and take super-packets of TCP (TSO).
    pub tcp_segmentation: bool,
    /// TUNs give and take super-packets of UDP (USO).
    pub udp_segmentation: bool,
    /// The socket sends many datagrams in one call (`UDP_SEGMENT`).
    pub batched_sending: bool,
    /// The socket receives many datagrams in one call (`UDP_GRO`).
    pub batched_receiving: bool,
}

impl Offloads {
    /// Returns all but the disabled ones.
    pub fn without(disabled: &[Offload]) -> Self {
        let on = |offload| !disabled.contains(&offload);
        Self {
            tcp_segmentation: on(Offload::Tso),
            udp_segmentation: on(Offload::Uso),
            batched_sending: on(Offload::UdpSegment),
            batched_receiving: on(Offload::UdpGro),
        }
    }

    /// Returns those of workloads' interfaces.
    pub(crate) fn tun(self) -> TunOffloads {
        TunOffloads { tcp: self.tcp_segmentation, udp: self.udp_segmentation }
    }

    /// Returns the names of those that are used.
    pub fn names(self) -> Vec<String> {
        let all = [
            (self.tcp_segmentation, "tso"),
            (self.udp_segmentation, "uso"),
            (self.batched_sending, "udp-segment"),
            (self.batched_receiving, "udp-gro"),
        ];
        all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()).collect()
    }
}
