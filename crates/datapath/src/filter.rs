//! The stateful filter: the first packet of a flow is judged by the link's ACL, the rest by the
//! flow.
//!
//! Every flow carries the generation of the rules that judged it. A change of anything that a
//! verdict rests on begins a new generation, and each flow is judged again at its next packet:
//! revoking a link cuts its established flows. A flow that is denied is remembered, and goes on
//! when it is allowed again.

use crate::{
    answer,
    counters::{Counters, LinkStats, Links, Tally},
    drops::DropReason,
    flow::{Begun, End, Flow, FlowKey, FlowTable, MAX_FLOWS, Place, Ruling, SavedFlow},
    fragment::Fragments,
    icmp_error::Quoted,
    packet::{Fragment, Headers, Icmp, RST},
    rules::{Party, Rules},
    saved_flows::{self, SavedFlowsError},
    seen::FlowKind,
    shares::{Kept, QuotaOwner},
    tcp::{ACK, Segment, State},
};
use meshward_types::{IdentityId, OnDeny, OnRevoke, Protocol, Verdict};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// For how long after its start a filter takes up TCP connections by a packet of the answering
/// side.
///
/// After a restart the flow table may lack what was begun last, and the first packet of a running
/// download comes from the side that did not begin it. It passes only if the link in the other
/// direction is open for its source port, and lets that side begin nothing: a SYN is judged by
/// itself.
pub const RESUME_WINDOW: Duration = Duration::from_secs(150);

/// The filter of one endpoint: what has been let through. All workers share it.
#[derive(Debug)]
pub struct Filter {
    start: Instant,
    /// Until when connections are taken up, in seconds after the start.
    resumes_until: AtomicU32,
    flows: FlowTable,
    fragments: Fragments,
    links: Links,
    /// Whether ends of connections were ever told that these have ended.
    has_reset: AtomicBool,
}

/// A segment for one end of a connection that is cut, as if the other end had sent it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reset {
    pub to: IpAddr,
    pub packet: Vec<u8>,
}

impl Filter {
    /// A filter without flows. `resume` is [`RESUME_WINDOW`] for an endpoint that takes up running
    /// workloads, zero otherwise.
    pub fn new(now: Instant, resume: Duration) -> Self {
        Self::with_limit(now, resume, MAX_FLOWS)
    }

    fn with_limit(now: Instant, resume: Duration, most: usize) -> Self {
        Self {
            start: now,
            resumes_until: AtomicU32::new(resume.as_secs() as u32),
            flows: FlowTable::new(most),
            fragments: Fragments::default(),
            links: Links::default(),
            has_reset: AtomicBool::new(false),
        }
    }

    /// Whether the ends of a packet's connection are told that it has ended.
    pub(crate) fn is_reset(&self, now: Instant, headers: &Headers) -> bool {
        if headers.ip_protocol != 6 || !self.has_reset.load(Relaxed) {
            return false;
        }
        let mut place = self.flows.place(FlowKey::of(headers).0);
        place.get(self.seconds(now)).is_some_and(|flow| flow.is_reset())
    }

    /// Into how many shards the flows are split: see [`Self::reset_cut_connections`].
    pub(crate) fn shards(&self) -> usize {
        self.flows.shards()
    }

    /// Looks at some hundreds of the flows, those of a part of a shard, for connections that the
    /// rules of now do not allow and that are to be reset, or of which an end would be told so once
    /// it speaks. `None`: the shard has no such part. `by_policy`: also those that no quarantine
    /// has cut. `who`: who is at an address.
    pub(crate) fn reset_cut_connections(
        &self,
        rules: &Rules,
        now: Instant,
        part: (usize, usize),
        by_policy: bool,
        who: impl Fn(IpAddr) -> Option<Party>,
    ) -> Option<Vec<Reset>> {
        let (seconds, mut resets) = (self.seconds(now), Vec::new());
        let there = self.flows.change_part(part, |key, flow| {
            let begun = key.begun_by(flow.initiator());
            if begun.protocol != Protocol::Tcp || !flow.may_be_reset(seconds) {
                return;
            }
            let parties = (who(begun.source), who(begun.destination));
            if is_to_be_reset(rules, flow, &begun, parties, by_policy) {
                flow.reset(rules.generation());
                resets.extend(reset_both(flow, &begun));
            }
        });
        if !resets.is_empty() {
            self.has_reset.store(true, Relaxed);
        }
        there.then_some(resets)
    }

