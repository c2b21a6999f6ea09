//! The stateful filter: the first packet of a flow is judged by the link's ACL, the rest by the flow.
//!
//! Every flow carries the generation of the rules that allowed it. A change of anything that a verdict rests on
//! begins a new generation, and each flow is judged again at its next packet: revoking a link cuts its
//! established flows.

use crate::{
    drops::Cause,
    flow::{End, Flow, FlowKey, FlowTable, MAX_FLOWS},
    fragment::Fragments,
    packet::{Fragment, Headers, Icmp, SYN},
};
use meshward_model::{Acl, IdentityId, Protocol, control::Count};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// For how long after its start a filter takes up TCP connections by a packet of the answering side.
///
/// After a restart the flow table is empty, and the first packet of a running download comes from the side that did
/// not begin it. It passes only if the link in the other direction is open for its source port.
pub const RESUME_WINDOW: Duration = Duration::from_secs(150);

/// The most pairs of identities whose denials are counted one by one.
const MAX_LINKS: usize = 1 << 16;

/// One end of a packet, as policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Its identity.
    pub identity: IdentityId,
    /// Whether it is quarantined by itself.
    pub quarantined: bool,
}

/// The link that let a packet pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed(usize);

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

/// The filter of one endpoint.
#[derive(Debug)]
pub struct Filter {
    start: Instant,
    quarantined: HashMap<IdentityId, bool>,
    acls: HashMap<(IdentityId, IdentityId), Acl>,
    generation: u64,
    flows: FlowTable,
    fragments: Fragments,
    links: Vec<LinkStats>,
    link_places: HashMap<(IdentityId, IdentityId), usize>,
    resume: Duration,
}

impl Filter {
    /// A filter that denies everything. `resume` is [`RESUME_WINDOW`] for an endpoint that takes up running workloads,
    /// zero otherwise.
    pub fn new(now: Instant, resume: Duration) -> Self {
        Self {
            start: now,
            quarantined: HashMap::new(),
            acls: HashMap::new(),
            generation: 0,
            flows: FlowTable::new(MAX_FLOWS),
            fragments: Fragments::default(),
            links: Vec::new(),
            link_places: HashMap::new(),
            resume,
        }
    }

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

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The counters of every link that was used or tried.
    pub fn links(&self) -> &[LinkStats] {
        &self.links
    }

    /// Judges a packet from `source` to `destination`.
    ///
    /// # Errors
    /// The cause for which it is to be dropped.
    pub fn judge(
        &mut self,
        now: Instant,
        packet: &[u8],
        headers: &Headers,
        source: Party,
        destination: Party,
    ) -> Result<Passed, Cause> {
        let seconds = self.seconds(now);
        let link = match self.link_for(now, packet, headers, source, destination) {
            Ok(link) => link,
            Err(cause) => {
                if let Some(link) = self.link_place(source.identity, destination.identity) {
                    self.links[link].count.denied += 1;
                }
                return Err(cause);
            }
        };
        self.fragments.passed(seconds, headers, self.generation, link);
        Ok(Passed(link))
    }

    /// Counts packets that passed, `bytes` long together.
    pub fn count(&mut self, passed: Passed, packets: u64, bytes: usize) {
        if let Some(stats) = self.links.get_mut(passed.0) {
            stats.count.packets += packets;
            stats.count.bytes += bytes as u64;
        }
    }

    fn link_for(
        &mut self,
        now: Instant,
        packet: &[u8],
        headers: &Headers,
        source: Party,
        destination: Party,
    ) -> Result<usize, Cause> {
        if self.is_quarantined(source) || self.is_quarantined(destination) {
            return Err(Cause::Quarantined);
        }
        let seconds = self.seconds(now);
        if let Fragment::Later(_) = headers.fragment {
            return self.fragments.link_of(seconds, headers, self.generation).ok_or(Cause::OrphanFragment);
        }
        let protocol = headers.protocol();
        match headers.icmp {
            Icmp::Error => {
                if let Some(link) = self.link_of_quoted(packet, headers) {
                    return Ok(link);
                }
                return self.link_by_itself(source, destination, protocol);
            }
            Icmp::Other => return self.link_by_itself(source, destination, protocol),
            _ => {}
        }
        let (key, from) = FlowKey::of(headers);
        if let Some(link) = self.link_of_flow(seconds, headers, key, from, source, destination)? {
            return Ok(link);
        }
        if self.allows(source, destination, protocol, headers.destination_port) {
            let link = self.link_place(source.identity, destination.identity);
            let flow = Flow::new(from, self.generation, link.unwrap_or(usize::MAX));
            return self.begin_flow(seconds, headers, key, from, flow);
        }
        let resumable = protocol == Protocol::Tcp
            && headers.tcp_flags & SYN == 0
            && now.duration_since(self.start) < self.resume;
        if resumable && self.allows(destination, source, protocol, headers.source_port) {
            let link = self.link_place(destination.identity, source.identity);
            let flow = Flow::new(from.other(), self.generation, link.unwrap_or(usize::MAX)).resumed();
            return self.begin_flow(seconds, headers, key, from, flow);
        }
        Err(Cause::Denied)
    }

