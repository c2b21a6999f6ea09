//! The injector of messages that come by a relay's connection instead of an endpoint's socket.

use super::{output::EndpointOutput, shared::Shared};
use crate::clock;
use meshward_datapath::{Ecn, Received, WorkerScratch};
use meshward_types::relay::RelayNetwork;
use std::{net::SocketAddr, sync::Arc};

/// Passes relayed messages to endpoints.
pub struct Injector {
    pub(super) shared: Arc<Shared>,
    pub(super) scratch: WorkerScratch,
}

impl Injector {
    /// Passes messages, each of `size` bytes but for the last, to an endpoint as if they had come
    /// from an address.
    pub fn inject(
        &mut self,
        network: RelayNetwork,
        from: SocketAddr,
        messages: &mut [u8],
        size: usize,
    ) {
        let endpoints = self.shared.endpoints.read();
        let Some(served) = endpoints.iter().flatten().find(|served| served.relayed_as == network)
        else {
            return;
        };
        self.scratch.set_coalesce_options(served.coalesce_options());
        let mut output = EndpointOutput::new(served, 0);
        let mut batch = served.endpoint.begin_batch(&mut self.scratch, clock::now());
        let all = 0..messages.len();
        batch.ingress(
            Received { from, ecn: Ecn::NotCapable, range: all, size },
            messages,
            &mut output,
        );
        batch.deliver(messages, &mut output);
        batch.finish(&mut output);
    }
}
