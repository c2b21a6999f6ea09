//! Requests of the rest of the daemon to an endpoint that is served.

use super::{output::EndpointOutput, served::ServedEndpoint};
use crate::clock;
use meshward_datapath::{SentPing, UnknownPeer};
use meshward_types::NodeName;

impl ServedEndpoint {
    /// Says something to every peer: this node has another address.
    pub fn announce_address(&self) {
        // An address of before may not lead there any more.
        self.sources.forget();
        self.endpoint.announce_address(clock::now(), &mut EndpointOutput::new(self, 0));
    }

    /// Sends a ping to a peer, on the path that packets to it take. `None`: there is no session.
    ///
    /// # Errors
    /// Fails if there is no such peer.
    pub fn ping(&self, node: &NodeName) -> Result<Option<SentPing>, UnknownPeer> {
        self.endpoint.ping(clock::now(), node, &mut EndpointOutput::new(self, 0))
    }

    /// Has the handshakes begun that were asked for.
    pub fn request_handshakes(&self) {
        self.queue.request_handshakes(self.number);
    }

    /// Has the ends of connections told that were cut, if they are to be.
    pub fn apply_flow_changes(&self) {
        if self.endpoint.has_flow_changes() {
            self.queue.request_handshakes(self.number);
        }
    }
}
