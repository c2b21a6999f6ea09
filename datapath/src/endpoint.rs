//! An endpoint: one node's part in one network. It knows the workloads, the peers and the links, and takes every packet
//! from where it comes in to where it goes out.

use crate::{
    batch::Batch,
    coalesce::{Coalescer, Merged},
    drops::{Cause, Drops},
    filter::{Filter, LinkStats, Party},
    offload::Offload,
    packet::Headers,
    segment, vouch,
    wireguard::{PeerStats, SecretKey, Wireguard},
};
use ipnet::IpNet;
use meshward_model::{
    Change, IdentityId, Item, ItemKey, NodeName, PublicKey, WorkloadId,
    view::{PeerSpec, WorkloadSpec},
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// The place of a local workload in its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub usize);

/// Where packets go.
pub trait Sink {
    /// Hands a packet, which may be a super-packet, to a local workload; `false` if it was not taken.
    fn to_workload(&mut self, slot: Slot, offload: Offload, packet: &[u8]) -> bool;
    /// Sends datagrams, each of `size` bytes but for the last, which may be shorter; `false` if they were not taken.
    fn to_network(&mut self, to: SocketAddr, datagrams: &[u8], size: usize) -> bool;
}

/// A workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Its id.
    pub id: WorkloadId,
    /// The only addresses that it may send from.
    pub addresses: Vec<IpAddr>,
    /// The identity that the node vouches for while the coordinator has not spoken.
    pub vouched: Option<IdentityId>,
}

/// What an endpoint counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStats {
    /// Packets dropped, by cause.
    pub drops: Drops,
    /// Flows in the table.
    pub flows: usize,
    /// Every link that was used or tried.
    pub links: Vec<LinkStats>,
    /// The peers.
    pub peers: Vec<(NodeName, PeerStats)>,
}

#[derive(Debug)]
struct Local {
    workload: LocalWorkload,
    admitted: Option<Party>,
}

impl Local {
    fn party(&self) -> Option<Party> {
        let vouched = self.workload.vouched.map(|identity| Party { identity, quarantined: false });
        self.admitted.or(vouched)
    }
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Local(Slot),
    Peer(usize),
}

#[derive(Debug, Clone, Copy)]
struct Vouched {
    identity: IdentityId,
    peer: usize,
    until: Instant,
}

/// One node's part in one network.
pub struct Endpoint {
    node: NodeName,
    wireguard: Wireguard,
    filter: Filter,
    locals: Vec<Option<Local>>,
    local_ids: HashMap<WorkloadId, Slot>,
    local_addresses: HashMap<IpAddr, Slot>,
    /// What the coordinator said of workloads, this node's own included.
    workloads: HashMap<WorkloadId, WorkloadSpec>,
    remote_addresses: HashMap<IpAddr, (usize, Party)>,
    vouched: HashMap<IpAddr, Vouched>,
    peer_places: HashMap<NodeName, usize>,
    peers: Vec<Option<(NodeName, PeerSpec)>>,
    drops: Drops,
    opened: Vec<u8>,
    /// Where segments are built.
    scratch: Vec<u8>,
    batch: Batch,
    coalescer: Coalescer,
    /// `None`: at the next tick.
    next_vouch: Option<Instant>,
}

impl Endpoint {
    /// An endpoint that knows nothing and lets nothing pass. `resume`: see [`Filter::new`].
    pub fn new(node: NodeName, secret: SecretKey, now: Instant, resume: Duration) -> Self {
        Self {
            node,
            wireguard: Wireguard::new(secret),
            filter: Filter::new(now, resume),
            locals: Vec::new(),
            local_ids: HashMap::new(),
            local_addresses: HashMap::new(),
            workloads: HashMap::new(),
            remote_addresses: HashMap::new(),
            vouched: HashMap::new(),
            peer_places: HashMap::new(),
            peers: Vec::new(),
            drops: Drops::default(),
            opened: vec![0; usize::from(u16::MAX) + 64],
            scratch: Vec::new(),
            batch: Batch::new(),
            coalescer: Coalescer::default(),
            next_vouch: None,
        }
    }

    /// Says that the workloads' interfaces take no merged UDP datagrams.
    pub fn keep_udp_apart(&mut self) {
        self.coalescer.keep_udp_apart();
    }

    /// The endpoint's key.
    pub fn public_key(&self) -> PublicKey {
        self.wireguard.public()
    }

