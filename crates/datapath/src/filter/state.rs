//! The state of the filter, and its input.

use crate::{
    flow::table::{FlowChunk, FlowTable},
    fragment::Fragments,
    headers::Headers,
    link_counters::{LinkCounters, Tally},
    rules::Party,
    services::translation::Translation,
};
use std::{net::IpAddr, sync::Arc};

/// A packet before the filter.
#[derive(Debug, Clone, Copy)]
pub struct FilterInput<'a> {
    /// The packet, as far as it stands in one piece: all headers.
    pub packet: &'a [u8],
    /// The headers of the packet.
    pub headers: &'a Headers,
    /// The party that has sent it.
    pub source: Party,
    /// The party at its destination.
    pub destination: Party,
    /// The packets and bytes that are added to its link's counters if it passes.
    pub tally: Tally,
    /// The connection through a service that the packet belongs to, if its client has sent it and it
    /// goes to the instance now.
    pub translation: Option<&'a Arc<Translation>>,
}

/// A packet that passes.
#[derive(Debug, Default)]
pub struct Passed {
    /// The connection through a service that it belongs to, if it has not been translated yet.
    pub(crate) translation: Option<Arc<Translation>>,
}

/// The connections to reset among those that the current rules do not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutScope {
    /// Connections that a quarantine with reset has cut, and those whose next packet would be
    /// answered with a rejection.
    Quarantined,
    /// All connections.
    All,
}

/// A search of a chunk of the flow table for connections that are to be reset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CutSearch {
    pub(crate) chunk: FlowChunk,
    pub(crate) scope: CutScope,
}

/// A segment for one end of a connection that is cut, as if the other end had sent it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reset {
    pub(crate) to: IpAddr,
    pub(crate) packet: Vec<u8>,
}

/// The state of the filter.
#[derive(Debug)]
pub(crate) struct FilterState {
    pub(super) flows: FlowTable,
    pub(super) fragments: Fragments,
    pub(super) links: LinkCounters,
}

impl FilterState {
    pub(super) fn new(max_flows: usize) -> Self {
        Self {
            flows: FlowTable::new(max_flows),
            fragments: Fragments::default(),
            links: LinkCounters::default(),
        }
    }
}
