//! The metrics that relays share with the coordinator, which is a relay, too. docs/metrics.md lists
//! every name.

use crate::{forwarder::Forwarder, guard::Guard};
use meshward_runtime::{
    connection_permits::PermitCounts,
    metrics::{count, measured, number},
};
use prometheus_client::registry::Registry;
use std::sync::atomic::Ordering::Relaxed;

/// Registers the counts of the guard, and the open TCP connections.
pub fn register_guard(registry: &mut Registry, guard: &Guard) {
    let counts = guard.counts();
    for (name, help, value) in [
        (
            "handshakes_retried",
            "QUIC handshakes that had to prove their address first",
            &counts.retried,
        ),
        (
            "handshakes_refused",
            "QUIC handshakes refused because too many were under way",
            &counts.refused,
        ),
        ("joins_refused", "Requests to join refused because there were too many", &counts.joins),
        (
            "authentications_failed",
            "Failed authentications, by API tokens, join tokens and certificates",
            &counts.failures,
        ),
        (
            "authentications_rate_limited",
            "Authentications refused unchecked after too many failures",
            &counts.rate_limited,
        ),
    ] {
        count(registry, name, help, value.load(Relaxed));
    }
    let PermitCounts { strangers, trusted } = guard.permits.count();
    let connections = [("unauthenticated", strangers), ("authenticated", trusted)];
    measured(
        registry,
        "tcp_connections",
        "TCP connections, by whether the client has authenticated",
        connections.map(|(state, count)| ([("state", state.to_owned())], count as u64)),
    );
}

/// Registers the counts of the forwarder.
pub fn register_forwarder(registry: &mut Registry, forwarder: &Forwarder) {
    number(
        registry,
        "relay_nodes",
        "Nodes connected for relayed packets",
        forwarder.connected() as u64,
    );
    let counts = forwarder.counts();
    for (name, help, value) in [
        ("relay_frames", "Frames received to be relayed", &counts.frames),
        ("relay_bytes", "Bytes of these frames", &counts.bytes),
        ("relay_unreachable", "Frames for nodes that are not connected", &counts.unreachable),
        ("relay_lost", "Frames for which the receiver's connection had no room", &counts.lost),
        (
            "relay_duplicates",
            "Connections of second machines with a node's identity",
            &counts.duplicates,
        ),
    ] {
        count(registry, name, help, value.load(Relaxed));
    }
}
