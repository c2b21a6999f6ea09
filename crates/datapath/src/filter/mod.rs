//! The stateful filter: the first packet of a flow is checked by the link's ACL, the rest by the
//! flow.
//!
//! Every flow carries the generation of the rules that checked it. A change of anything that a
//! verdict rests on begins a new generation, and each flow is checked again at its next packet:
//! revoking a link cuts its established flows. A flow that is denied is remembered, and goes on
//! when it is allowed again.

mod evaluation;
mod reset;
mod state;

pub(crate) use state::{CutScope, CutSearch, Reset};
pub use state::{FilterInput, Passed};

use crate::{
    drop_reason::DropReason,
    fair_table::entry::Evictable,
    flow::{
        key::{FlowKey, FlowTuple},
        state::{Flow, SavedFlow},
        table::{FlowChunk, MAX_FLOWS, Restoration},
    },
    headers::Headers,
    icmp_error::Quoted,
    link_counters::{LinkFlow, LinkStats},
    rules::{Party, Rules},
    saved_flows::{self, SavedFlowsError},
    services::translation::Translation,
};
use evaluation::{Evaluation, Time};
use meshward_types::Protocol;
use reset::{Parties, is_to_be_reset, reset_both};
use state::FilterState;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Time after its start for which a filter resumes TCP connections by a packet of the responding
/// side.
///
/// After a restart the flow table may lack what was begun last, and the first packet of a running
/// download comes from the side that did not begin it. It passes only if the link in the other
/// direction is open for its source port, and lets that side begin nothing: a SYN is checked by
/// itself.
pub const RESUME_WINDOW: Duration = Duration::from_secs(150);

/// The filter of one endpoint. All workers share it.
#[derive(Debug)]
pub struct Filter {
    start: Instant,
    /// The second after the start until which connections are resumed.
    resumes_until: AtomicU32,
    /// `true` until the flows from before the start are imported.
    awaits_flows: AtomicBool,
    state: FilterState,
    /// `true` if any connection was ever reset.
    has_reset: AtomicBool,
}

impl Filter {
    /// A filter without flows. `resume` is [`RESUME_WINDOW`] for an endpoint that resumes running
    /// connections, else zero.
    pub fn new(now: Instant, resume: Duration) -> Self {
        Self::with_limit(now, resume, MAX_FLOWS)
    }

    fn with_limit(now: Instant, resume: Duration, max_flows: usize) -> Self {
        Self {
            start: now,
            resumes_until: AtomicU32::new(resume.as_secs() as u32),
            awaits_flows: AtomicBool::new(false),
            state: FilterState::new(max_flows),
            has_reset: AtomicBool::new(false),
        }
    }

    /// Says whether flows from before the start are still to be imported. Until they are, no
    /// connection is resumed by the responding side: it may be one through a service.
    pub(crate) fn set_awaits_flows(&self, awaits: bool) {
        self.awaits_flows.store(awaits, Relaxed);
    }

    /// Returns `true` while flows from before the start are still to be imported.
    #[inline]
    pub(crate) fn awaits_flows(&self) -> bool {
        self.awaits_flows.load(Relaxed)
    }

    /// Returns `true` if flows from before a crash may be missing.
    #[inline]
    pub(crate) fn may_lack_flows(&self, now: Instant) -> bool {
        let until = self.resumes_until.load(Relaxed);
        until > 0 && self.seconds(now) < until
    }

    /// Checks whether a packet may pass, and counts it.
    ///
    /// # Errors
    /// Returns the reason to drop it.
    #[inline]
    pub fn check(
        &self,
        rules: &Rules,
        now: Instant,
        input: &FilterInput<'_>,
    ) -> Result<Passed, DropReason> {
        let seconds = self.seconds(now);
        let resumes = self.may_lack_flows(now) && !self.awaits_flows();
        let time = Time { seconds, resumes };
        let evaluation = Evaluation { state: &self.state, rules, time, input };
        evaluation.check().inspect_err(|reason| evaluation.note_refused(*reason))
    }

