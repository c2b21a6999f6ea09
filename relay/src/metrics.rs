//! Metrics that relays and the coordinator, which is a relay too, have in common. docs/metrics.md
//! lists every name.

use crate::{forwarder::Forwarder, guard::Guard};
use meshward_runtime::{
    connection_permits::PermitCounts,
    metrics::{measured, number},
};
use prometheus_client::registry::Registry;
use std::sync::atomic::Ordering::Relaxed;

/// Registers what the guard has turned away, and the open TCP connections.
pub fn register_guard(registry: &mut Registry, guard: &Guard) {
    let counts = guard.counts();
    for (name, help, count) in [
        (
            "handshakes_retried",
            "QUIC handshakes that had to prove their address first",
            &counts.retried,
        ),
        (
            "handshakes_refused",
            "QUIC handshakes that were refused for want of room",
            &counts.refused,
        ),
        ("joins_refused", "Requests to join that were refused for their number", &counts.joins),
        (
            "authentications_failed",
            "Failed authentications, by API tokens, join tokens and certificates",
            &counts.failures,
        ),
        (
            "authentications_barred",
            "Authentications refused unseen after too many failures",
            &counts.barred,
        ),
    ] {
        number(registry, name, help, count.load(Relaxed));
    }
    let PermitCounts { strangers, trusted } = guard.permits.count();
    let connections = [("strangers", strangers), ("trusted", trusted)];
    measured(
        registry,
        "tcp_connections",
        "TCP connections on which somebody has authenticated, or nobody",
        connections.map(|(of, count)| ([("of", of.to_owned())], count as u64)),
    );
}

/// Registers what was forwarded and what was lost.
pub fn register_forwarder(registry: &mut Registry, forwarder: &Forwarder) {
    number(
        registry,
        "relay_nodes",
        "Nodes that are connected for relayed packets",
        forwarder.connected() as u64,
    );
    let counts = forwarder.counts();
    for (name, help, count) in [
        ("relay_frames", "Frames that nodes have sent to be relayed", &counts.frames),
        ("relay_bytes", "Bytes of these frames", &counts.bytes),
        ("relay_unreachable", "Frames for nodes that are not connected", &counts.unreachable),
        ("relay_lost", "Frames that the receiver's connection did not take", &counts.lost),
        ("relay_held", "Connections of second machines with a node's identity", &counts.duplicates),
    ] {
        number(registry, name, help, count.load(Relaxed));
    }
}