    /// Has some hundreds of the flows, those of a part of a shard, kept for as long as the rules of
    /// now say, from now on. `false`: the shard has no such part.
    pub(crate) fn retime(&self, rules: &Rules, now: Instant, part: (usize, usize)) -> bool {
        let seconds = self.seconds(now);
        self.flows.change_part(part, |key, flow| {
            if flow.deadline() > seconds {
                flow.extend(seconds, rules.timeouts(), key.begun_by(flow.initiator()).protocol);
            }
        })
    }

    /// How many flows there are, but for those that are denied.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The counters of every link that was used or tried.
    pub fn links(&self) -> Vec<LinkStats> {
        self.links.stats()
    }

    /// The kinds of flows that workloads of this node have begun, or tried to, in the time before
    /// `now`.
    pub fn kinds(&self, now: Instant, within: Duration) -> Vec<(IdentityId, IdentityId, FlowKind)> {
        let within = within.as_secs().try_into().unwrap_or(u32::MAX);
        self.links.kinds(self.seconds(now).saturating_sub(within))
    }

    /// The live flows, each as the packet that began it.
    pub(crate) fn live(&self, now: Instant, visit: impl FnMut(Begun)) {
        self.flows.visit(self.seconds(now), visit);
    }

    /// Judges a packet from `source` to `destination`, and counts it.
    ///
    /// # Errors
    /// The cause for which it is to be dropped.
    #[expect(clippy::too_many_arguments, reason = "a verdict rests on all of these")]
    pub fn judge(
        &self,
        rules: &Rules,
        now: Instant,
        packet: &[u8],
        headers: &Headers,
        source: Party,
        destination: Party,
        tally: Tally,
    ) -> Result<(), DropReason> {
        let seconds = self.seconds(now);
        let now = Now { seconds, resumes: seconds < self.resumes_until.load(Relaxed) };
        let judging =
            Judging { filter: self, rules, now, packet, headers, source, destination, tally };
        judging.judge().inspect_err(|cause| judging.note_refused(*cause))
    }

    /// Judges an ICMP error that comes from whom the packet that it quotes was going to, whatever
    /// the error's own source address is: that workload itself, or the gateway behind which the
    /// address lies. The caller has made sure of that.
    ///
    /// # Errors
    /// The cause for which it is to be dropped.
    #[expect(clippy::too_many_arguments, reason = "a verdict rests on all of these")]
    pub(crate) fn judge_error(
        &self,
        rules: &Rules,
        now: Instant,
        quoted: &Quoted,
        headers: &Headers,
        source: Party,
        destination: Party,
        tally: Tally,
    ) -> Result<(), DropReason> {
        let now = Now { seconds: self.seconds(now), resumes: false };
        let judging =
            Judging { filter: self, rules, now, packet: &[], headers, source, destination, tally };
        judging.judge_quoted(Some(quoted)).inspect_err(|cause| judging.note_refused(*cause))
    }

    /// The flows as bytes for [`Self::import`], at most 12 MiB; `unix` is the time since 1970.
    /// `is_last`: nothing passes this filter any more.
    pub fn export(&self, now: Instant, unix: Duration, is_last: bool) -> Vec<u8> {
        saved_flows::encode(&self.flows.save(self.seconds(now)), unix, is_last)
    }

    /// Takes up the flows that another filter had, each charged to the owner of the address that
    /// began it, and judged by the rules of now at its next packet. If these are all that there
    /// were, none is taken up by a packet any more. Returns how many were taken up.
    ///
    /// # Errors
    /// If they are not what [`Self::export`] writes.
    pub fn import(
        &self,
        now: Instant,
        unix: Duration,
        bytes: &[u8],
        owner_of: impl Fn(IpAddr) -> QuotaOwner,
    ) -> Result<usize, SavedFlowsError> {
        let saved = saved_flows::decode(bytes)?;
        let gone = unix.saturating_sub(saved.written).as_secs().try_into().unwrap_or(u32::MAX);
        let seconds = self.seconds(now);
        let restored = saved.flows.iter().filter(|flow| {
            let left = flow.left.saturating_sub(gone);
            let owner = owner_of(flow.key.begun_from(flow));
            left > 0
                && self.flows.restore(
                    seconds,
                    &SavedFlow { left, ..**flow },
                    owner,
                    self.links.none(),
                )
        });
        let count = restored.count();
        if saved.complete {
            self.resumes_until.store(0, Relaxed);
        }
        Ok(count)
    }

    /// Has a later fragment wait that was refused as an orphan: its first one may come soon.
    /// `false`: there is no room for it.
    pub(crate) fn hold_fragment(
        &self,
        now: Instant,
        headers: &Headers,
        source: Party,
        packet: &[u8],
    ) -> bool {
        self.fragments.wait(self.seconds(now), headers, source.owner, packet)
    }

