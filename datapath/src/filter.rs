//! The stateful filter: the first packet of a flow is judged by the link's ACL, the rest by the flow.
//!
//! Every flow carries the generation of the rules that allowed it. A change of anything that a verdict rests on
//! begins a new generation, and each flow is judged again at its next packet: revoking a link cuts its
//! established flows.

use crate::{
    drops::Cause,
    flow::{Begun, End, Flow, FlowKey, FlowTable, MAX_FLOWS, Place},
    fragment::Fragments,
    packet::{Fragment, Headers, Icmp, SYN},
    seen::{FlowKind, Kinds},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use meshward_model::{Acl, IdentityId, Protocol, Verdict, control::Count};
use parking_lot::{Mutex, RwLock};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// For how long after its start a filter takes up TCP connections by a packet of the answering side.
///
/// After a restart the flow table is empty, and the first packet of a running download comes from the side that did
/// not begin it. It passes only if the link in the other direction is open for its source port.
pub const RESUME_WINDOW: Duration = Duration::from_secs(150);

/// The most pairs of identities that are counted one by one.
const MAX_LINKS: usize = 1 << 16;

/// One end of a packet, as policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Its identity.
    pub identity: IdentityId,
    /// Whether it is quarantined by itself.
    pub quarantined: bool,
}

/// The counters of an ordered pair of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStats {
    /// Who begins flows.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// The counters.
    pub count: Count,
}

/// What is counted of a link, by all workers.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    denied: AtomicU64,
    observed: AtomicU64,
    kinds: Kinds,
}

/// What a packet adds to its link's counters if it passes. A link is counted where it is sent from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Packets that it stands for.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

type Pair = (IdentityId, IdentityId);

/// The rules of one endpoint: what is allowed now.
#[derive(Debug, Default)]
pub struct Rules {
    quarantined: HashMap<IdentityId, bool, RandomState>,
    acls: HashMap<Pair, Acl, RandomState>,
    generation: u64,
}

impl Rules {
    /// Sets whether an identity is known, and quarantined; `None` forgets it.
    pub fn set_identity(&mut self, id: IdentityId, quarantined: Option<bool>) {
        match quarantined {
            Some(quarantined) => self.quarantined.insert(id, quarantined),
            None => self.quarantined.remove(&id),
        };
        self.begin_generation();
    }

    /// Sets the ACL of a link; `None` removes the link.
    pub fn set_link(&mut self, from: IdentityId, to: IdentityId, acl: Option<Acl>) {
        match acl {
            Some(acl) => self.acls.insert((from, to), acl),
            None => self.acls.remove(&(from, to)),
        };
        self.begin_generation();
    }

    /// Has every flow judged again at its next packet.
    pub fn begin_generation(&mut self) {
        self.generation += 1;
    }

    fn is_quarantined(&self, party: Party) -> bool {
        party.quarantined || self.quarantined.get(&party.identity).copied().unwrap_or(false)
    }

    /// What is to become of a packet that would begin a flow.
    fn verdict(&self, from: Party, to: Party, protocol: Protocol, port: u16) -> Verdict {
        let known = |party: Party| self.quarantined.contains_key(&party.identity);
        let acl = self.acls.get(&(from.identity, to.identity)).filter(|_| known(from) && known(to));
        let Some(acl) = acl else { return Verdict::Denied };
        match (self.is_quarantined(from), self.is_quarantined(to)) {
            (false, false) => acl.verdict(protocol, port),
            (false, true) if acl.is_forensic() => Verdict::Allowed,
            _ => Verdict::Denied,
        }
    }
}

/// The filter of one endpoint: what has been let through. All workers share it.
#[derive(Debug)]
pub struct Filter {
    start: Instant,
    resume: Duration,
    flows: FlowTable,
    fragments: Mutex<Fragments>,
    links: RwLock<HashMap<Pair, Arc<Counters>, RandomState>>,
    /// For pairs beyond [`MAX_LINKS`].
    uncounted: Arc<Counters>,
}

