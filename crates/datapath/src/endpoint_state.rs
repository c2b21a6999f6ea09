//! The state that all workers of an endpoint share.

use crate::{
    drop_reason::DropCounters,
    filter::Filter,
    flow_log::Denials,
    keys::SecretKey,
    reject::RejectionLimits,
    services::state::ServiceState,
    sink::Sink,
    tables::state::Tables,
    transport::{peer::Peer, state::Transport},
};
use meshward_types::NodeName;
use parking_lot::RwLock;
use std::time::{Duration, Instant};

/// The state of an endpoint.
pub(crate) struct EndpointState {
    pub(crate) tables: RwLock<Tables>,
    pub(crate) filter: Filter,
    pub(crate) services: ServiceState,
    pub(crate) transport: Transport,
    pub(crate) drops: DropCounters,
    pub(crate) denials: Denials,
    pub(crate) rejection_limits: RejectionLimits,
}

impl EndpointState {
    pub(crate) fn new(node: NodeName, secret: SecretKey, now: Instant, resume: Duration) -> Self {
        Self {
            tables: RwLock::new(Tables::new(node)),
            filter: Filter::new(now, resume),
            services: ServiceState::new(now),
            transport: Transport::new(secret.into_wireguard(), now),
            drops: DropCounters::default(),
            denials: Denials::default(),
            rejection_limits: RejectionLimits::default(),
        }
    }

    /// Requests a handshake with a peer.
    #[inline]
    pub(crate) fn request_handshake(&self, peer: &Peer, sink: &mut impl Sink) {
        if self.transport.request_handshake(peer) {
            sink.request_handshakes();
        }
    }
}
