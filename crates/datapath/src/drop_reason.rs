//! Reasons for which packets are dropped, and counters of them.

use crate::headers::Unforwardable;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The reason for which a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum DropReason {
    /// No valid IP packet, or an IP version or extension that is not forwarded.
    Malformed,
    /// Routed by its source: an IPv4 source route option or an IPv6 routing header (RFC 7126, RFC
    /// 5095).
    SourceRouted,
    /// The destination is a multicast, broadcast or link-local address: a mesh link is unicast.
    NotUnicast,
    /// The workload sent from an address that is not its own.
    SpoofedByWorkload,
    /// The peer sent from an address outside its prefixes, or of another node's workload.
    SpoofedByPeer,
    /// The sending or receiving workload is not admitted yet.
    NotAdmitted,
    /// No workload with that address is known here.
    UnknownAddress,
    /// A packet to a service that has no instance which could serve it, or not that port.
    NoInstance,
    /// A packet of an instance whose connection through a service has gone to another one.
    Moved,
    /// A packet of a connection through a service, before the flows from before a restart are
    /// imported.
    AwaitsFlows,
    /// A client's reset of a connection with a service that was presumed after a crash: it has one
    /// with the instance itself.
    Presumed,
    /// Policy has no open link for it.
    Denied,
    /// One end is quarantined.
    Quarantined,
    /// A packet denied for one of the four reasons above, whose sender got a rejection.
    Rejected,
    /// A later fragment whose first fragment did not pass, before it or soon after.
    OrphanFragment,
    /// An IPv6 fragment that overlaps another of its packet, or comes after one that did (RFC
    /// 5722).
    OverlappingFragment,
    /// An ICMP error that does not come from where the packet was going that it is about, cannot be
    /// true, or is one of too many.
    StrayIcmpError,
    /// A datagram that is no WireGuard message, or one for no peer of this endpoint.
    UnknownPeer,
    /// A WireGuard message that does not authenticate, or is replayed.
    BadCrypto,
    /// A packet for a peer that is longer than the network's MTU and must not be fragmented; its
    /// sender got an ICMP error.
    PacketTooBig,
    /// A mark of congestion on a packet whose sender does not know ECN (RFC 6040 §4.2).
    Congestion,
    /// A packet that waited for a peer's session: too many waited, or no session came.
    NoSession,
    /// A message of a handshake from a source that has asked for too many, or has not shown its
    /// address under load.
    HandshakeLimit,
    /// A message of a handshake, while too many wait.
    HandshakeQueueFull,
    /// A packet that the kernel did not accept, for a workload or for the network.
    SendFailed,
}

/// Packets that are dropped for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) reason: DropReason,
    pub(crate) packets: u64,
}

impl Dropped {
    /// The drop of one packet.
    pub(crate) fn one(reason: DropReason) -> Self {
        Self { reason, packets: 1 }
    }
}

impl DropReason {
    /// Returns whether nothing allows the packet, or nothing is known at its destination that
    /// could.
    pub(crate) fn is_denial(self) -> bool {
        matches!(
            self,
            Self::Denied
                | Self::Quarantined
                | Self::UnknownAddress
                | Self::NotAdmitted
                | Self::NoInstance
        )
    }

    /// Every reason with the name that counters use.
    pub const ALL: [(Self, &'static str); 25] = [
        (Self::Malformed, "malformed"),
        (Self::SourceRouted, "source_routed"),
        (Self::NotUnicast, "not_unicast"),
        (Self::SpoofedByWorkload, "spoofed_by_workload"),
        (Self::SpoofedByPeer, "spoofed_by_peer"),
        (Self::NotAdmitted, "not_admitted"),
        (Self::UnknownAddress, "unknown_address"),
        (Self::NoInstance, "no_instance"),
        (Self::Moved, "moved"),
        (Self::AwaitsFlows, "awaits_flows"),
        (Self::Presumed, "presumed"),
        (Self::Denied, "denied"),
        (Self::Quarantined, "quarantined"),
        (Self::Rejected, "rejected"),
        (Self::OrphanFragment, "orphan_fragment"),
        (Self::OverlappingFragment, "overlapping_fragment"),
        (Self::StrayIcmpError, "stray_icmp_error"),
        (Self::UnknownPeer, "unknown_peer"),
        (Self::BadCrypto, "bad_crypto"),
        (Self::PacketTooBig, "packet_too_big"),
        (Self::Congestion, "congestion"),
        (Self::NoSession, "no_session"),
        (Self::HandshakeLimit, "handshake_limit"),
        (Self::HandshakeQueueFull, "handshake_queue_full"),
        (Self::SendFailed, "send_failed"),
    ];
}

/// Dropped packets by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropCounts([u64; DropReason::ALL.len()]);

impl DropCounts {
    /// Returns how many were dropped for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason's name and count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        DropReason::ALL.into_iter().map(|(reason, name)| (name, self.of(reason)))
    }
}

/// The counters behind [`DropCounts`], for all workers.
#[derive(Debug, Default)]
pub(crate) struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl DropCounters {
    /// Counts packets.
    pub(crate) fn count(&self, reason: DropReason, packets: u64) {
        if packets > 0 {
            self.0[reason as usize].fetch_add(packets, Relaxed);
        }
    }

    /// Returns the counts so far.
    pub(crate) fn read(&self) -> DropCounts {
        DropCounts(self.0.each_ref().map(|counter| counter.load(Relaxed)))
    }
}

impl From<Unforwardable> for DropReason {
    fn from(unforwardable: Unforwardable) -> Self {
        match unforwardable {
            Unforwardable::Malformed => Self::Malformed,
            Unforwardable::SourceRouted => Self::SourceRouted,
        }
    }
}
