//! An endpoint: one node's part in one network. It knows the workloads, the peers and the links;
//! workers take packets through it in [`PacketBatch`]s, and one thread does what is slow: handshakes and
//! timers.

use crate::{
    answer::AnswerLimits,
    coalesce::GatherList,
    counters::LinkStats,
    drops::{DropCounters, DropCounts, DropReason},
    ecn::Ecn,
    filter::Filter,
    offload::Offload,
    reflexive::Reflexive,
    round::{PacketBatch, WorkerScratch},
    saved_flows::SavedFlowsError,
    seen::{Denial, Denials, FlowKind},
    shares::QuotaOwner,
    tables::Tables,
    timeouts::Timeouts,
    vouch,
    wireguard::{Now, Peer, PeerStats, SecretKey, Wireguard},
};
use ipnet::IpNet;
use meshward_control_proto::{Change, Resource, ResourceKey};
use meshward_types::{Acl, IdentityId, NodeName, OnRevoke, PublicKey, Verdict, WorkloadId, stun};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The place of a local workload in its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadIndex(pub usize);

/// Where packets go.
pub trait Sink {
    /// Hands a packet, which may be a super-packet, to a local workload; `false` if it was not
    /// taken.
    fn to_workload(
        &mut self,
        slot: WorkloadIndex,
        offload: Offload,
        packet: GatherList<'_>,
    ) -> bool;
    /// Sends datagrams, each of `size` bytes but for the last, which may be shorter; `false` if
    /// they were not taken.
    fn to_network(&mut self, to: SocketAddr, ecn: Ecn, datagrams: &[u8], size: usize) -> bool;
    /// Sends a datagram that must not be cut into fragments on its way; what is too long for the
    /// way is lost.
    fn to_network_unfragmented(&mut self, to: SocketAddr, datagram: &[u8]);
    /// Keeps a message of a handshake for [`Endpoint::handshake`]; `false` if too many wait.
    fn queue_handshake(&mut self, from: SocketAddr, message: &[u8]) -> bool;
    /// Has [`Endpoint::begin_handshakes`] called soon.
    fn request_handshakes(&mut self);
    /// Notes that what has just come from an address is authentic: it may be answered from where it
    /// came to.
    fn authenticated(&mut self, _from: SocketAddr) {}
}

/// A workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Its id.
    pub id: WorkloadId,
    /// The only addresses that it may send from ...
    pub addresses: Vec<IpAddr>,
    /// ... but for those of the prefixes behind it, if it is a gateway's route.
    pub prefixes: Vec<IpNet>,
    /// The identity that the node vouches for while the coordinator has not spoken.
    pub vouched: Option<IdentityId>,
}

/// What an endpoint counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStats {
    /// Packets dropped, by cause.
    pub drops: DropCounts,
    /// Flows in the table.
    pub flows: usize,
    /// Every link that was used or tried.
    pub links: Vec<LinkStats>,
    /// The peers.
    pub peers: Vec<(NodeName, PeerStats)>,
    /// The devices.
    pub devices: Vec<(WorkloadId, PeerStats)>,
}

/// That an endpoint has no such peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownPeer;

/// One node's part in one network.
pub struct Endpoint {
    pub(crate) tables: RwLock<Tables>,
    pub(crate) filter: Filter,
    pub(crate) wireguard: Wireguard,
    pub(crate) drops: DropCounters,
    pub(crate) denials: Denials,
    reflexive: Mutex<Reflexive>,
    /// `None`: at the next tick.
    next_vouch: Mutex<Option<Instant>>,
    pub(crate) answers: AnswerLimits,
    /// What is still to be done to flows after a change.
    resets: AtomicU8,
}

// What is to be reset: what quarantines have cut that say so or whose ends would hear of it, and
// everything that is cut. And that timeouts are others.
const RESET_QUARANTINED: u8 = 1;
const RESET_ALL: u8 = 2;
const RETIME: u8 = 4;