    /// The link of a packet that belongs to no flow and begins none.
    fn link_by_itself(
        &mut self,
        source: Party,
        destination: Party,
        protocol: Protocol,
    ) -> Result<usize, Cause> {
        if !self.allows(source, destination, protocol, 0) {
            return Err(Cause::Denied);
        }
        Ok(self.link_place(source.identity, destination.identity).unwrap_or(usize::MAX))
    }

    /// The link of the flow that a packet belongs to, if there is one and the rules of now still allow it.
    fn link_of_flow(
        &mut self,
        seconds: u32,
        headers: &Headers,
        key: FlowKey,
        from: End,
        source: Party,
        destination: Party,
    ) -> Result<Option<usize>, Cause> {
        let Some(flow) = self.flows.get(&key).copied() else { return Ok(None) };
        // A request with the identifier of the other side's echo is no answer to it.
        let out_of_turn = match headers.icmp {
            Icmp::Request => flow.initiator != from,
            Icmp::Reply => flow.initiator == from,
            _ => false,
        };
        if out_of_turn {
            return Ok(None);
        }
        if flow.stamp != self.generation {
            let (initiator, responder, port) = if flow.initiator == from {
                (source, destination, headers.destination_port)
            } else {
                (destination, source, headers.source_port)
            };
            if !self.allows(initiator, responder, headers.protocol(), port) {
                self.flows.remove(&key);
                // The other direction may be allowed in its own right, as a flow of its own.
                return if flow.initiator == from { Err(Cause::Denied) } else { Ok(None) };
            }
        }
        let generation = self.generation;
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.stamp = generation;
            flow.touch(seconds, headers, from);
        }
        Ok(Some(flow.link))
    }

    /// An ICMP error belongs to the flow whose packet it quotes: that packet went the other way.
    fn link_of_quoted(&self, packet: &[u8], headers: &Headers) -> Option<usize> {
        let quoted = headers.quoted(packet)?;
        if quoted.source != headers.destination {
            return None;
        }
        let (key, _) = FlowKey::of(&quoted);
        let flow = self.flows.get(&key)?;
        (flow.stamp == self.generation).then_some(flow.link)
    }

    fn begin_flow(
        &mut self,
        seconds: u32,
        headers: &Headers,
        key: FlowKey,
        from: End,
        mut flow: Flow,
    ) -> Result<usize, Cause> {
        flow.touch(seconds, headers, from);
        if !self.flows.insert(key, flow) {
            return Err(Cause::FlowTableFull);
        }
        Ok(flow.link)
    }

    fn is_quarantined(&self, party: Party) -> bool {
        party.quarantined || self.quarantined.get(&party.identity).copied().unwrap_or(false)
    }

    fn allows(&self, from: Party, to: Party, protocol: Protocol, port: u16) -> bool {
        let known = |party: Party| self.quarantined.contains_key(&party.identity);
        known(from)
            && known(to)
            && self.acls.get(&(from.identity, to.identity)).is_some_and(|acl| acl.allows(protocol, port))
    }

    fn link_place(&mut self, from: IdentityId, to: IdentityId) -> Option<usize> {
        if let Some(&place) = self.link_places.get(&(from, to)) {
            return Some(place);
        }
        if self.links.len() >= MAX_LINKS {
            return None;
        }
        let place = self.links.len();
        self.links.push(LinkStats { from, to, count: Count { packets: 0, bytes: 0, denied: 0 } });
        self.link_places.insert((from, to), place);
        Some(place)
    }

    fn seconds(&self, now: Instant) -> u32 {
        now.duration_since(self.start).as_secs() as u32
    }

    /// Ends what has been idle for too long.
    pub fn tick(&mut self, now: Instant) {
        let seconds = self.seconds(now);
        self.flows.sweep(seconds);
        self.fragments.sweep(seconds);
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