    /// Whether any fragments wait for their first.
    #[inline]
    pub(crate) fn has_waiting_fragments(&self) -> bool {
        self.fragments.any_wait()
    }

    /// The fragments that have waited for a first one, which has passed: each is to be judged now.
    pub(crate) fn take_fragments(&self, headers: &Headers) -> Vec<Vec<u8>> {
        self.fragments.take_waiting(headers)
    }

    /// How many fragments have waited in vain since the last call.
    pub(crate) fn take_lost_fragments(&self) -> u64 {
        self.fragments.take_lost()
    }

    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32
    }

    /// Ends what has been idle for too long.
    pub fn tick(&self, now: Instant) {
        let seconds = self.seconds(now);
        self.flows.sweep(seconds);
        self.fragments.sweep(seconds);
    }
}

/// When a packet is judged.
#[derive(Debug, Clone, Copy)]
struct Now {
    /// Seconds since the filter's start.
    seconds: u32,
    /// Whether connections are taken up.
    resumes: bool,
}

/// One packet before the filter.
#[derive(Clone, Copy)]
struct Judging<'a> {
    filter: &'a Filter,
    rules: &'a Rules,
    now: Now,
    packet: &'a [u8],
    headers: &'a Headers,
    source: Party,
    destination: Party,
    tally: Tally,
}