    /// Checks whether an ICMP error may pass that comes from the destination of the packet that it
    /// quotes, whatever the error's own source address is: that workload itself, or the gateway
    /// behind which the address lies. The caller has made sure of that.
    ///
    /// # Errors
    /// Returns the reason to drop it.
    pub(crate) fn check_icmp_error(
        &self,
        rules: &Rules,
        now: Instant,
        quoted: &Quoted,
        input: &FilterInput<'_>,
    ) -> Result<Passed, DropReason> {
        let time = Time { seconds: self.seconds(now), resumes: false };
        let evaluation = Evaluation { state: &self.state, rules, time, input };
        evaluation.check_quoted(Some(quoted)).inspect_err(|reason| evaluation.note_refused(*reason))
    }

    /// Returns whether the ends of a packet's connection get a reset.
    pub(crate) fn is_reset(&self, now: Instant, headers: &Headers) -> bool {
        if headers.ip_protocol != 6 || !self.has_reset.load(Relaxed) {
            return false;
        }
        let mut entry = self.state.flows.entry(FlowKey::of(headers).0);
        entry.get(self.seconds(now)).is_some_and(|flow| flow.is_reset())
    }

    /// Returns whether a connection with these addresses and ports would be taken for no other that
    /// is there.
    pub(crate) fn is_free(&self, now: Instant, headers: &Headers) -> bool {
        let mut entry = self.state.flows.entry(FlowKey::of(headers).0);
        entry.get(self.seconds(now)).is_none_or(|flow| flow.is_free())
    }

    /// Returns `true` if a packet belongs to a flow.
    pub(crate) fn has_flow(&self, now: Instant, headers: &Headers) -> bool {
        let mut entry = self.state.flows.entry(FlowKey::of(headers).0);
        entry.get(self.seconds(now)).is_some()
    }

    /// Makes the flow of a packet a connection without a service.
    pub(crate) fn forget_translation(&self, now: Instant, headers: &Headers) {
        let mut entry = self.state.flows.entry(FlowKey::of(headers).0);
        if let Some(flow) = entry.get(self.seconds(now)) {
            flow.forget_translation();
        }
    }

    /// Returns the connection through a service that a packet belongs to.
    pub(crate) fn translation_of(
        &self,
        now: Instant,
        headers: &Headers,
    ) -> Option<Arc<Translation>> {
        let mut entry = self.state.flows.entry(FlowKey::of(headers).0);
        entry.get(self.seconds(now)).and_then(|flow| Flow::translation(flow).cloned())
    }

    /// Returns the chunks of the flow table, each some hundreds of flows: see [`Self::reset_cut`].
    pub(crate) fn chunks(&self) -> impl Iterator<Item = FlowChunk> {
        self.state.flows.chunks()
    }

    /// Looks through a chunk of the flow table for connections that the rules of now do not allow
    /// and that are to be reset. `party_at`: the party at an address.
    pub(crate) fn reset_cut(
        &self,
        rules: &Rules,
        now: Instant,
        CutSearch { chunk, scope }: CutSearch,
        party_at: impl Fn(IpAddr) -> Option<Party>,
    ) -> Vec<Reset> {
        let (seconds, mut resets) = (self.seconds(now), Vec::new());
        self.state.flows.change_chunk(chunk, |key, flow| {
            let tuple = key.tuple_from(flow.initiator());
            if tuple.protocol != Protocol::Tcp || !flow.may_be_reset(seconds) {
                return;
            }
            let (source, destination) = (party_at(tuple.source), party_at(tuple.destination));
            if is_to_be_reset(rules, flow, &tuple, &Parties { source, destination }, scope) {
                flow.reset(rules.generation());
                resets.extend(reset_both(flow, &tuple));
            }
        });
        if !resets.is_empty() {
            self.has_reset.store(true, Relaxed);
        }
        resets
    }

    /// Gives the flows of a chunk of the flow table the timeouts of the rules of now, from now on.
    pub(crate) fn retime(&self, rules: &Rules, now: Instant, chunk: FlowChunk) {
        let seconds = self.seconds(now);
        self.state.flows.change_chunk(chunk, |key, flow| {
            if flow.expires_at() > seconds {
                let protocol = key.tuple_from(flow.initiator()).protocol;
                flow.extend(seconds, rules.timeouts(), protocol);
            }
        });
    }