impl Endpoint {
    /// An endpoint that knows nothing and lets nothing pass. `resume`: see [`Filter::new`].
    pub fn new(node: NodeName, secret: SecretKey, now: Instant, resume: Duration) -> Self {
        let seed = secret.derive(b"stun transactions");
        Self {
            tables: RwLock::new(Tables::new(node)),
            filter: Filter::new(now, resume),
            wireguard: Wireguard::new(secret, now),
            drops: DropCounters::default(),
            denials: Denials::default(),
            reflexive: Mutex::new(Reflexive::new(seed)),
            next_vouch: Mutex::default(),
            answers: AnswerLimits::default(),
            resets: AtomicU8::new(0),
        }
    }

    /// The endpoint's key.
    pub fn public_key(&self) -> PublicKey {
        self.wireguard.public()
    }

    /// Adds a workload of this node; it stays closed until the coordinator's view has it, or it is
    /// vouched for.
    pub fn add_workload(&self, workload: LocalWorkload) -> WorkloadIndex {
        let slot = self.tables.write().add_workload(workload);
        *self.next_vouch.lock() = None;
        slot
    }

    /// Adds a workload of this node that is a device: a machine with a stock WireGuard, whose
    /// interface is a session with this endpoint, by the key of [`Self::set_device_key`].
    ///
    /// `seen_at`: where it was last; without that, it has to show itself.
    pub fn add_device(
        &self,
        now: Instant,
        workload: LocalWorkload,
        key: PublicKey,
        seen_at: Option<SocketAddr>,
    ) -> WorkloadIndex {
        let mut tables = self.tables.write();
        let slot = tables.add_workload(workload);
        let place = tables.make_device(slot);
        self.wireguard.put_device(now, place, key, seen_at);
        slot
    }

    /// Sets the key by which devices know the endpoint.
    pub fn set_device_key(&self, secret: SecretKey) {
        self.wireguard.set_device_key(secret);
    }

    /// The key by which devices know the endpoint.
    pub fn device_key(&self) -> Option<PublicKey> {
        self.wireguard.device_key()
    }

    /// Where the devices are.
    pub fn device_addresses(&self) -> Vec<(WorkloadId, SocketAddr)> {
        let tables = self.tables.read();
        let peers = self.wireguard.peers.read();
        let at =
            |(place, id): (usize, &WorkloadId)| Some((id.clone(), peers.get(place)?.address()?));
        tables.devices().filter_map(at).collect()
    }

    /// Gives the endpoint another key. The one of now is good for `keep` more, so that peers that
    /// have not heard of it go on.
    pub fn rotate_key(&self, now: Instant, next: SecretKey, keep: Duration) {
        self.wireguard.rotate(now, next, keep);
    }

    /// Gives no handshake a timestamp below this many seconds since 1970: greater ones were given
    /// before a restart.
    pub fn set_timestamp_floor(&self, seconds: u64) {
        self.wireguard.stamps.set_floor(seconds);
    }

    /// Has the timestamps of handshakes follow the clock up to this many seconds since 1970: what
    /// is on disk says that all of them are less.
    pub fn set_timestamp_limit(&self, seconds: u64) {
        self.wireguard.stamps.set_limit(seconds);
    }

    /// The greatest timestamp so far, in seconds since 1970.
    pub fn newest_timestamp(&self) -> u64 {
        self.wireguard.stamps.newest()
    }

    /// Removes a workload of this node.
    pub fn remove_workload(&self, slot: WorkloadIndex) {
        let mut tables = self.tables.write();
        if let Some(place) = tables.remove_workload(slot) {
            self.wireguard.remove(place);
        }
    }

    /// Sets the identity that the node vouches for.
    pub fn set_vouched_identity(&self, slot: WorkloadIndex, identity: Option<IdentityId>) {
        self.tables.write().vouch(slot, identity);
        *self.next_vouch.lock() = None;
    }

    /// Holds a workload of this node by the node's own decision, or lets it go: none of its links
    /// is open meanwhile.
    pub fn quarantine_locally(&self, slot: WorkloadIndex, held: bool) {
        let mut tables = self.tables.write();
        tables.hold(slot, held);
        self.want_resets(&tables, 0);
    }

