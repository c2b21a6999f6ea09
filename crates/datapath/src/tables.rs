//! What an endpoint knows of workloads, peers and rules, by the word of the coordinator and of its
//! own node.

use crate::{
    claims::Claims,
    drops::DropReason,
    endpoint::{LocalWorkload, WorkloadIndex},
    gateways::{Prefixes, first_up},
    rules::{Party, Rules},
    shares::QuotaOwner,
    vouch,
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ipnet::IpNet;
use meshward_control_proto::view::{PeerSpec, WorkloadSpec};
use meshward_types::{IdentityId, NodeName, WorkloadId};
use std::{collections::HashSet, hash::BuildHasher, net::IpAddr, time::Instant};

#[derive(Debug)]
pub(crate) struct Local {
    pub workload: LocalWorkload,
    pub owner: QuotaOwner,
    claimant: Claimant,
    pub admitted: Option<Party>,
    /// Its place among the peers, if it is a device.
    pub device: Option<usize>,
    /// Held by the node's own decision.
    pub held: bool,
}

impl Local {
    pub fn party(&self) -> Option<Party> {
        let owner = self.owner;
        let vouched = self.workload.vouched.map(|identity| Party {
            identity,
            quarantined: false,
            reset: false,
            owner,
        });
        let party = self.admitted.or(vouched)?;
        Some(Party { quarantined: party.quarantined || self.held, ..party })
    }
}

/// Where an address is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Local(WorkloadIndex),
    Peer(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Vouched {
    pub identity: IdentityId,
    pub peer: usize,
    until: Instant,
}

/// Who claims an address or a prefix: a number that nobody gets again.
type Claimant = u32;

/// What the claim of an address says. What this node has given out goes before what others are said
/// to have.
#[derive(Debug, Clone, Copy)]
enum Holder {
    Local(u32),
    Peer(u32, Party),
}

impl Holder {
    fn outranks(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Local(_), Self::Peer(..)))
    }
}

/// A gateway of this node: who claims the prefix, and its slot.
type LocalGateway = (Claimant, WorkloadIndex);
/// A gateway elsewhere: who claims the prefix, at which peer's place, and who is behind it.
type Gateway = (Claimant, usize, Party);

/// What the coordinator said of a workload.
#[derive(Debug)]
struct Known {
    claimant: Claimant,
    spec: WorkloadSpec,
}

/// Everything that a packet's way rests on, but for the flows and the sessions.
#[derive(Debug)]
pub(crate) struct Tables {
    node: NodeName,
    pub rules: Rules,
    /// The longest packet of a workload, in bytes; 0: not known yet.
    pub mtu: u16,
    /// The network's addresses.
    pub prefixes: Vec<IpNet>,
    locals: Vec<Option<Local>>,
    local_ids: HashMap<WorkloadId, WorkloadIndex>,
    /// Who has which address: a workload of this node, or one of a peer.
    addresses: Claims<IpAddr, Claimant, Holder>,
    last_claimant: Claimant,
    local_prefixes: Prefixes<LocalGateway>,
    /// What the coordinator said of workloads, this node's own included.
    workloads: HashMap<WorkloadId, Known>,
    remote_prefixes: Prefixes<Gateway>,
    /// Peers that are gateways beside others and do not answer.
    pub down: HashSet<usize>,
    /// How many workloads of an identity a peer runs, as the coordinator says: for those it may
    /// vouch.
    hosted: HashMap<(usize, IdentityId), usize>,
    vouched: HashMap<IpAddr, Vouched>,
    peer_places: HashMap<NodeName, usize>,
    peers: Vec<Option<(NodeName, PeerSpec)>>,
    /// Devices by their places among the peers, and places of devices that are gone.
    devices: HashMap<usize, WorkloadIndex>,
    free_places: Vec<usize>,
    hasher: RandomState,
}