    /// Adds a workload of this node; it stays closed until the coordinator's view has it, or it is vouched for.
    pub fn add_local(&mut self, workload: LocalWorkload) -> Slot {
        let free = self.locals.iter().position(Option::is_none);
        let slot = Slot(free.unwrap_or(self.locals.len()));
        for address in &workload.addresses {
            self.local_addresses.insert(*address, slot);
        }
        self.local_ids.insert(workload.id.clone(), slot);
        let admitted = self.workloads.get(&workload.id).and_then(|spec| self.admits(spec, &workload));
        let local = Some(Local { workload, admitted });
        match self.locals.get_mut(slot.0) {
            Some(place) => *place = local,
            None => self.locals.push(local),
        }
        self.filter.begin_generation();
        self.next_vouch = None;
        slot
    }

    /// Removes a workload of this node.
    pub fn remove_local(&mut self, slot: Slot) {
        let Some(local) = self.locals.get_mut(slot.0).and_then(Option::take) else { return };
        self.local_ids.remove(&local.workload.id);
        self.local_addresses.retain(|_, own| *own != slot);
        self.filter.begin_generation();
    }

    /// Sets the identity that the node vouches for.
    pub fn vouch(&mut self, slot: Slot, identity: Option<IdentityId>) {
        if let Some(local) = self.locals.get_mut(slot.0).and_then(Option::as_mut) {
            local.workload.vouched = identity;
            self.filter.begin_generation();
            self.next_vouch = None;
        }
    }