impl Filter {
    /// A filter without flows. `resume` is [`RESUME_WINDOW`] for an endpoint that takes up running workloads, zero
    /// otherwise.
    pub fn new(now: Instant, resume: Duration) -> Self {
        Self {
            start: now,
            resume,
            flows: FlowTable::new(MAX_FLOWS),
            fragments: Mutex::default(),
            links: RwLock::default(),
            uncounted: Arc::default(),
        }
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The counters of every link that was used or tried.
    pub fn links(&self) -> Vec<LinkStats> {
        let links = self.links.read();
        let stats =
            links.iter().map(|(&(from, to), counters)| LinkStats { from, to, count: counters.read() });
        stats.collect()
    }

    /// The kinds of flows that workloads of this node have begun, or tried to, in the time before `now`.
    pub fn kinds(&self, now: Instant, within: Duration) -> Vec<(IdentityId, IdentityId, FlowKind)> {
        let since = self.seconds(now).saturating_sub(within.as_secs().try_into().unwrap_or(u32::MAX));
        let links = self.links.read();
        let kinds = links.iter().flat_map(|(&(from, to), counters)| {
            counters.kinds.since(since).into_iter().map(move |kind| (from, to, kind))
        });
        kinds.collect()
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
    ) -> Result<(), Cause> {
        let judging = Judging { filter: self, rules, now, packet, headers, source, destination, tally };
        judging.judge().inspect_err(|cause| {
            let counters = self.counters(source, destination);
            counters.denied.fetch_add(1, Relaxed);
            if tally.packets > 0 && *cause == Cause::Denied {
                counters.kinds.note(self.seconds(now), headers.kind(false));
            }
        })
    }

    fn counters(&self, from: Party, to: Party) -> Arc<Counters> {
        let pair = (from.identity, to.identity);
        if let Some(counters) = self.links.read().get(&pair) {
            return counters.clone();
        }
        let mut links = self.links.write();
        if links.len() >= MAX_LINKS {
            return self.uncounted.clone();
        }
        links.entry(pair).or_default().clone()
    }

    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32
    }

    /// Ends what has been idle for too long.
    pub fn tick(&self, now: Instant) {
        let seconds = self.seconds(now);
        self.flows.sweep(seconds);
        self.fragments.lock().sweep(seconds);
    }
}

impl Counters {
    fn add(&self, tally: Tally, observed: bool) {
        if tally.packets > 0 {
            self.packets.fetch_add(tally.packets, Relaxed);
            self.bytes.fetch_add(tally.bytes, Relaxed);
            if observed {
                self.observed.fetch_add(tally.packets, Relaxed);
            }
        }
    }

    fn read(&self) -> Count {
        Count {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            denied: self.denied.load(Relaxed),
            observed: self.observed.load(Relaxed),
        }
    }
}

/// One packet before the filter.
#[derive(Clone, Copy)]
struct Judging<'a> {
    filter: &'a Filter,
    rules: &'a Rules,
    now: Instant,
    packet: &'a [u8],
    headers: &'a Headers,
    source: Party,
    destination: Party,
    tally: Tally,
}