impl Tables {
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            rules: Rules::default(),
            mtu: 0,
            prefixes: vec![],
            locals: Vec::new(),
            local_ids: HashMap::new(),
            addresses: Claims::default(),
            last_claimant: 0,
            local_prefixes: Prefixes::default(),
            workloads: HashMap::new(),
            remote_prefixes: Prefixes::default(),
            down: HashSet::new(),
            hosted: HashMap::new(),
            vouched: HashMap::new(),
            peer_places: HashMap::new(),
            peers: Vec::new(),
            devices: HashMap::new(),
            free_places: Vec::new(),
            hasher: RandomState::default(),
        }
    }

    /// Adds a workload of this node.
    pub fn add_workload(&mut self, workload: LocalWorkload) -> WorkloadIndex {
        let free = self.locals.iter().position(Option::is_none);
        let slot = WorkloadIndex(free.unwrap_or(self.locals.len()));
        let claimant = self.next_claimant();
        for address in &workload.addresses {
            self.addresses.put(*address, claimant, Holder::Local(slot.0 as u32), Holder::outranks);
        }
        for prefix in &workload.prefixes {
            self.local_prefixes.add(*prefix, (claimant, slot), |(claimant, _)| *claimant);
        }
        self.local_ids.insert(workload.id.clone(), slot);
        let owner = QuotaOwner::Workload(slot.0 as u32);
        let known = self.workloads.get(&workload.id);
        let admitted = known.and_then(|known| self.admits(&known.spec, &workload, owner));
        let local = Some(Local { workload, owner, claimant, admitted, device: None, held: false });
        match self.locals.get_mut(slot.0) {
            Some(place) => *place = local,
            None => self.locals.push(local),
        }
        self.rules.begin_generation();
        slot
    }

    fn next_claimant(&mut self) -> Claimant {
        self.last_claimant = self.last_claimant.wrapping_add(1);
        self.last_claimant
    }

    /// Makes a workload of this node a device, and gives its place among the peers.
    pub fn make_device(&mut self, slot: WorkloadIndex) -> usize {
        let free = self.free_places.pop();
        let place = free.unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() - 1
        });
        if let Some(local) = self.locals.get_mut(slot.0).and_then(Option::as_mut) {
            local.device = Some(place);
        }
        self.devices.insert(place, slot);
        place
    }

    /// The device that is at a peer's place.
    pub fn device_at(&self, place: usize) -> Option<WorkloadIndex> {
        if self.devices.is_empty() { None } else { self.devices.get(&place).copied() }
    }

    /// The devices, and their places among the peers.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &WorkloadId)> {
        self.devices
            .iter()
            .filter_map(|(place, slot)| Some((*place, &self.local(*slot)?.workload.id)))
    }

    /// Removes a workload of this node. If it was a device: its place among the peers.
    pub fn remove_workload(&mut self, slot: WorkloadIndex) -> Option<usize> {
        let local = self.locals.get_mut(slot.0).and_then(Option::take)?;
        if let Some(place) = local.device {
            self.devices.remove(&place);
            self.free_places.push(place);
        }
        if self.local_ids.get(&local.workload.id) == Some(&slot) {
            self.local_ids.remove(&local.workload.id);
        }
        for address in &local.workload.addresses {
            self.addresses.remove(address, local.claimant);
        }
        for prefix in &local.workload.prefixes {
            self.local_prefixes.remove(*prefix, |(own, _)| *own == local.claimant);
        }
        self.rules.begin_generation();
        local.device
    }

    /// Sets the identity that the node vouches for.
    pub fn vouch(&mut self, slot: WorkloadIndex, identity: Option<IdentityId>) {
        if let Some(local) = self.locals.get_mut(slot.0).and_then(Option::as_mut) {
            local.workload.vouched = identity;
            self.rules.begin_generation();
        }
    }

    /// Holds a workload by the node's own decision, or lets it go.
    pub fn hold(&mut self, slot: WorkloadIndex, held: bool) {
        if let Some(local) = self.locals.get_mut(slot.0).and_then(Option::as_mut) {
            local.held = held;
            self.rules.begin_generation();
        }
    }

    /// Notes a peer, and gives its place.
    pub fn put_peer(&mut self, node: &NodeName, spec: PeerSpec) -> usize {
        let place = self.peer_place(node);
        self.peers[place] = Some((node.clone(), spec));
        place
    }

    /// Forgets a peer, and gives the place that it had.
    pub fn drop_peer(&mut self, node: &NodeName) -> usize {
        let place = self.peer_place(node);
        self.peers[place] = None;
        self.vouched.retain(|_, vouched| vouched.peer != place);
        place
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

    /// Notes what the coordinator says of a workload; `None`: that it is gone.
    pub fn put_workload(&mut self, id: &WorkloadId, spec: Option<WorkloadSpec>) {
        self.note_admitted(id, spec.as_ref());
        let before = self.workloads.remove(id);
        let claimant = before.as_ref().map(|known| known.claimant);
        if let Some(known) = &before {
            self.withdraw(known, spec.as_ref().filter(|spec| spec.node != self.node));
        }
        let Some(spec) = spec else { return };
        let claimant = claimant.unwrap_or_else(|| self.next_claimant());
        if spec.node != self.node {
            self.claim(claimant, &spec);
        }
        self.workloads.insert(id.clone(), Known { claimant, spec });
    }

    fn note_admitted(&mut self, id: &WorkloadId, spec: Option<&WorkloadSpec>) {
        let Some(&WorkloadIndex(slot)) = self.local_ids.get(id) else { return };
        let admitted = spec.and_then(|spec| {
            let local = self.locals[slot].as_ref()?;
            self.admits(spec, &local.workload, local.owner)
        });
        if let Some(local) = self.locals[slot].as_mut() {
            local.admitted = admitted;
        }
    }

    /// Takes back what a workload of a peer had, but for what it has on.
    fn withdraw(&mut self, known: &Known, next: Option<&WorkloadSpec>) {
        let Known { claimant, spec: before } = known;
        if before.node == self.node {
            return;
        }
        let place = self.peer_place(&before.node);
        if let Some(count) = self.hosted.get_mut(&(place, before.identity)) {
            *count -= 1;
            if *count == 0 {
                self.hosted.remove(&(place, before.identity));
            }
        }
        let has_on = |address: &&IpAddr| next.is_some_and(|next| next.addresses.contains(address));
        for address in before.addresses.iter().filter(|address| !has_on(address)) {
            self.addresses.remove(address, *claimant);
        }
        for prefix in &before.prefixes {
            self.remote_prefixes.remove(*prefix, |(own, ..)| own == claimant);
        }
    }

    /// Gives a workload of a peer what the coordinator says it has.
    fn claim(&mut self, claimant: Claimant, spec: &WorkloadSpec) {
        let place = self.peer_place(&spec.node);
        *self.hosted.entry((place, spec.identity)).or_default() += 1;
        let owner = QuotaOwner::Peer(place as u32, claimant);
        let party = party_of(spec, owner);
        for address in &spec.addresses {
            self.addresses.put(
                *address,
                claimant,
                Holder::Peer(place as u32, party),
                Holder::outranks,
            );
            self.vouched.remove(address);
        }
        for prefix in &spec.prefixes {
            let Self { remote_prefixes, peers, .. } = self;
            let name = |(claimant, place, _): &Gateway| {
                let node = peers.get(*place).and_then(Option::as_ref).map(|(node, _)| node.clone());
                (node, *claimant)
            };
            remote_prefixes.add(*prefix, (claimant, place, party), name);
        }
    }

    /// What the coordinator says of a workload counts only for this node and these addresses.
    fn admits(
        &self,
        spec: &WorkloadSpec,
        local: &LocalWorkload,
        owner: QuotaOwner,
    ) -> Option<Party> {
        let same = spec.node == self.node
            && spec.addresses == local.addresses
            && spec.prefixes == local.prefixes;
        same.then(|| party_of(spec, owner))
    }

    /// A workload of this node.
    pub fn local(&self, slot: WorkloadIndex) -> Option<&Local> {
        self.locals.get(slot.0)?.as_ref()
    }

    /// The workload of this node that has an address, or behind which it lies.
    pub fn local_at(&self, address: IpAddr) -> Option<(WorkloadIndex, &Local)> {
        let behind = || Some(self.local_prefixes.find(address)?.1.first()?.1);
        let own = match self.addresses.get(&address) {
            Some(Holder::Local(slot)) => Some(WorkloadIndex(*slot as usize)),
            _ => None,
        };
        let slot = own.or_else(behind)?;
        Some((slot, self.local(slot)?))
    }

    /// Whether a packet with this source may come from a workload.
    pub fn is_source_of(&self, slot: WorkloadIndex, local: &Local, address: IpAddr) -> bool {
        local.workload.addresses.contains(&address)
            || !local.workload.prefixes.is_empty()
                && self.local_at(address).is_some_and(|(own, _)| own == slot)
    }

    /// For whom a workload may send an ICMP error about a packet to an address: for itself, or, if
    /// it is a route, for another route of this node, since both interfaces are the host's own.
    pub fn answers_for<'a>(
        &'a self,
        slot: WorkloadIndex,
        local: &'a Local,
        quoted: IpAddr,
    ) -> Option<&'a Local> {
        if self.is_source_of(slot, local, quoted) {
            return Some(local);
        }
        let (_, other) = self.local_at(quoted)?;
        let are_routes = !local.workload.prefixes.is_empty() && !other.workload.prefixes.is_empty();
        are_routes.then_some(other)
    }

    /// The peers that are gateways beside others.
    pub fn shared_gateways(&self) -> HashSet<usize> {
        self.remote_prefixes.shared().map(|(_, place, _)| *place).collect()
    }

    /// Where an address is, and who is there.
    pub fn find(&self, now: Instant, address: IpAddr) -> Result<(Place, Party), DropReason> {
        match self.addresses.get(&address) {
            Some(Holder::Peer(place, party)) => return Ok((Place::Peer(*place as usize), *party)),
            Some(Holder::Local(slot)) => return self.at_home(WorkloadIndex(*slot as usize)),
            None => {}
        }
        if let Some(vouched) = self.vouched.get(&address).filter(|vouched| vouched.until > now) {
            let owner = QuotaOwner::Peer(vouched.peer as u32, self.hasher.hash_one(address) as u32);
            let party =
                Party { identity: vouched.identity, quarantined: false, reset: false, owner };
            return Ok((Place::Peer(vouched.peer), party));
        }
        let local = self.local_prefixes.find(address);
        let remote = self.remote_prefixes.find(address);
        match (local, remote) {
            // What is behind this node needs no other.
            (Some((own, slots)), _) if remote.is_none_or(|(other, _)| own >= other) => {
                self.at_home(slots.first().ok_or(DropReason::UnknownAddress)?.1)
            }
            (_, Some((_, gateways))) => {
                let (_, place, party) = first_up(gateways, &self.down, |(_, place, _)| *place)
                    .ok_or(DropReason::UnknownAddress)?;
                Ok((Place::Peer(place), party))
            }
            _ => Err(DropReason::UnknownAddress),
        }
    }

    fn at_home(&self, slot: WorkloadIndex) -> Result<(Place, Party), DropReason> {
        let local = self.local(slot).ok_or(DropReason::UnknownAddress)?;
        Ok((Place::Local(slot), local.party().ok_or(DropReason::NotAdmitted)?))
    }

    /// Who sends from an address, if it is one of a peer's.
    pub fn sender(&self, now: Instant, peer: usize, address: IpAddr) -> Result<Party, DropReason> {
        if self.peer_owns(peer, address) {
            let (place, party) = self.find(now, address)?;
            return match place {
                Place::Peer(own) if own == peer => Ok(party),
                _ => Err(DropReason::SpoofedByPeer),
            };
        }
        // Any gateway of a prefix may be the one that its machines send by.
        let gateways = self.remote_prefixes.find(address).map_or(&[][..], |(_, gateways)| gateways);
        let own = gateways.iter().find(|(_, place, _)| *place == peer);
        own.map(|(_, _, party)| *party).ok_or(DropReason::SpoofedByPeer)
    }

    /// Whether an ICMP error with this source address may come from the workload `of`, which a
    /// packet to `quoted` was going to: from its own addresses and from those behind it, and, if it
    /// is the gateway behind which `quoted` lies, from routers that the mesh does not know (RFC
    /// 1812 §4.3.2.4 leaves open which of its addresses a router uses).
    pub fn is_source_of_error(
        &self,
        now: Instant,
        of: Party,
        source: IpAddr,
        quoted: IpAddr,
    ) -> bool {
        if source == quoted {
            return true;
        }
        // Several gateways may have one prefix.
        let has_prefix = || {
            let gateways =
                self.remote_prefixes.find(source).map_or(&[][..], |(_, gateways)| gateways);
            gateways.iter().any(|(_, _, party)| party.owner == of.owner)
        };
        match self.find(now, source) {
            Ok((_, party)) => party.owner == of.owner || has_prefix(),
            Err(DropReason::UnknownAddress) => {
                let of_mesh = self.prefixes.iter().any(|prefix| prefix.contains(&source));
                !of_mesh && self.is_behind_gateway(quoted)
            }
            Err(_) => false,
        }
    }

    fn is_behind_gateway(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_none()
            && (self.local_prefixes.find(address).is_some()
                || self.remote_prefixes.find(address).is_some())
    }

    /// Whether the coordinator gave a peer the prefix that an address is of.
    pub fn peer_owns(&self, peer: usize, address: IpAddr) -> bool {
        let spec = self.peers.get(peer).and_then(Option::as_ref);
        spec.is_some_and(|(_, spec)| {
            spec.prefixes.iter().any(|prefix: &IpNet| prefix.contains(&address))
        })
    }

    /// Whether a peer may vouch for an identity at an address: it runs other workloads of it, and
    /// the address is its own.
    pub fn may_vouch(&self, peer: usize, identity: IdentityId, address: IpAddr) -> bool {
        self.hosted.contains_key(&(peer, identity)) && self.peer_owns(peer, address)
    }

    /// Takes a peer's word for a workload of which the coordinator has not spoken. The peer may
    /// give it.
    pub fn take_vouch(&mut self, now: Instant, peer: usize, identity: IdentityId, address: IpAddr) {
        if self.addresses.get(&address).is_some() {
            return;
        }
        // Who vouches first is believed until its word has had its time.
        let by_another = self.vouched.get(&address).filter(|vouched| vouched.peer != peer);
        if by_another.is_some_and(|vouched| vouched.until > now) {
            return;
        }
        let vouched = Vouched { identity, peer, until: now + vouch::LIFETIME };
        let before = self.vouched.insert(address, vouched);
        if before.is_none_or(|before| before.identity != identity || before.peer != peer) {
            self.rules.begin_generation();
        }
    }

    /// Whether there are vouches whose time is up.
    pub fn has_old_vouches(&self, now: Instant) -> bool {
        self.vouched.values().any(|vouched| vouched.until <= now)
    }

    /// Forgets vouches whose time is up.
    pub fn forget_old_vouches(&mut self, now: Instant) {
        self.vouched.retain(|_, vouched| vouched.until > now);
    }

    /// The workloads that the node vouches for, as the packets that say so.
    pub fn vouches(&self) -> Vec<[u8; vouch::LENGTH]> {
        let unconfirmed = self.locals.iter().flatten().filter(|local| local.admitted.is_none());
        unconfirmed
            .filter_map(|local| Some((local.workload.vouched?, &local.workload.addresses)))
            .flat_map(|(identity, addresses)| {
                addresses.iter().map(move |a| vouch::encode(identity, *a))
            })
            .collect()
    }

    /// The peers and their places.
    pub fn peers(&self) -> impl Iterator<Item = (usize, &NodeName)> {
        let peers = self.peers.iter().enumerate();
        peers.filter_map(|(place, peer)| peer.as_ref().map(|(node, _)| (place, node)))
    }
}

fn party_of(spec: &WorkloadSpec, owner: QuotaOwner) -> Party {
    Party { identity: spec.identity, quarantined: spec.quarantined, reset: spec.reset, owner }
}

#[cfg(test)]
mod tests;
