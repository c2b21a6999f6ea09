//! Answers to DNS queries that come later than the packet batch in which a worker has read them,
//! and messages about names to peers.

use super::{output::EndpointOutput, served::ServedEndpoint};
use crate::clock;
use meshward_datapath::{NameMessage, PeerIndex, QueryEnds, WorkerScratch, WorkloadIndex};

/// Sends a workload the answer to a query of it, if it is still there.
pub(crate) fn send_answer(
    served: &ServedEndpoint,
    to: WorkloadIndex,
    ends: &QueryEnds,
    message: &[u8],
    scratch: &mut WorkerScratch,
) {
    let mut output = EndpointOutput::new(served, 0);
    let mut batch = served.endpoint.begin_batch(scratch, clock::now());
    batch.answer(to, ends, message, &mut output);
    batch.finish(&mut output);
}

/// Sends a peer a message about a name. Returns `false` if it is too long.
pub(crate) fn send_name_message(
    served: &ServedEndpoint,
    peer: PeerIndex,
    message: &NameMessage<'_>,
) -> bool {
    let mut output = EndpointOutput::new(served, 0);
    let mut scratch = WorkerScratch::default();
    let mut batch = served.endpoint.begin_batch(&mut scratch, clock::now());
    let is_sent = batch.send_name_message(peer, message, &mut output);
    batch.finish(&mut output);
    is_sent
}
