//! The stable matching of clients and instances by scores, updated in steps.

use std::collections::{BTreeMap, BinaryHeap};

/// The percentage by which an instance may have more clients than the mean. Less would move more
/// pairs with every change, more would leave instances unequal.
const SLACK_PERCENT: u32 = 5;

/// The share by which an instance may have more clients than the mean.
pub const SLACK: f64 = SLACK_PERCENT as f64 / 100.0;

/// A side of the matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The nodes of clients.
    Clients,
    /// The instances.
    Instances,
}

/// A client and an instance, by their slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) client: u32,
    pub(super) instance: u32,
}

/// The matching.
#[derive(Debug, Default)]
pub(super) struct Matching {
    clients: SideMembers,
    instances: SideMembers,
    /// The pairs that differ from those of the last settlement: `true` for new ones.
    changed: BTreeMap<Pair, bool>,
}

/// The members of one side by slot.
#[derive(Debug, Default)]
struct SideMembers {
    members: Vec<Member>,
    /// The hashes of the members' names: apart, so that a pass over them is fast.
    hashes: Vec<u64>,
    /// The scores that a new link must exceed: 0 while there is room, `u64::MAX` for free slots.
    floors: Vec<u64>,
    /// Members that may have a better link than those that they have.
    woken: Vec<u32>,
}

#[derive(Debug, Default)]
struct Member {
    is_there: bool,
    /// The most links that it takes.
    capacity: usize,
    /// The links, the lowest score first.
    links: Vec<Link>,
}

/// A link, as one end has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    score: u64,
    other: u32,
}

impl SideMembers {
    fn update_floor(&mut self, slot: u32) {
        let member = &self.members[slot as usize];
        self.floors[slot as usize] = match member.links.first() {
            _ if member.capacity == 0 => u64::MAX,
            Some(lowest) if member.links.len() >= member.capacity => lowest.score,
            _ => 0,
        };
    }

    fn is_full(&self, slot: u32) -> bool {
        let member = &self.members[slot as usize];
        member.links.len() >= member.capacity
    }

    fn insert(&mut self, slot: u32, link: Link) {
        let links = &mut self.members[slot as usize].links;
        let at = links.partition_point(|other| *other < link);
        links.insert(at, link);
        self.update_floor(slot);
    }

    /// Removes a link. Wakes the member if it had no room.
    fn remove(&mut self, slot: u32, link: Link) {
        if self.is_full(slot) {
            self.woken.push(slot);
        }
        let links = &mut self.members[slot as usize].links;
        if let Ok(at) = links.binary_search(&link) {
            links.remove(at);
        }
        self.update_floor(slot);
    }

    /// Returns the lowest link of a member.
    fn lowest(&self, slot: u32) -> Option<Link> {
        self.members[slot as usize].links.first().copied()
    }
}

impl Matching {
    /// Adds a member in a free slot.
    pub(super) fn add(&mut self, side: Side, slot: u32, hash: u64) {
        let own = self.side(side);
        let at = slot as usize;
        if at == own.members.len() {
            own.members.push(Member::default());
            own.hashes.push(0);
            own.floors.push(u64::MAX);
        }
        own.members[at].is_there = true;
        own.hashes[at] = hash;
    }

    /// Sets the number of instances for a client.
    pub(super) fn set_fan_out(&mut self, slot: u32, fan_out: usize) {
        self.set_capacity(Side::Clients, slot, fan_out);
    }

    /// Removes a member with its links.
    pub(super) fn remove(&mut self, side: Side, slot: u32) {
        self.set_capacity(side, slot, 0);
        self.side(side).members[slot as usize].is_there = false;
    }

    /// Returns the slots that a member is linked with.
    pub(super) fn linked(&self, side: Side, slot: u32) -> impl Iterator<Item = u32> {
        let own = match side {
            Side::Clients => &self.clients,
            Side::Instances => &self.instances,
        };
        own.members[slot as usize].links.iter().map(|link| link.other)
    }

    /// Makes the matching stable. Returns the pairs that it changed: `true` for new ones.
    pub(super) fn settle(&mut self) -> BTreeMap<Pair, bool> {
        self.share_out();
        loop {
            if let Some(slot) = self.clients.woken.pop() {
                self.improve(Side::Clients, slot);
            } else if let Some(slot) = self.instances.woken.pop() {
                self.improve(Side::Instances, slot);
            } else {
                return std::mem::take(&mut self.changed);
            }
        }
    }