impl Judging<'_> {
    fn judge(self) -> Result<(), Cause> {
        let seconds = self.filter.seconds(self.now);
        if let Fragment::Later(_) = self.headers.fragment {
            // Its first fragment was judged by the same rules.
            let link = self.filter.fragments.lock().link_of(seconds, self.headers, self.rules.generation);
            link.ok_or(Cause::OrphanFragment)?.add(self.tally, false);
            return Ok(());
        }
        let (link, observed) = match self.headers.icmp {
            Icmp::Error | Icmp::Other => self.judge_icmp(seconds)?,
            Icmp::None | Icmp::Request | Icmp::Reply => return self.judge_flow(seconds),
        };
        self.pass(seconds, &link, observed);
        Ok(())
    }

    fn pass(self, seconds: u32, link: &Arc<Counters>, observed: bool) {
        link.add(self.tally, observed);
        if let Fragment::First(_) = self.headers.fragment {
            self.filter.fragments.lock().passed(seconds, self.headers, self.rules.generation, link);
        }
    }

    /// Why a packet goes that nothing lets pass.
    fn refusal(self) -> Cause {
        let held = self.rules.is_quarantined(self.source) || self.rules.is_quarantined(self.destination);
        if held { Cause::Quarantined } else { Cause::Denied }
    }

    /// The link of an ICMP message other than an echo, and whether it is observed.
    fn judge_icmp(self, seconds: u32) -> Result<(Arc<Counters>, bool), Cause> {
        if self.headers.icmp == Icmp::Error
            && let Some(link) = self.link_of_quoted(seconds)
        {
            return Ok((link, false));
        }
        match self.rules.verdict(self.source, self.destination, self.headers.protocol(), 0) {
            Verdict::Denied => Err(self.refusal()),
            verdict => {
                Ok((self.filter.counters(self.source, self.destination), verdict == Verdict::Observed))
            }
        }
    }

    /// An ICMP error belongs to the flow whose packet it quotes: that packet went the other way.
    fn link_of_quoted(self, seconds: u32) -> Option<Arc<Counters>> {
        let quoted = self.headers.quoted(self.packet)?;
        if quoted.source != self.headers.destination {
            return None;
        }
        let (key, _) = FlowKey::of(&quoted);
        let mut place = self.filter.flows.place(key);
        let flow = place.get(seconds)?;
        (flow.stamp == self.rules.generation).then(|| flow.link.clone())
    }

    fn judge_flow(self, seconds: u32) -> Result<(), Cause> {
        let (key, from) = FlowKey::of(self.headers);
        let mut place = self.filter.flows.place(key);
        if let Some(flow) = place.get(seconds)
            && flow.stamp == self.rules.generation
            && !self.is_out_of_turn(flow, from)
        {
            flow.touch(seconds, self.headers, from);
            self.pass(seconds, &flow.link, flow.observed);
            return Ok(());
        }
        self.judge_anew(seconds, &mut place, from)
    }

    /// Judges the first packet of a flow, or the first after the rules have changed.
    fn judge_anew(self, seconds: u32, place: &mut Place, from: End) -> Result<(), Cause> {
        let Self { rules, headers, source, destination, .. } = self;
        let protocol = headers.protocol();
        if let Some(flow) = place.get(seconds)
            && !self.is_out_of_turn(flow, from)
        {
            let begun_here = flow.initiator == from;
            let verdict = if begun_here {
                rules.verdict(source, destination, protocol, headers.destination_port)
            } else {
                rules.verdict(destination, source, protocol, headers.source_port)
            };
            if verdict != Verdict::Denied {
                flow.stamp = rules.generation;
                flow.observed = verdict == Verdict::Observed;
                flow.touch(seconds, headers, from);
                self.pass(seconds, &flow.link, flow.observed);
                return Ok(());
            }
            place.remove();
            if begun_here {
                return Err(self.refusal());
            }
            // This direction may be allowed in its own right, as a flow of its own.
        }
        let verdict = rules.verdict(source, destination, protocol, headers.destination_port);
        if verdict != Verdict::Denied {
            let link = self.filter.counters(source, destination);
            if self.tally.packets > 0 {
                link.kinds.note(seconds, headers.kind(true));
            }
            let flow = Flow::new(from, rules.generation, link).observed(verdict == Verdict::Observed);
            return self.begin_flow(seconds, place, from, flow);
        }
        let resumable = protocol == Protocol::Tcp
            && headers.tcp_flags & SYN == 0
            && self.now.saturating_duration_since(self.filter.start) < self.filter.resume;
        let back = || rules.verdict(destination, source, protocol, headers.source_port);
        if resumable && back() != Verdict::Denied {
            let link = self.filter.counters(destination, source);
            let flow = Flow::new(from.other(), rules.generation, link).resumed();
            return self.begin_flow(seconds, place, from, flow.observed(back() == Verdict::Observed));
        }
        Err(self.refusal())
    }

    /// A request with the identifier of the other side's echo is no answer to it.
    fn is_out_of_turn(self, flow: &Flow, from: End) -> bool {
        match self.headers.icmp {
            Icmp::Request => flow.initiator != from,
            Icmp::Reply => flow.initiator == from,
            _ => false,
        }
    }

    fn begin_flow(self, seconds: u32, place: &mut Place, from: End, mut flow: Flow) -> Result<(), Cause> {
        flow.touch(seconds, self.headers, from);
        let (link, observed) = (flow.link.clone(), flow.observed);
        if !place.insert(flow) {
            return Err(Cause::FlowTableFull);
        }
        self.pass(seconds, &link, observed);
        Ok(())
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