    /// Applies changes of the node's view that belong to this network. From the next packet on they are enforced.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put(ItemKey::Identity(_, id), Item::Identity(spec)) => {
                    self.filter.set_identity(*id, Some(spec.quarantined));
                }
                Change::Drop(ItemKey::Identity(_, id)) => self.filter.set_identity(*id, None),
                Change::Put(ItemKey::Link(_, from, to), Item::Link(acl)) => {
                    self.filter.set_link(*from, *to, Some(acl.clone()));
                }
                Change::Drop(ItemKey::Link(_, from, to)) => self.filter.set_link(*from, *to, None),
                Change::Put(ItemKey::Peer(_, node), Item::Peer(spec)) => self.put_peer(node, spec.clone()),
                Change::Drop(ItemKey::Peer(_, node)) => self.drop_peer(node),
                Change::Put(ItemKey::Workload(_, id), Item::Workload(spec)) => {
                    self.put_workload(id, Some(spec.clone()));
                }
                Change::Drop(ItemKey::Workload(_, id)) => self.put_workload(id, None),
                _ => {}
            }
        }
        self.filter.begin_generation();
    }

    fn peer_place(&mut self, node: &NodeName) -> usize {
        if let Some(&place) = self.peer_places.get(node) {
            return place;
        }
        let place = self.peers.len();
        self.peers.push(None);
        self.peer_places.insert(node.clone(), place);
        place
    }

    fn put_peer(&mut self, node: &NodeName, spec: PeerSpec) {
        let place = self.peer_place(node);
        self.wireguard.put(place, spec.public_key, spec.candidates.clone());
        self.peers[place] = Some((node.clone(), spec));
    }

    fn drop_peer(&mut self, node: &NodeName) {
        let place = self.peer_place(node);
        self.wireguard.remove(place);
        self.peers[place] = None;
        self.vouched.retain(|_, vouched| vouched.peer != place);
    }

    fn put_workload(&mut self, id: &WorkloadId, spec: Option<WorkloadSpec>) {
        let before = match &spec {
            Some(spec) => self.workloads.insert(id.clone(), spec.clone()),
            None => self.workloads.remove(id),
        };
        if let Some(before) = before.filter(|before| before.node != self.node) {
            let place = self.peer_place(&before.node);
            for address in &before.addresses {
                if self.remote_addresses.get(address).is_some_and(|(own, _)| *own == place) {
                    self.remote_addresses.remove(address);
                }
            }
        }
        if let Some(&Slot(slot)) = self.local_ids.get(id) {
            let admitted = spec.as_ref().and_then(|spec| {
                let local = self.locals[slot].as_ref()?;
                self.admits(spec, &local.workload)
            });
            if let Some(local) = self.locals[slot].as_mut() {
                local.admitted = admitted;
            }
        }
        let Some(spec) = spec.filter(|spec| spec.node != self.node) else { return };
        let place = self.peer_place(&spec.node);
        let party = Party { identity: spec.identity, quarantined: spec.quarantined };
        for address in spec.addresses {
            self.remote_addresses.insert(address, (place, party));
            self.vouched.remove(&address);
        }
    }

    /// What the coordinator says of a workload counts only for this node and these addresses.
    fn admits(&self, spec: &WorkloadSpec, local: &LocalWorkload) -> Option<Party> {
        let same = spec.node == self.node && spec.addresses == local.addresses;
        same.then_some(Party { identity: spec.identity, quarantined: spec.quarantined })
    }

    /// Takes a packet that a local workload sent, with what is still to be done to it. What leaves is kept until
    /// [`Self::flush`].
    pub fn from_workload(
        &mut self,
        now: Instant,
        slot: Slot,
        offload: Offload,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) {
        if let Err(cause) = self.route_from_workload(now, slot, offload, packet, sink) {
            self.drops.count(cause);
        }
    }

    fn route_from_workload(
        &mut self,
        now: Instant,
        slot: Slot,
        offload: Offload,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<(), Cause> {
        let headers = Headers::parse(packet).map_err(|_| Cause::Malformed)?;
        if !is_unicast(headers.destination) {
            return Err(Cause::NotUnicast);
        }
        let local = self.locals.get(slot.0).and_then(Option::as_ref).ok_or(Cause::NotAdmitted)?;
        if !local.workload.addresses.contains(&headers.source) {
            return Err(Cause::SpoofedByWorkload);
        }
        let source = local.party().ok_or(Cause::NotAdmitted)?;
        let (place, destination) = self.find(now, headers.destination)?;
        let passed = self.filter.judge(now, packet, &headers, source, destination)?;
        self.filter.count(passed, segment::count(&headers, offload), headers.length);
        let packet = &mut packet[..headers.length];
        match place {
            Place::Local(slot) => taken(sink.to_workload(slot, offload, packet)),
            Place::Peer(place) => {
                let Self { wireguard, batch, scratch, .. } = self;
                segment::segment(packet, &headers, offload, scratch, |packet| {
                    wireguard.seal(place, packet, batch, sink);
                })
            }
        }
    }

    /// Sends and hands over everything that was kept to leave together.
    pub fn flush(&mut self, now: Instant, sink: &mut impl Sink) {
        self.batch.flush(sink);
        let lost = self.batch.take_lost();
        self.drops.count_many(Cause::NotTaken, lost);
        let mut coalescer = std::mem::take(&mut self.coalescer);
        if let Some(merged) = coalescer.take() {
            self.arrive(now, merged, sink);
        }
        self.coalescer = coalescer;
    }

    /// Takes a datagram that the endpoint's socket received. What arrives is kept until [`Self::flush`].
    pub fn from_network(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], sink: &mut impl Sink) {
        let mut opened = std::mem::take(&mut self.opened);
        if let Err(cause) = self.route_from_network(now, from, datagram, &mut opened, sink) {
            self.drops.count(cause);
        }
        self.opened = opened;
    }

    fn route_from_network(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        opened: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<(), Cause> {
        if datagram.len() > opened.len() {
            return Err(Cause::UnknownPeer);
        }
        let data = self.wireguard.open(from, datagram, opened, |to, reply| {
            sink.to_network(to, reply, reply.len());
        })?;
        let Some((peer, packet)) = data else { return Ok(()) };
        if let Some((identity, address)) = vouch::decode(packet) {
            return self.take_vouch(now, peer, identity, address);
        }
        let headers = Headers::parse(packet).map_err(|_| Cause::Malformed)?;
        let mut coalescer = std::mem::take(&mut self.coalescer);
        let packet = &packet[..headers.length];
        coalescer.push(peer, packet, &headers, |merged| self.arrive(now, merged, sink));
        self.coalescer = coalescer;
        Ok(())
    }

    /// Takes what has come from a peer: packets of one flow are judged together.
    fn arrive(&mut self, now: Instant, merged: Merged, sink: &mut impl Sink) {
        let packets = segment::count(&merged.headers, merged.offload);
        if let Err(cause) = self.route_to_workload(now, merged, sink) {
            self.drops.count_many(cause, packets);
        }
    }

    fn route_to_workload(&mut self, now: Instant, merged: Merged, sink: &mut impl Sink) -> Result<(), Cause> {
        let Merged { peer, headers, offload, packet } = merged;
        if !self.peer_owns(peer, headers.source) {
            return Err(Cause::SpoofedByPeer);
        }
        let (place, source) = self.find(now, headers.source)?;
        if !matches!(place, Place::Peer(own) if own == peer) {
            return Err(Cause::SpoofedByPeer);
        }
        let slot = *self.local_addresses.get(&headers.destination).ok_or(Cause::UnknownAddress)?;
        let local = self.locals[slot.0].as_ref().ok_or(Cause::UnknownAddress)?;
        let destination = local.party().ok_or(Cause::NotAdmitted)?;
        self.filter.judge(now, packet, &headers, source, destination)?;
        taken(sink.to_workload(slot, offload, packet))
    }

    fn peer_owns(&self, peer: usize, address: IpAddr) -> bool {
        let spec = self.peers.get(peer).and_then(Option::as_ref);
        spec.is_some_and(|(_, spec)| spec.prefixes.iter().any(|prefix: &IpNet| prefix.contains(&address)))
    }

    fn find(&self, now: Instant, address: IpAddr) -> Result<(Place, Party), Cause> {
        if let Some(&slot) = self.local_addresses.get(&address) {
            let local = self.locals[slot.0].as_ref().ok_or(Cause::UnknownAddress)?;
            return Ok((Place::Local(slot), local.party().ok_or(Cause::NotAdmitted)?));
        }
        if let Some(&(place, party)) = self.remote_addresses.get(&address) {
            return Ok((Place::Peer(place), party));
        }
        let vouched = self.vouched.get(&address).filter(|vouched| vouched.until > now);
        let vouched = vouched.ok_or(Cause::UnknownAddress)?;
        Ok((Place::Peer(vouched.peer), Party { identity: vouched.identity, quarantined: false }))
    }

    fn take_vouch(
        &mut self,
        now: Instant,
        peer: usize,
        identity: IdentityId,
        address: IpAddr,
    ) -> Result<(), Cause> {
        let may = self
            .peers
            .get(peer)
            .and_then(Option::as_ref)
            .is_some_and(|(_, spec)| spec.vouches.contains(&identity));
        if !may || !self.peer_owns(peer, address) {
            return Err(Cause::SpoofedByPeer);
        }
        if self.remote_addresses.contains_key(&address) {
            return Ok(());
        }
        let vouched = Vouched { identity, peer, until: now + vouch::LIFETIME };
        let before = self.vouched.insert(address, vouched);
        if before.is_none_or(|before| before.identity != identity || before.peer != peer) {
            self.filter.begin_generation();
        }
        Ok(())
    }

    /// Runs what is due: handshakes, keepalives, vouches, the end of idle flows. Wants a call each quarter of a second.
    pub fn tick(&mut self, now: Instant, sink: &mut impl Sink) {
        self.wireguard.tick(|to, datagram| {
            sink.to_network(to, datagram, datagram.len());
        });
        self.filter.tick(now);
        self.vouched.retain(|_, vouched| vouched.until > now);
        if self.next_vouch.is_none_or(|due| now >= due) {
            self.next_vouch = Some(now + vouch::REPEAT);
            self.send_vouches(sink);
        }
    }

    fn send_vouches(&mut self, sink: &mut impl Sink) {
        let unconfirmed = self.locals.iter().flatten().filter(|local| local.admitted.is_none());
        let vouches: Vec<_> = unconfirmed
            .filter_map(|local| Some((local.workload.vouched?, &local.workload.addresses)))
            .flat_map(|(identity, addresses)| addresses.iter().map(move |a| vouch::encode(identity, *a)))
            .collect();
        if vouches.is_empty() {
            return;
        }
        for place in 0..self.peers.len() {
            for packet in &vouches {
                self.wireguard.seal(place, packet, &mut self.batch, sink);
            }
        }
        self.batch.flush(sink);
    }

    /// What has been counted.
    pub fn stats(&self) -> EndpointStats {
        let peers = self
            .peers
            .iter()
            .enumerate()
            .filter_map(|(place, peer)| Some((peer.as_ref()?.0.clone(), self.wireguard.stats(place)?)));
        EndpointStats {
            drops: self.drops,
            flows: self.filter.flows(),
            links: self.filter.links().to_vec(),
            peers: peers.collect(),
        }
    }
}

fn taken(taken: bool) -> Result<(), Cause> {
    if taken { Ok(()) } else { Err(Cause::NotTaken) }
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_multicast() || a.is_broadcast() || a.is_link_local() || a.is_unspecified()),
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified()),
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
