//! Resets: the connections that are cut, and the TCP segments that reset them.

use super::state::{CutScope, Reset};
use crate::{
    flow::{key::FlowTuple, state::Flow},
    headers::RST,
    learnt_names::NameAge,
    reject::{TcpEnd, tcp_segment},
    rules::{Destination, Party, Ports, Rules},
    tcp::{ACK, BareSegment},
};
use meshward_types::{OnDeny, OnRevoke, Protocol, Verdict};

/// The parties at the ends of a connection, as far as they are known.
pub(super) struct Parties {
    pub(super) source: Option<Party>,
    pub(super) destination: Option<Party>,
}

/// Returns whether a connection is cut, and its ends are to get a reset.
pub(super) fn is_to_be_reset(
    rules: &Rules,
    flow: &Flow,
    tuple: &FlowTuple,
    parties: &Parties,
    scope: CutScope,
) -> bool {
    let there = Ports { source: tuple.source_port, destination: tuple.destination_port };
    let back = Ports { source: tuple.destination_port, destination: tuple.source_port };
    let is_told = |from, to, ports| rules.on_deny(from, to, Protocol::Tcp, ports) == OnDeny::Reject;
    let is_all = scope == CutScope::All;
    let (a, b) = match (parties.source, parties.destination) {
        (Some(a), Some(b)) => (a, b),
        // A workload that no link joins with any of this node is not known here any more.
        (Some(a), None) => return is_all || is_told(a, None, there),
        (None, Some(b)) => return is_all || is_told(b, None, back),
        (None, None) => return is_all,
    };
    let allows = |from, to, address, port| {
        let (protocol, names) = (Protocol::Tcp, NameAge::Any);
        let wanted = Destination { address, protocol, port, names };
        rules.verdict(from, to, wanted) != Verdict::Denied
    };
    let responder_may_begin =
        flow.responder_has_sent() && allows(b, a, tuple.source, tuple.source_port);
    if allows(a, b, tuple.destination, tuple.destination_port) || responder_may_begin {
        return false;
    }
    // One end would be answered at its next packet, and the other one is not to be left waiting.
    if is_told(a, Some(b), there) || is_told(b, Some(a), back) {
        return true;
    }
    match rules.is_quarantined(a) || rules.is_quarantined(b) {
        true => rules.resets(a) || rules.resets(b) || rules.conduct().on_revoke == OnRevoke::Reset,
        false => is_all,
    }
}

/// Returns the segments that end a connection at both ends. The sequence number that an end expects
/// is not always known: then it gets a segment that no end accepts, and its answer (RFC 9293
/// §3.10.7.4) is answered with a reset.
pub(super) fn reset_both(flow: &Flow, tuple: &FlowTuple) -> Vec<Reset> {
    let source = TcpEnd { address: tuple.source, port: tuple.source_port };
    let destination = TcpEnd { address: tuple.destination, port: tuple.destination_port };
    let initiator = flow.initiator();
    let mut all = Vec::new();
    for (end, from, to) in
        [(initiator, destination, source), (initiator.other(), source, destination)]
    {
        let before = all.len();
        let segments = flow
            .reset_sequences(end)
            .map(|seq| tcp_segment(from, to, BareSegment { seq, ack: 0, flags: RST }));
        all.extend(segments.map(|packet| Reset { to: to.address, packet }));
        if all.len() == before {
            let probe = BareSegment { seq: 0, ack: 0, flags: ACK };
            all.push(Reset { to: to.address, packet: tcp_segment(from, to, probe) });
        }
    }
    all
}