    /// Flows in the flow table, but for those that are denied.
    pub fn flows(&self) -> usize {
        self.state.flows.len()
    }

    /// Returns the counters of every link that was used or tried.
    pub fn links(&self) -> Vec<LinkStats> {
        self.state.links.stats()
    }

    /// Returns the kinds of flows that workloads of this node have begun, or tried to, in the time
    /// before `now`, with the identities of their ends.
    pub fn flow_kinds(&self, now: Instant, within: Duration) -> Vec<LinkFlow> {
        let within = within.as_secs().try_into().unwrap_or(u32::MAX);
        self.state.links.flow_kinds(self.seconds(now).saturating_sub(within))
    }

    /// Visits the live flows.
    pub(crate) fn for_each_live(&self, now: Instant, visit: impl FnMut(FlowTuple)) {
        self.state.flows.for_each_live(self.seconds(now), visit);
    }

    /// Returns the flows as bytes for [`Self::import`], at most 12 MiB; `unix` is the time since
    /// 1970. `is_last`: nothing passes this filter any more.
    pub fn export(&self, now: Instant, unix: Duration, is_last: bool) -> Vec<u8> {
        saved_flows::encode(&self.state.flows.save(self.seconds(now)), unix, is_last)
    }

    /// Imports the flows of another filter, which the rules of now check at their next packets. If
    /// these are all that there were, no connection is resumed by a packet any more.
    /// `restoration_of`: what is not saved of a flow. Returns the number of imported flows.
    ///
    /// # Errors
    /// Fails if the bytes are not in the format of [`Self::export`].
    pub(crate) fn import(
        &self,
        now: Instant,
        unix: Duration,
        bytes: &[u8],
        restoration_of: impl Fn(&SavedFlow) -> Restoration,
    ) -> Result<usize, SavedFlowsError> {
        let saved = saved_flows::decode(bytes)?;
        let gone = unix.saturating_sub(saved.written).as_secs().try_into().unwrap_or(u32::MAX);
        let (seconds, state) = (self.seconds(now), &self.state);
        let restored = saved.flows.iter().filter(|flow| {
            let left = flow.left.saturating_sub(gone);
            let flow = SavedFlow { left, ..**flow };
            if left == 0 {
                return false;
            }
            let restoration = restoration_of(&flow);
            state.flows.restore(seconds, &flow, restoration, state.links.uncounted())
        });
        let count = restored.count();
        if saved.complete {
            self.resumes_until.store(0, Relaxed);
        }
        Ok(count)
    }

    /// Queues a later fragment that was refused as an orphan until the first one of its packet has
    /// passed. Returns `false` if there is no room for it.
    pub(crate) fn queue_fragment(
        &self,
        now: Instant,
        headers: &Headers,
        source: Party,
        packet: &[u8],
    ) -> bool {
        self.state.fragments.queue(self.seconds(now), headers, source.owner, packet)
    }

    /// Returns whether any fragments wait for their first.
    #[inline]
    pub(crate) fn has_waiting_fragments(&self) -> bool {
        self.state.fragments.any_waiting()
    }

    /// Removes and returns the fragments that have waited for a first one, which has passed: each
    /// is to be checked now.
    pub(crate) fn take_fragments(&self, headers: &Headers) -> Vec<Vec<u8>> {
        self.state.fragments.take_waiting(headers)
    }

    /// Returns the number of fragments that have waited in vain since the last call.
    pub(crate) fn take_lost_fragments(&self) -> u64 {
        self.state.fragments.take_lost()
    }

    /// Returns the seconds since the filter's start.
    #[inline]
    pub(crate) fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32
    }

    /// Ends flows that have been idle for too long.
    pub fn tick(&self, now: Instant) {
        let seconds = self.seconds(now);
        self.state.flows.expire(seconds);
        self.state.fragments.expire(seconds);
    }
}

#[cfg(test)]
mod tests;