    /// Whether denials are kept for [`Self::take_denials`].
    pub fn watch_denials(&self, watched: bool) {
        self.denials.watch(watched);
    }

    /// What workloads of this node were denied since the last call, up to some thousands.
    pub fn take_denials(&self) -> Vec<Denial> {
        self.denials.take()
    }

    /// Sets for how long conversations are kept in which nothing is said.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.tables.write().rules.set_timeouts(timeouts);
        self.resets.fetch_or(RETIME, Relaxed);
    }

    /// The flows as bytes for [`Self::import_flows`]. `is_last`: nothing passes this endpoint any
    /// more.
    pub fn export_flows(&self, now: Now, is_last: bool) -> Vec<u8> {
        self.filter.export(now.instant, now.unix, is_last)
    }

    /// Takes up the flows that the network's endpoint had before a restart: they are judged by the
    /// rules of now. The view and the workloads are there already. Returns how many were taken up.
    ///
    /// # Errors
    /// If they are not what [`Self::export_flows`] writes.
    pub fn import_flows(&self, now: Now, bytes: &[u8]) -> Result<usize, SavedFlowsError> {
        let tables = self.tables.read();
        let owner_of = |address: IpAddr| {
            let found = tables.find(now.instant, address).map(|(_, party)| party.owner);
            // Nobody is there any more, or not yet: they all have one share.
            found
                .ok()
                .or_else(|| Some(tables.local_at(address)?.1.owner))
                .unwrap_or(QuotaOwner::Peer(u32::MAX, 0))
        };
        self.filter.import(now.instant, now.unix, bytes, owner_of)
    }

    /// The kinds of flows that workloads of this node have begun, or tried to, in the time before
    /// `now`.
    pub fn flow_kinds(
        &self,
        now: Instant,
        within: Duration,
    ) -> Vec<(IdentityId, IdentityId, FlowKind)> {
        self.filter.kinds(now, within)
    }

    /// How many live flows of each workload of this node would be cut, were these links like this.
    pub fn count_cut_flows(
        &self,
        now: Instant,
        links: &HashMap<(IdentityId, IdentityId), Acl>,
    ) -> HashMap<WorkloadId, u64> {
        let mut cuts = HashMap::new();
        let tables = self.tables.read();
        self.filter.live(now, |flow| {
            let Some((_, local)) = tables.local_at(flow.source) else { return };
            let (Some(source), Ok((_, destination))) =
                (local.party(), tables.find(now, flow.destination))
            else {
                return;
            };
            let acl = links.get(&(source.identity, destination.identity));
            if acl.is_some_and(|acl| {
                acl.verdict(flow.protocol, flow.destination_port) == Verdict::Denied
            }) {
                *cuts.entry(local.workload.id.clone()).or_default() += 1;
            }
        });
        cuts
    }

    /// Applies changes of the node's view that belong to this network. When this returns they are
    /// enforced.
    pub fn apply(&self, now: Instant, changes: &[Change]) {
        let mut tables = self.tables.write();
        // What was known before a restart is no change.
        let is_first = tables.mtu == 0;
        let mut resets = 0;
        for change in changes {
            match change {
                Change::Put(ResourceKey::Network(_), Resource::Network(spec)) => {
                    tables.mtu = spec.mtu;
                    if !is_first && spec.conduct.resets > tables.rules.conduct().resets {
                        resets |= RESET_ALL;
                    }
                    if !is_first && spec.conduct.timeouts != tables.rules.conduct().timeouts {
                        resets |= RETIME;
                    }
                    tables.prefixes.clone_from(&spec.prefixes);
                    tables.rules.set_conduct(spec.conduct);
                }
                Change::Put(ResourceKey::Identity(_, id), Resource::Identity(spec)) => {
                    tables.rules.set_identity(*id, Some(spec.quarantined));
                    tables.rules.set_resetting(*id, spec.quarantined && spec.reset);
                    resets |= if spec.quarantined && spec.reset { RESET_QUARANTINED } else { 0 };
                }
                Change::Drop(ResourceKey::Identity(_, id)) => {
                    tables.rules.set_identity(*id, None);
                    tables.rules.set_resetting(*id, false);
                }
                Change::Put(ResourceKey::Link(_, from, to), Resource::Link(acl)) => {
                    tables.rules.set_link(*from, *to, Some(acl.clone()));
                }
                Change::Drop(ResourceKey::Link(_, from, to)) => {
                    tables.rules.set_link(*from, *to, None)
                }
                Change::Put(ResourceKey::Peer(_, node), Resource::Peer(spec)) => {
                    let (key, candidates) = (spec.public_key, spec.candidates.clone());
                    let place = tables.put_peer(node, spec.clone());
                    self.wireguard.put(now, place, key, candidates);
                }
                Change::Drop(ResourceKey::Peer(_, node)) => {
                    let place = tables.drop_peer(node);
                    self.wireguard.remove(place);
                }
                Change::Put(ResourceKey::Workload(_, id), Resource::Workload(spec)) => {
                    resets |= if spec.quarantined && spec.reset { RESET_QUARANTINED } else { 0 };
                    tables.put_workload(id, Some(spec.clone()));
                }
                Change::Drop(ResourceKey::Workload(_, id)) => tables.put_workload(id, None),
                // A held view says item by item what an identity takes with it.
                _ => {}
            }
        }
        tables.rules.begin_generation();
        if !is_first {
            self.want_resets(&tables, resets);
        }
    }

    fn want_resets(&self, tables: &Tables, which: u8) {
        let always =
            if tables.rules.conduct().on_revoke == OnRevoke::Reset { RESET_ALL } else { 0 };
        let heard = if tables.rules.may_reject() { RESET_QUARANTINED } else { 0 };
        self.resets.fetch_or(which | always | heard, Relaxed);
    }

    /// Whether connections are cut whose ends are still to be told, or timeouts are others: see
    /// [`Self::reset_cut_connections`].
    pub fn has_pending_resets(&self) -> bool {
        self.resets.load(Relaxed) != 0
    }

    /// Resets both ends of the connections that the rules of now do not allow, of those that are to
    /// be reset: those that quarantines have cut that say so, those of which an end would be told,
    /// or all. Has all flows kept for as long as timeouts of now say, if these were changed.
    /// Changes wait for no more than a few hundred flows.
    pub fn reset_cut_connections(
        &self,
        now: Instant,
        scratch: &mut WorkerScratch,
        sink: &mut impl Sink,
    ) {
        let wanted = self.resets.swap(0, Relaxed);
        if wanted & RETIME != 0 {
            self.retime(now);
        }
        if wanted & (RESET_QUARANTINED | RESET_ALL) == 0 {
            return;
        }
        for shard in 0..self.filter.shards() {
            for number in 0.. {
                let found = {
                    let tables = self.tables.read();
                    let who = |address| Some(tables.find(now, address).ok()?.1);
                    let all = wanted & RESET_ALL != 0;
                    self.filter.reset_cut_connections(&tables.rules, now, (shard, number), all, who)
                };
                let Some(resets) = found else { break };
                if !resets.is_empty() {
                    let mut batch = self.begin_batch(scratch, now);
                    resets.into_iter().for_each(|reset| batch.reset(reset.to, reset.packet, sink));
                    batch.finish(sink);
                }
            }
        }
    }

    fn retime(&self, now: Instant) {
        for shard in 0..self.filter.shards() {
            for number in 0.. {
                if !self.filter.retime(&self.tables.read().rules, now, (shard, number)) {
                    break;
                }
            }
        }
    }

    /// Begins a round of a worker. Changes wait until it is finished, so it is to be short.
    pub fn begin_batch<'a>(
        &'a self,
        scratch: &'a mut WorkerScratch,
        now: Instant,
    ) -> PacketBatch<'a> {
        PacketBatch::new(self, scratch, now)
    }

    /// Notes that more handshakes wait than are done: for a second their senders have to show that
    /// they receive at their address, and have limits.
    pub fn note_overload(&self, now: Instant) {
        self.wireguard.note_overload(now);
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn end_load(&self) {
        self.wireguard.end_load();
    }

    /// Takes a message of a handshake that a worker has kept, and sends the packets that waited for
    /// its session.
    pub fn receive_handshake(
        &self,
        now: Now,
        from: SocketAddr,
        message: &[u8],
        scratch: &mut WorkerScratch,
        sink: &mut impl Sink,
    ) {
        if stun::is_response(message) {
            if !self.reflexive.lock().take(now.instant, message) {
                self.drops.count(DropReason::UnknownPeer, 1);
            }
            return;
        }
        let done = self.wireguard.receive(now, from, message, &mut plain(sink));
        match done {
            Ok(Some(peer)) => {
                sink.authenticated(from);
                self.release(now, &peer, scratch, sink);
            }
            Ok(None) => sink.authenticated(from),
            Err(cause) => self.drops.count(cause, 1),
        }
    }

    /// Sends what waited for a session, judged anew; if nothing did, then a keepalive, so that the
    /// peer may use it too.
    fn release(&self, now: Now, peer: &Peer, scratch: &mut WorkerScratch, sink: &mut impl Sink) {
        let staged = peer.take_staged(&self.wireguard.staged);
        if staged.is_empty() {
            return self.wireguard.keepalive(
                self.wireguard.millis(now.instant),
                peer,
                &mut plain(sink),
            );
        }
        let mut batch = self.begin_batch(scratch, now.instant);
        for packet in staged {
            batch.release(peer.slot as usize, packet, sink);
        }
        batch.finish(sink);
    }

    /// Begins the handshakes that rounds have found to be due.
    pub fn begin_handshakes(&self, now: Now, sink: &mut impl Sink) {
        self.wireguard.begin_wanted(now, &mut plain(sink));
    }

    /// This node has another address: says something to every peer with a session, so that it
    /// knows, and asks how the endpoint is seen.
    pub fn announce_address(&self, now: Instant, sink: &mut impl Sink) {
        self.wireguard.announce_address(now, &mut plain(sink));
        self.reflexive.lock().ask_again();
    }

    /// Runs what is due: handshakes, keepalives, vouches, the end of idle flows. Wants a call each
    /// quarter of a second.
    pub fn tick(&self, now: Now, scratch: &mut WorkerScratch, sink: &mut impl Sink) {
        self.reset_cut_connections(now.instant, scratch, sink);
        self.reflexive.lock().tick(now.instant, &mut plain(sink));
        let longest = self.tables.read().mtu;
        let given_up = self.wireguard.tick(now, longest, &mut plain(sink));
        for (to, datagram) in self.wireguard.take_whole() {
            sink.to_network_unfragmented(to, &datagram);
        }
        self.drops.count(DropReason::NoSession, given_up);
        self.watch_gateways(now.instant, sink);
        self.filter.tick(now.instant);
        self.drops.count(DropReason::OrphanFragment, self.filter.take_lost_fragments());
        if self.tables.read().has_old_vouches(now.instant) {
            self.tables.write().forget_old_vouches(now.instant);
        }
        let mut next = self.next_vouch.lock();
        if next.is_none_or(|due| now.instant >= due) {
            *next = Some(now.instant + vouch::REPEAT);
            drop(next);
            self.send_vouches(now.instant, scratch, sink);
        }
    }

    /// Finds out which of the peers that are gateways beside others do not answer, and lets the
    /// others stand in.
    fn watch_gateways(&self, now: Instant, sink: &mut impl Sink) {
        let (shared, before) = {
            let tables = self.tables.read();
            (tables.shared_gateways(), tables.down.clone())
        };
        if shared.is_empty() && before.is_empty() {
            return;
        }
        let (down, wanted) = self.wireguard.watch(now, &shared, &before);
        if wanted {
            sink.request_handshakes();
        }
        if down != before {
            let mut tables = self.tables.write();
            tables.down = down;
            tables.rules.begin_generation();
        }
    }

    fn send_vouches(&self, now: Instant, scratch: &mut WorkerScratch, sink: &mut impl Sink) {
        let vouches = self.tables.read().vouches();
        if vouches.is_empty() {
            return;
        }
        let places: Vec<usize> = self.tables.read().peers().map(|(place, _)| place).collect();
        let mut batch = self.begin_batch(scratch, now);
        for place in places {
            for packet in &vouches {
                batch.send_vouch(place, packet, sink);
            }
        }
        batch.finish(sink);
    }

    /// Asks these STUN servers under which addresses they see the endpoint.
    pub fn set_stun_servers(&self, servers: &[SocketAddr]) {
        self.reflexive.lock().set_servers(servers);
    }

    /// Under which addresses others see the endpoint, as far as is known.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        self.reflexive.lock().addresses()
    }

    /// Says whether that is another address than it has: then NATs have to be kept open.
    pub fn set_behind_nat(&self, behind: bool) {
        self.wireguard.set_behind_nat(behind);
    }

    /// The peers that a handshake was begun with since the last call, while they did not answer.
    /// They are to be called by other means, so that they begin one, too: NATs on both sides open
    /// only from within.
    pub fn take_hole_punch_requests(&self) -> Vec<NodeName> {
        let mut called = self.wireguard.take_hole_punch_requests();
        if called.is_empty() {
            return vec![];
        }
        called.sort_unstable();
        let tables = self.tables.read();
        let called = |place: usize| called.binary_search(&(place as u32)).is_ok();
        tables.peers().filter(|(place, _)| called(*place)).map(|(_, node)| node.clone()).collect()
    }

    /// A peer calls: a handshake with it begins with the next [`Self::begin_handshakes`], unless
    /// one is under way.
    pub fn answer_hole_punch(&self, node: &NodeName) -> bool {
        let place =
            self.tables.read().peers().find(|(_, own)| *own == node).map(|(place, _)| place);
        place.is_some_and(|place| self.wireguard.answer_hole_punch(place))
    }

    /// Asks a peer for an answer by the way that packets to it take: the ping's number, and where
    /// it went. Nothing while there is no session, which is begun then.
    ///
    /// # Errors
    /// If there is no such peer.
    pub fn ping(
        &self,
        now: Instant,
        node: &NodeName,
        sink: &mut impl Sink,
    ) -> Result<Option<(u32, SocketAddr)>, UnknownPeer> {
        let place = self.place_of(node).ok_or(UnknownPeer)?;
        let (sent, wanted) = self.wireguard.ping(now, place, &mut plain(sink));
        if wanted {
            sink.request_handshakes();
        }
        Ok(sent)
    }

    /// How long the answer to a ping took, once it is there.
    pub fn ping_rtt(&self, node: &NodeName, number: u32) -> Option<Duration> {
        self.wireguard.pong(self.place_of(node)?, number)
    }

    fn place_of(&self, node: &NodeName) -> Option<usize> {
        self.tables.read().peers().find(|(_, own)| *own == node).map(|(place, _)| place)
    }

    /// What has been counted.
    pub fn stats(&self, now: Instant) -> EndpointStats {
        let peers: Vec<(usize, NodeName)> =
            self.tables.read().peers().map(|(place, node)| (place, node.clone())).collect();
        let peers = peers
            .into_iter()
            .filter_map(|(place, node)| Some((node, self.wireguard.stats(now, place)?)));
        let devices: Vec<(usize, WorkloadId)> =
            self.tables.read().devices().map(|(place, id)| (place, id.clone())).collect();
        let devices = devices
            .into_iter()
            .filter_map(|(place, id)| Some((id, self.wireguard.stats(now, place)?)));
        EndpointStats {
            drops: self.drops.read(),
            flows: self.filter.flows(),
            links: self.filter.links(),
            peers: peers.collect(),
            devices: devices.collect(),
        }
    }
}

/// Sends messages of the protocol itself, whose outer header carries no mark.
pub(crate) fn plain(sink: &mut impl Sink) -> impl FnMut(SocketAddr, &[u8]) {
    |to, datagram| {
        sink.to_network(to, Ecn::NotCapable, datagram, datagram.len());
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
