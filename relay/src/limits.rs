//! Limits on what clients may take of a listener before and after they have authenticated.
//! docs/configuration.md lists those that an operator can change.

use meshward_runtime::sources::{OpenLimit, Rate};
use serde::{Deserialize, Serialize};

/// Limits on clients that have not authenticated: the `[strangers]` table. An IPv6 source is a
/// /64, its prefix a /48; an IPv4 source is one address, its prefix a /24.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Strangers {
    /// TCP connections, all together. The oldest gives way to a new one.
    pub connections: usize,
    /// TCP connections from one address.
    pub connections_per_address: usize,
    /// TCP connections from one prefix.
    pub connections_per_prefix: usize,
    /// QUIC handshakes at a time, all together. Members that come from where they came before have
    /// as many of their own.
    pub handshakes: usize,
    /// QUIC handshakes at a time from one address.
    pub handshakes_per_address: usize,
    /// QUIC handshakes at a time from one prefix.
    pub handshakes_per_prefix: usize,
    /// Requests to join from one address, a second; ten times as many at once.
    pub joins_per_second: f64,
    /// Failed authentications from one address, a minute; further ones are refused unseen. As many
    /// at once.
    pub failures_per_minute: f64,
}

impl Default for Strangers {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_address: 64,
            connections_per_prefix: 256,
            handshakes: 256,
            handshakes_per_address: 64,
            handshakes_per_prefix: 128,
            joins_per_second: 20.0,
            failures_per_minute: 30.0,
        }
    }
}

impl Strangers {
    /// The limit on TCP connections, where there is room for `room` of them.
    pub fn tcp(&self, room: usize) -> OpenLimit {
        OpenLimit {
            per_address: self.connections_per_address,
            per_prefix: self.connections_per_prefix,
            total: self.connections.min(room / 4).max(1),
        }
    }

    /// The limit on QUIC handshakes.
    pub fn quic(&self) -> OpenLimit {
        OpenLimit {
            per_address: self.handshakes_per_address,
            per_prefix: self.handshakes_per_prefix,
            total: self.handshakes,
        }
    }

    /// The rate of joins from one address.
    pub fn joins(&self) -> Rate {
        Rate { burst: self.joins_per_second * 10.0, per_second: self.joins_per_second }
    }

    /// The rate of failures from one address.
    pub fn failures(&self) -> Rate {
        Rate { burst: self.failures_per_minute, per_second: self.failures_per_minute / 60.0 }
    }
}

/// From how many QUIC handshakes on, of addresses that have not shown that they are theirs, further
/// ones have to show it first (Retry, RFC 9000 §8.1.2).
pub const RETRY_FROM: usize = 16;
/// Connections of one member at a time, for each protocol: one that ends, and one that begins.
pub const CONNECTIONS_OF_A_MEMBER: usize = 4;
/// Requests to join that are worked on at a time.
pub const JOINS: OpenLimit = OpenLimit { per_address: 32, per_prefix: 64, total: 128 };
/// TCP connections of those who have authenticated, at the most.
pub const TRUSTED_CONNECTIONS: usize = 1 << 16;
/// STUN requests of one address. Every endpoint of a node asks for itself.
pub const STUN: Rate = Rate { burst: 200.0, per_second: 50.0 };
/// Addresses from which somebody has authenticated that are remembered.
pub const KNOWN_SOURCES: usize = 1 << 16;
