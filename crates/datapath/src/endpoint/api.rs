//! The interface of an endpoint to its node.

use crate::{
    config::Link,
    drop_reason::DropReason,
    endpoint_state::EndpointState,
    flow::{state::SavedFlow, table::Restoration},
    flow_log::Denial,
    in_band::vouch::Vouch,
    index::{PeerIndex, WorkloadIndex},
    keys::{self, SecretKey},
    learnt_names::NameAge,
    link_counters::LinkFlow,
    owner::QuotaOwner,
    packet_batch::{PacketBatch, WorkerScratch},
    reflexive::ReflexiveAddresses,
    saved_flows::SavedFlowsError,
    services::{mapping::Mapping, translation::Target},
    sink::{Sink, send_plain},
    timeouts::Timeouts,
    transport::{
        peer::Peer,
        state::Now,
        ticks::{PingStart, SentPing},
    },
    workload::LocalWorkload,
};
use meshward_types::{Acl, IdentityId, NodeName, PublicKey, Verdict, WorkloadId, stun};
use meshward_wireguard::load_gate::Incoming;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::atomic::AtomicU8,
    time::{Duration, Instant},
};

/// An endpoint has no such peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint has no such peer")]
pub struct UnknownPeer;

/// An endpoint: one node's part in one network.
pub struct Endpoint {
    pub(crate) state: EndpointState,
    pub(super) reflexive: Mutex<ReflexiveAddresses>,
    /// The time at which vouches are sent next; `None`: the next tick.
    pub(super) next_vouch: Mutex<Option<Instant>>,
    /// The changes that flows still need: bits of [`super::resets`].
    pub(super) pending_flow_changes: AtomicU8,
}

impl Endpoint {
    /// An endpoint that knows nothing and lets nothing pass. `resume`: see [`Filter::new`]; if it
    /// is not zero, flows from before a restart are awaited until [`Self::note_flows_imported`].
    ///
    /// [`Filter::new`]: crate::Filter::new
    pub fn new(node: NodeName, secret: SecretKey, now: Instant, resume: Duration) -> Self {
        let seed = secret.derive(b"stun transactions");
        let state = EndpointState::new(node, secret, now, resume);
        state.filter.set_awaits_flows(!resume.is_zero());
        Self {
            state,
            reflexive: Mutex::new(ReflexiveAddresses::new(seed)),
            next_vouch: Mutex::default(),
            pending_flow_changes: AtomicU8::new(0),
        }
    }

    /// Returns the endpoint's key.
    pub fn public_key(&self) -> PublicKey {
        keys::from_wireguard(self.state.transport.public_key())
    }

    /// Makes `next` the endpoint's key. The one of now is good for `keep` more, so that peers that
    /// have not heard of the next one go on.
    pub fn rotate_key(&self, now: Instant, next: SecretKey, keep: Duration) {
        self.state.transport.rotate_key(now, next.into_wireguard(), keep);
    }

    /// Adds a workload of this node; it stays closed until the coordinator's view has it, or the
    /// node vouches for it.
    pub fn add_workload(&self, workload: LocalWorkload) -> WorkloadIndex {
        let index = self.state.tables.write().add_workload(workload);
        *self.next_vouch.lock() = None;
        index
    }

    /// Adds a workload of this node that is a device: a machine with a stock WireGuard, whose
    /// interface is a session with this endpoint, by the key of [`Self::set_device_key`].
    ///
    /// `last_address`: the last address of the device; if it is not known, the device has to begin.
    pub fn add_device(
        &self,
        now: Instant,
        workload: LocalWorkload,
        key: PublicKey,
        last_address: Option<SocketAddr>,
    ) -> WorkloadIndex {
        let mut tables = self.state.tables.write();
        let index = tables.add_workload(workload);
        let peer = tables.make_device(index);
        self.state.transport.put_device(now, peer, keys::to_wireguard(key), last_address);
        index
    }

    /// Removes a workload of this node.
    pub fn remove_workload(&self, workload: WorkloadIndex) {
        let mut tables = self.state.tables.write();
        if let Some(device) = tables.remove_workload(workload) {
            self.state.transport.remove(device);
        }
    }

