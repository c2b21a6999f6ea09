//! Limits on the clients of a listener, before and after they have authenticated.
//! docs/configuration.md lists those that an operator can change.

use meshward_runtime::sources::{OpenLimit, Rate};
use serde::{Deserialize, Serialize};

/// Limits on clients that have not authenticated: the `[strangers]` table. An IPv6 source is a
/// /64, its prefix a /48; an IPv4 source is one address, its prefix a /24.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Strangers {
    /// The maximum number of TCP connections. The oldest one is closed for a new one.
    pub connections: usize,
    /// The maximum number of TCP connections from one address.
    pub connections_per_address: usize,
    /// The maximum number of TCP connections from one prefix.
    pub connections_per_prefix: usize,
    /// The maximum number of QUIC handshakes at a time. Members that come from known addresses have
    /// as many of their own.
    pub handshakes: usize,
    /// The maximum number of QUIC handshakes at a time from one address.
    pub handshakes_per_address: usize,
    /// The maximum number of QUIC handshakes at a time from one prefix.
    pub handshakes_per_prefix: usize,
    /// The rate of requests to join from one address, per second; ten times as many at once.
    pub joins_per_second: f64,
    /// The rate of failed authentications from one address, per minute, and as many at once;
    /// further ones are refused unchecked.
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
    /// Returns the limit on TCP connections of a process that may have `room` of them.
    pub fn tcp(&self, room: usize) -> OpenLimit {
        OpenLimit {
            per_address: self.connections_per_address,
            per_prefix: self.connections_per_prefix,
            total: self.connections.min(room / 4).max(1),
        }
    }

    /// Returns the limit on QUIC handshakes.
    pub fn quic(&self) -> OpenLimit {
        OpenLimit {
            per_address: self.handshakes_per_address,
            per_prefix: self.handshakes_per_prefix,
            total: self.handshakes,
        }
    }

    /// Returns the rate of joins from one address.
    pub fn joins(&self) -> Rate {
        Rate { burst: self.joins_per_second * 10.0, per_second: self.joins_per_second }
    }

    /// Returns the rate of failures from one address.
    pub fn failures(&self) -> Rate {
        Rate { burst: self.failures_per_minute, per_second: self.failures_per_minute / 60.0 }
    }
}

/// The number of QUIC handshakes with unproven addresses; further ones have to prove theirs first
/// (Retry, RFC 9000 §8.1.2).
pub const RETRY_FROM: usize = 16;
/// The maximum number of connections of one member at a time, for each protocol: old ones may be
/// ending while new ones begin.
pub const CONNECTIONS_OF_A_MEMBER: usize = 4;
/// Limits on requests to join that are served at a time.
pub const JOINS: OpenLimit = OpenLimit { per_address: 32, per_prefix: 64, total: 128 };
/// The maximum number of TCP connections of authenticated clients.
pub const TRUSTED_CONNECTIONS: usize = 1 << 16;
/// The rate of STUN requests of one address. Every endpoint of a node asks for itself.
pub const STUN: Rate = Rate { burst: 200.0, per_second: 50.0 };
/// The maximum number of addresses that are remembered because a client has authenticated there.
pub const KNOWN_SOURCES: usize = 1 << 16;