    fn side(&mut self, side: Side) -> &mut SideMembers {
        match side {
            Side::Clients => &mut self.clients,
            Side::Instances => &mut self.instances,
        }
    }

    /// Sets the capacities of instances: the mean and its slack, in all. They are whole numbers, so
    /// that the fraction of instances that follows from the mean has one more than the others, by their
    /// hashes: then a small change of the mean changes few of them.
    fn share_out(&mut self) {
        let there = |side: &SideMembers| side.members.iter().filter(|one| one.is_there).count();
        let instances = there(&self.instances);
        if instances == 0 {
            return;
        }
        let clients = self.clients.members.iter().filter(|member| member.is_there);
        let links: usize = clients.map(|member| member.capacity.min(instances)).sum();
        let most_links = links as u128 * u128::from(100 + SLACK_PERCENT);
        let share = (most_links << 16) / (instances as u128 * 100);
        for slot in 0..self.instances.members.len() as u32 {
            if self.instances.members[slot as usize].is_there {
                let fraction = u128::from(self.instances.hashes[slot as usize] >> 48);
                let capacity = ((share + fraction) >> 16).max(1) as usize;
                self.set_capacity(Side::Instances, slot, capacity);
            }
        }
    }

    fn set_capacity(&mut self, side: Side, slot: u32, capacity: usize) {
        let own = self.side(side);
        let before = own.members[slot as usize].capacity;
        if capacity > before && own.is_full(slot) {
            own.woken.push(slot);
        }
        own.members[slot as usize].capacity = capacity;
        own.update_floor(slot);
        while self.side(side).members[slot as usize].links.len() > capacity {
            let Some(lowest) = self.side(side).lowest(slot) else { return };
            self.unlink(side, slot, lowest);
        }
    }

    /// Gives a member the best links that both ends want, instead of the lowest that they have.
    fn improve(&mut self, side: Side, slot: u32) {
        let (own, others) = match side {
            Side::Clients => (&self.clients, &self.instances),
            Side::Instances => (&self.instances, &self.clients),
        };
        let (hash, floor) = (own.hashes[slot as usize], own.floors[slot as usize]);
        let scores = others.hashes.iter().map(|other| mix(hash ^ other));
        let wanted = scores.zip(&others.floors).zip(0..);
        let wanted = wanted.filter(|((score, theirs), _)| *score > floor.max(**theirs));
        let mut wanted: BinaryHeap<Link> =
            wanted.map(|((score, _), other)| Link { score, other }).collect();
        while let Some(link) = wanted.pop() {
            let own = self.side(side);
            if own.members[slot as usize].links.binary_search(&link).is_ok() {
                continue;
            }
            if link.score <= own.floors[slot as usize] {
                return;
            }
            self.make_room(side, slot);
            self.make_room(side.opposite(), link.other);
            self.link(side, slot, link);
        }
    }

    /// Unlinks the lowest link of a member without room.
    fn make_room(&mut self, side: Side, slot: u32) {
        if self.side(side).is_full(slot)
            && let Some(lowest) = self.side(side).lowest(slot)
        {
            self.unlink(side, slot, lowest);
        }
    }

    fn link(&mut self, side: Side, slot: u32, link: Link) {
        self.side(side).insert(slot, link);
        self.side(side.opposite()).insert(link.other, Link { other: slot, ..link });
        self.note(side.pair(slot, link.other), true);
    }

    /// Ends a link, and wakes the other end. The member itself has something better.
    fn unlink(&mut self, side: Side, slot: u32, link: Link) {
        let own = self.side(side);
        own.members[slot as usize].links.retain(|own| *own != link);
        own.update_floor(slot);
        let opposite = self.side(side.opposite());
        opposite.remove(link.other, Link { other: slot, ..link });
        self.note(side.pair(slot, link.other), false);
    }

    /// Notes a change of a pair; a second one takes the first back.
    fn note(&mut self, pair: Pair, is_gained: bool) {
        if self.changed.remove(&pair).is_none() {
            self.changed.insert(pair, is_gained);
        }
    }
}

impl Side {
    fn opposite(self) -> Self {
        match self {
            Self::Clients => Self::Instances,
            Self::Instances => Self::Clients,
        }
    }

    fn pair(self, slot: u32, other: u32) -> Pair {
        match self {
            Self::Clients => Pair { client: slot, instance: other },
            Self::Instances => Pair { client: other, instance: slot },
        }
    }
}

/// Spreads the bits of a number: the finalizer of `SplitMix64` (Steele, Lea, Flood 2014).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