    /// Sets the key by which devices know the endpoint.
    pub fn set_device_key(&self, secret: SecretKey) {
        self.state.transport.set_device_key(secret.into_wireguard());
    }

    /// Returns the key by which devices know the endpoint.
    pub fn device_key(&self) -> Option<PublicKey> {
        self.state.transport.device_key().map(keys::from_wireguard)
    }

    /// Returns the addresses of the devices that have shown themselves.
    pub fn device_addresses(&self) -> Vec<(WorkloadId, SocketAddr)> {
        let tables = self.state.tables.read();
        let peers = self.state.transport.peers.read();
        let address =
            |(peer, id): (PeerIndex, &WorkloadId)| Some((id.clone(), peers.get(peer)?.address()?));
        tables.devices().filter_map(address).collect()
    }

    /// Gives no handshake a timestamp below this many seconds since 1970: greater ones may have
    /// been given before a restart.
    pub fn set_timestamp_floor(&self, seconds: u64) {
        self.state.transport.timestamps.set_floor(seconds);
    }

    /// Lets the timestamps of handshakes follow the clock up to this many seconds since 1970. The
    /// file on disk says that all of them are less.
    pub fn set_timestamp_limit(&self, seconds: u64) {
        self.state.transport.timestamps.set_limit(seconds);
    }

    /// Returns the greatest timestamp of a handshake so far, in seconds since 1970.
    pub fn newest_timestamp(&self) -> u64 {
        self.state.transport.timestamps.newest()
    }

    /// Sets the identity that the node vouches for, for a workload of its own.
    pub fn set_vouched_identity(&self, workload: WorkloadIndex, identity: Option<IdentityId>) {
        self.state.tables.write().set_vouched_identity(workload, identity);
        *self.next_vouch.lock() = None;
    }

    /// Quarantines a workload of this node by the node's own decision, or ends that quarantine:
    /// none of its links is open meanwhile.
    pub fn quarantine_locally(&self, workload: WorkloadIndex, is_quarantined: bool) {
        let mut tables = self.state.tables.write();
        tables.quarantine_locally(workload, is_quarantined);
        self.plan_resets(&tables, 0);
    }

    /// Sets whether denials are kept for [`Self::take_denials`].
    pub fn watch_denials(&self, is_watched: bool) {
        self.state.denials.watch(is_watched);
    }

    /// Removes and returns the denials of packets of this node's workloads since the last call, up
    /// to some thousands.
    pub fn take_denials(&self) -> Vec<Denial> {
        self.state.denials.drain()
    }

