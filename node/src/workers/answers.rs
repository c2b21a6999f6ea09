//! Answers to DNS queries that come later than the packet batch in which a worker has read them,
//! and messages about names to peers.

use super::{output::EndpointOutput, served::ServedEndpoint};
use crate::clock;
use meshward_datapath::{
    NameMessage, PacketBatch, PeerIndex, QueryEnds, WorkerScratch, WorkloadIndex,
};

/// Sends a workload the answer to a query of it, if it is still there.
pub(crate) fn send_answer(
    served: &ServedEndpoint,
    to: WorkloadIndex,
    ends: &QueryEnds,
    message: &[u8],
) {
    send(served, |batch, output| batch.answer(to, ends, message, output));
}

/// Sends a peer a message about a name; one that is too long is lost.
pub(crate) fn send_name_message(
    served: &ServedEndpoint,
    peer: PeerIndex,
    message: &NameMessage<'_>,
) {
    send(served, |batch, output| batch.send_name_message(peer, message, output));
}

/// Sends something in a packet batch of its own.
fn send(
    served: &ServedEndpoint,
    work: impl FnOnce(&mut PacketBatch<'_>, &mut EndpointOutput<'_>) -> bool,
) {
    let mut output = EndpointOutput::new(served, 0);
    let mut scratch = WorkerScratch::default();
    let mut batch = served.endpoint.begin_batch(&mut scratch, clock::now());
    work(&mut batch, &mut output);
    batch.finish(&mut output);
}