impl Judging<'_> {
    #[inline]
    fn judge(&self) -> Result<(), DropReason> {
        if let Fragment::Later(_) = self.headers.fragment {
            return self.judge_later();
        }
        match self.headers.icmp {
            Icmp::None | Icmp::Request | Icmp::Reply => self.judge_flow(),
            Icmp::Error => {
                let quoted = Quoted::read(self.packet, self.headers);
                let quoted =
                    quoted.filter(|quoted| quoted.headers.destination == self.headers.source);
                self.judge_quoted(quoted.as_ref())
            }
            Icmp::Other => self.judge_alone(),
        }
    }

    /// Judges a later fragment: its first one was judged by the same rules.
    fn judge_later(&self) -> Result<(), DropReason> {
        if self.refusal() == DropReason::Quarantined {
            return Err(DropReason::Quarantined);
        }
        let generation = self.rules.generation();
        let link = self.filter.fragments.pass_later(self.now.seconds, self.headers, generation)?;
        link.add(self.tally, false);
        Ok(())
    }

    fn note_refused(&self, cause: DropReason) {
        if cause == DropReason::OrphanFragment {
            // It may pass yet, with its first.
            return;
        }
        let counters = self.link(self.source, self.destination);
        counters.add_denied();
        if self.tally.packets > 0 && cause == DropReason::Denied {
            counters.kinds.note(self.now.seconds, self.headers.kind(false));
        }
    }

    fn link(&self, from: Party, to: Party) -> Arc<Counters> {
        self.filter.links.of((from.identity, to.identity))
    }

    #[inline]
    fn pass(&self, link: &Arc<Counters>, observed: bool) -> Result<(), DropReason> {
        if let Fragment::First(_) = self.headers.fragment {
            let (owner, generation) = (self.source.owner, self.rules.generation());
            self.filter.fragments.pass_first(
                self.now.seconds,
                self.headers,
                owner,
                generation,
                link,
            )?;
        }
        link.add(self.tally, observed);
        Ok(())
    }

    /// Why a packet goes that nothing lets pass.
    fn refusal(&self) -> DropReason {
        let held =
            self.rules.is_quarantined(self.source) || self.rules.is_quarantined(self.destination);
        if held { DropReason::Quarantined } else { DropReason::Denied }
    }

    /// What the rules say of a packet that would begin a flow.
    fn verdict(&self) -> Verdict {
        let (protocol, port) = (self.headers.protocol(), self.headers.destination_port);
        self.rules.verdict(self.source, self.destination, protocol, port)
    }

    /// Judges a packet that belongs to no flow and begins none.
    fn judge_alone(&self) -> Result<(), DropReason> {
        match self.verdict() {
            Verdict::Denied => Err(self.refusal()),
            verdict => {
                let link = self.link(self.source, self.destination);
                self.pass(&link, verdict == Verdict::Observed)
            }
        }
    }

    /// An ICMP error belongs to the flow whose packet it quotes: that packet went the other way,
    /// and was on it a moment ago (RFC 5927). Whoever is quarantined sends none.
    fn judge_quoted(&self, quoted: Option<&Quoted>) -> Result<(), DropReason> {
        let Self { rules, headers, source, destination, now, .. } = *self;
        if rules.is_quarantined(source) {
            return Err(DropReason::Quarantined);
        }
        let quoted = quoted.filter(|quoted| {
            headers.fragment == Fragment::Whole && quoted.headers.source == headers.destination
        });
        let quoted = quoted.ok_or(DropReason::StrayIcmpError)?;
        let (key, from) = FlowKey::of(&quoted.headers);
        let mut place = self.filter.flows.place(key);
        let flow = place.get(now.seconds).ok_or_else(|| self.refusal())?;
        if !flow.is_of(rules.generation()) {
            // The quoted packet went from `destination` to `source`.
            let ruling = self.rule(flow, &quoted.headers, from, destination, source, false);
            flow.rule(rules.generation(), ruling);
        }
        let judged = if flow.is_denied() {
            Err(self.refusal())
        } else if !flow.takes_error(now.seconds, from, quoted.sequence) {
            Err(DropReason::StrayIcmpError)
        } else {
            flow.link.add(self.tally, flow.is_observed());
            Ok(())
        };
        place.settle();
        judged
    }

    #[inline]
    fn judge_flow(&self) -> Result<(), DropReason> {
        let Self { rules, headers, now, .. } = *self;
        let (key, from) = FlowKey::of(headers);
        let segment = (headers.ip_protocol == 6).then(|| Segment::read(self.packet, headers));
        let begins = segment.is_some_and(|segment| segment.begins());
        let mut place = self.filter.flows.place(key);
        if let Some(flow) = place.get(now.seconds)
            && flow.is_of(rules.generation())
            && !flow.is_denied()
            && (!begins || flow.right() == from)
        {
            flow.touch(now.seconds, rules.timeouts(), headers, from, segment);
            let passed = self.pass(&flow.link, flow.is_observed());
            place.settle();
            return passed;
        }
        let judged = self.judge_anew(&mut place, from, segment);
        place.settle();
        judged
    }

    /// Judges the first packet of a flow, the first after the rules have changed, one that the
    /// rules deny, or one that begins a connection.
    #[inline(never)]
    fn judge_anew(
        &self,
        place: &mut Place,
        from: End,
        segment: Option<Segment>,
    ) -> Result<(), DropReason> {
        let Self { rules, headers, source, destination, now, .. } = *self;
        let Some(flow) = place.get(now.seconds) else {
            return self.judge_first(place, from, segment);
        };
        let generation = rules.generation();
        if !flow.is_of(generation) || flow.is_denied() && from != flow.initiator() {
            let ruling = self.rule(flow, headers, from, source, destination, true);
            flow.rule(generation, ruling);
        }
        if segment.is_some_and(|segment| segment.begins()) && flow.right() != from {
            // Who did not begin the flow begins one: that is judged as such, and the flow stays
            // what it is until the other side answers.
            let verdict = self.verdict();
            if verdict == Verdict::Denied {
                return Err(self.refusal());
            }
            let link = self.link(source, destination);
            self.note_begun(&link);
            flow.touch(now.seconds, rules.timeouts(), headers, from, segment);
            return self.pass(&link, verdict == Verdict::Observed);
        }
        if !flow.is_denied() {
            flow.touch(now.seconds, rules.timeouts(), headers, from, segment);
            return self.pass(&flow.link, flow.is_observed());
        }
        // Somebody still believes in it.
        flow.extend(now.seconds, rules.timeouts(), headers.protocol());
        if headers.icmp == Icmp::Reply { self.judge_alone() } else { Err(self.refusal()) }
    }

    /// What the rules of now say of a flow: whether who began it may, or the other side may begin
    /// such a flow itself. That counts once the other side speaks: with this packet, if it
    /// `speaks`, or if it did before.
    fn rule(
        &self,
        flow: &Flow,
        headers: &Headers,
        from: End,
        sender: Party,
        receiver: Party,
        speaks: bool,
    ) -> Option<Ruling> {
        let protocol = headers.protocol();
        let there = (sender, receiver, headers.destination_port);
        let back = (receiver, sender, headers.source_port);
        let by = |right: End| {
            let (own, other, port) = if right == from { there } else { back };
            let verdict = self.rules.verdict(own, other, protocol, port);
            let observed = verdict == Verdict::Observed;
            (verdict != Verdict::Denied).then(|| Ruling {
                right,
                link: self.link(own, other),
                observed,
            })
        };
        let initiator = flow.initiator();
        let other_speaks = flow.other_has_spoken() || speaks && from != initiator;
        by(initiator).or_else(|| {
            let other = initiator.other();
            (other_speaks && protocol != Protocol::Icmp).then(|| by(other)).flatten()
        })
    }

    /// Judges a packet that belongs to no flow.
    fn judge_first(
        &self,
        place: &mut Place,
        from: End,
        segment: Option<Segment>,
    ) -> Result<(), DropReason> {
        let Self { rules, headers, source, destination, .. } = *self;
        let resets = segment.is_some() && headers.tcp_flags & RST != 0;
        if headers.icmp == Icmp::Reply || resets {
            return self.judge_alone();
        }
        let verdict = self.verdict();
        if verdict != Verdict::Denied {
            let link = self.link(source, destination);
            self.note_begun(&link);
            let ruling = Ruling { right: from, link, observed: verdict == Verdict::Observed };
            let flow = Flow::new(from, rules.generation(), ruling, State::Opening);
            return self.begin_flow(place, from, flow, segment);
        }
        if self.now.resumes && segment.is_some_and(|segment| segment.goes_on()) {
            let back = rules.verdict(destination, source, Protocol::Tcp, headers.source_port);
            if back != Verdict::Denied {
                let (right, link) = (from.other(), self.link(destination, source));
                let ruling = Ruling { right, link, observed: back == Verdict::Observed };
                let flow = Flow::new(right, rules.generation(), ruling, State::Answered);
                return self.begin_flow(place, from, flow, segment);
            }
        }
        Err(self.refusal())
    }

    fn note_begun(&self, link: &Counters) {
        if self.tally.packets > 0 {
            link.kinds.note(self.now.seconds, self.headers.kind(true));
        }
    }

    /// Begins a flow with this packet, which its sender is charged for.
    fn begin_flow(
        &self,
        place: &mut Place,
        from: End,
        mut flow: Flow,
        segment: Option<Segment>,
    ) -> Result<(), DropReason> {
        let (headers, timeouts) = (self.headers, self.rules.timeouts());
        flow.touch(self.now.seconds, timeouts, headers, from, segment);
        flow.extend(self.now.seconds, timeouts, headers.protocol());
        self.pass(&flow.link, flow.is_observed())?;
        place.insert(self.source.owner, flow);
        Ok(())
    }
}