    /// Sets the silence timeouts.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.state.tables.write().rules.set_timeouts(timeouts);
        self.plan_retiming();
    }

    /// Returns the flows as bytes for [`Self::import_flows`]. `is_last`: nothing passes this
    /// endpoint any more.
    pub fn export_flows(&self, now: Now, is_last: bool) -> Vec<u8> {
        self.state.filter.export(now.instant, now.unix, is_last)
    }

    /// Imports the flows that the network's endpoint had before a restart: they are checked by the
    /// current rules. The configuration and the workloads have to be there already. Returns the
    /// number of imported flows.
    ///
    /// # Errors
    /// Fails if the bytes are not in the format of [`Self::export_flows`].
    pub fn import_flows(&self, now: Now, bytes: &[u8]) -> Result<usize, SavedFlowsError> {
        /// The owner of flows whose address no workload has any more, or not yet.
        const NOBODY: QuotaOwner = QuotaOwner::Remote { peer: PeerIndex(u32::MAX), workload: 0 };
        let tables = self.state.tables.read();
        let owner_of = |address| tables.owner_at(now.instant, address).unwrap_or(NOBODY);
        let translation_of = |mapping: Mapping| {
            let service = tables.services.at(mapping.service.address);
            let target = service.and_then(|service| {
                let load = service.instance_at(mapping.instance.address)?.load.clone();
                Some(Target { counters: service.counters.clone(), load })
            });
            let owner = owner_of(mapping.client.address);
            self.state.services.restore(now.instant, owner, mapping, target)
        };
        let restoration_of = |flow: &SavedFlow| Restoration {
            owner: owner_of(flow.initiator_address()),
            translation: flow.mapping.map(translation_of),
        };
        self.state.filter.import(now.instant, now.unix, bytes, restoration_of)
    }

    /// Notes that all flows from before the start are imported that there are. Before, packets of
    /// connections through services wait for that: they would go to another instance.
    pub fn note_flows_imported(&self) {
        self.state.filter.set_awaits_flows(false);
    }

    /// Returns the kinds of flows that workloads of this node have begun, or tried to, in the time
    /// before `now`, with the identities of their ends.
    pub fn flow_kinds(&self, now: Instant, within: Duration) -> Vec<LinkFlow> {
        self.state.filter.flow_kinds(now, within)
    }

    /// Counts the live flows of each workload of this node that would be cut if these links were as
    /// given.
    pub fn count_cut_flows(
        &self,
        now: Instant,
        links: &HashMap<Link, Acl>,
    ) -> HashMap<WorkloadId, u64> {
        let mut cuts = HashMap::new();
        let tables = self.state.tables.read();
        self.state.filter.for_each_live(now, |flow| {
            let Some((workload, local)) = tables.local_at(flow.source) else { return };
            let (Some(source), Ok(route)) = (local.party(), tables.route(now, &flow.destination))
            else {
                return;
            };
            let acl = links.get(&Link { from: source.identity, to: route.party.identity });
            let is_cut = acl.is_some_and(|acl| {
                let owner = QuotaOwner::Workload(workload);
                let is_at = tables.rules.is_at(owner, flow.destination, NameAge::Any);
                let verdict = acl.verdict_on(flow.protocol, flow.destination_port, is_at);
                verdict == Verdict::Denied
            });
            if is_cut {
                *cuts.entry(local.workload.id.clone()).or_default() += 1;
            }
        });
        cuts
    }

    /// Returns the number of live flows that others have begun to local workloads, of those that
    /// have any.
    pub fn count_flows_to(
        &self,
        now: Instant,
        workloads: &HashSet<WorkloadId>,
    ) -> HashMap<WorkloadId, u64> {
        let mut counts = HashMap::new();
        let tables = self.state.tables.read();
        self.state.filter.for_each_live(now, |flow| {
            let Some((_, local)) = tables.local_at(flow.destination) else { return };
            if workloads.contains(&local.workload.id) {
                *counts.entry(local.workload.id.clone()).or_default() += 1;
            }
        });
        counts
    }

    /// Begins a packet batch of a worker. Changes wait until it is finished, so it is to be short.
    pub fn begin_batch<'a>(
        &'a self,
        scratch: &'a mut WorkerScratch,
        now: Instant,
    ) -> PacketBatch<'a> {
        PacketBatch::new(&self.state, scratch, now)
    }

    /// Notes that more handshake messages wait than are done: for a second their senders have to
    /// show that they receive at their address, and have limits.
    pub fn note_overload(&self, now: Instant) {
        let transport = &self.state.transport;
        transport.gate.begin_load(transport.millis(now));
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn end_load(&self) {
        self.state.transport.gate.end_load();
    }

    /// Receives a handshake message, or the response of a STUN server, that a worker has queued,
    /// and sends the packets that have waited for its session.
    pub fn receive_handshake(
        &self,
        now: Now,
        incoming: Incoming<'_>,
        scratch: &mut WorkerScratch,
        sink: &mut impl Sink,
    ) {
        let Incoming { from, message } = incoming;
        if stun::is_response(message) {
            if !self.reflexive.lock().receive_response(now.instant, message) {
                self.state.drops.count(DropReason::UnknownPeer, 1);
            }
            return;
        }
        let received = self.state.transport.receive_handshake(now, incoming, &mut send_plain(sink));
        match received {
            Ok(Some(peer)) => {
                sink.authenticated(from);
                self.send_staged(now, &peer, scratch, sink);
            }
            Ok(None) => sink.authenticated(from),
            Err(reason) => self.state.drops.count(reason, 1),
        }
    }

    /// Sends what has waited for a session with a peer; if nothing has, a keepalive, so that the
    /// peer may use the session, too.
    fn send_staged(
        &self,
        now: Now,
        peer: &Peer,
        scratch: &mut WorkerScratch,
        sink: &mut impl Sink,
    ) {
        let transport = &self.state.transport;
        let staged = peer.take_staged(&transport.staged);
        if staged.is_empty() {
            let millis = transport.millis(now.instant);
            return peer.send_keepalive(millis, &mut send_plain(sink));
        }
        let mut batch = self.begin_batch(scratch, now.instant);
        for packet in staged {
            batch.send_staged(peer.index, packet, sink);
        }
        batch.finish(sink);
    }

    /// Begins the handshakes that were requested.
    pub fn begin_handshakes(&self, now: Now, sink: &mut impl Sink) {
        self.state.transport.begin_requested(now, &mut send_plain(sink));
    }

    /// Sends a keepalive to every peer with a session, so that it learns the new address of this
    /// node, and has STUN servers asked again.
    pub fn announce_address(&self, now: Instant, sink: &mut impl Sink) {
        self.state.transport.announce_address(now, &mut send_plain(sink));
        self.reflexive.lock().ask_again();
    }

    /// Sets the STUN servers that are asked under which addresses they see the endpoint.
    pub fn set_stun_servers(&self, servers: &[SocketAddr]) {
        self.reflexive.lock().set_servers(servers);
    }

    /// Returns the addresses under which others see the endpoint, as far as they are known.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        self.reflexive.lock().addresses()
    }

    /// Sets whether others see the endpoint under another address than it has: then the mappings of
    /// NATs are kept.
    pub fn set_behind_nat(&self, behind_nat: bool) {
        self.state.transport.set_behind_nat(behind_nat);
    }

    /// Removes and returns the peers that need a hole-punch request by the coordinator: a handshake
    /// was begun with each, and none has answered. NATs on both sides open only from within, so
    /// both have to begin.
    pub fn take_hole_punch_requests(&self) -> Vec<NodeName> {
        let mut requests = self.state.transport.take_hole_punch_requests();
        if requests.is_empty() {
            return vec![];
        }
        requests.sort_unstable();
        let tables = self.state.tables.read();
        let peers = tables.peers().filter(|(peer, _)| requests.binary_search(peer).is_ok());
        peers.map(|(_, node)| node.clone()).collect()
    }

    /// Answers a hole-punch request of a peer: a handshake with it begins with the next
    /// [`Self::begin_handshakes`], unless one is under way. Returns whether one does.
    pub fn answer_hole_punch(&self, node: &NodeName) -> bool {
        let peer = self.peer_of(node);
        peer.is_some_and(|peer| self.state.transport.answer_hole_punch(peer))
    }

    /// Sends a ping to a peer, on the path of packets to it. `None`: there is no session; a
    /// handshake begins.
    ///
    /// # Errors
    /// [`UnknownPeer`] if there is no such peer.
    pub fn ping(
        &self,
        now: Instant,
        node: &NodeName,
        sink: &mut impl Sink,
    ) -> Result<Option<SentPing>, UnknownPeer> {
        let peer = self.peer_of(node).ok_or(UnknownPeer)?;
        let PingStart { sent, handshake_requested } =
            self.state.transport.ping(now, peer, &mut send_plain(sink));
        if handshake_requested {
            sink.request_handshakes();
        }
        Ok(sent)
    }

    /// Returns the round-trip time of a ping, once its response is there.
    pub fn ping_rtt(&self, node: &NodeName, number: u32) -> Option<Duration> {
        self.state.transport.ping_rtt(self.peer_of(node)?, number)
    }

    pub(super) fn peer_of(&self, node: &NodeName) -> Option<PeerIndex> {
        self.state.tables.read().peers().find(|(_, own)| *own == node).map(|(peer, _)| peer)
    }

    /// Returns the vouches of this node.
    pub(super) fn own_vouches(&self) -> Vec<Vouch> {
        self.state.tables.read().own_vouches()
    }
}