/// Whether a connection is cut, and its ends are to be told.
fn is_to_be_reset(
    rules: &Rules,
    flow: &Flow,
    begun: &Begun,
    parties: (Option<Party>, Option<Party>),
    by_policy: bool,
) -> bool {
    let (there, back) =
        ((begun.source_port, begun.destination_port), (begun.destination_port, begun.source_port));
    let told = |from, to, ports| rules.on_deny(from, to, Protocol::Tcp, ports) == OnDeny::Reject;
    let (a, b) = match parties {
        (Some(a), Some(b)) => (a, b),
        // Whom no link joins with anybody here is forgotten here.
        (Some(a), None) => return by_policy || told(a, None, there),
        (None, Some(b)) => return by_policy || told(b, None, back),
        (None, None) => return by_policy,
    };
    let allows = |from, to, port| rules.verdict(from, to, Protocol::Tcp, port) != Verdict::Denied;
    let answers = flow.other_has_spoken() && allows(b, a, begun.source_port);
    if allows(a, b, begun.destination_port) || answers {
        return false;
    }
    // Whoever speaks next would be told, and the other one is not to be left waiting.
    if told(a, Some(b), there) || told(b, Some(a), back) {
        return true;
    }
    match rules.is_quarantined(a) || rules.is_quarantined(b) {
        true => rules.resets(a) || rules.resets(b) || rules.conduct().on_revoke == OnRevoke::Reset,
        false => by_policy,
    }
}

/// What tells both ends of a connection that it has ended. Where an end is, is not always known:
/// then it is asked by a segment that no end takes, and what it answers (RFC 9293 §3.10.7.4) is
/// answered with a reset.
fn reset_both(flow: &Flow, begun: &Begun) -> Vec<Reset> {
    let ends = [(begun.source, begun.source_port), (begun.destination, begun.destination_port)];
    let initiator = flow.initiator();
    let mut all = Vec::new();
    for (end, from, to) in [(initiator, ends[1], ends[0]), (initiator.other(), ends[0], ends[1])] {
        let before = all.len();
        let segments = flow.resets(end).map(|seq| answer::segment(from, to, seq, 0, RST));
        all.extend(segments.map(|packet| Reset { to: to.0, packet }));
        if all.len() == before {
            all.push(Reset { to: to.0, packet: answer::segment(from, to, 0, 0, ACK) });
        }
    }
    all
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
