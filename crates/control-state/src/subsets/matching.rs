//! The stable matching of clients and instances by scores, updated in steps.

use super::{
    limits::{Census, ClientLimits, Limits},
    members::{Link, SideMembers},
    nearness::{Classes, Locality, is_near},
};
use meshward_types::{Serving, Weight};
use std::collections::{BTreeMap, BinaryHeap};

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

/// The part of an instance in its service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) weight: Weight,
    pub(super) serving: Serving,
}

/// The matching.
#[derive(Debug, Default)]
pub(super) struct Matching {
    classes: Classes,
    clients: SideMembers,
    instances: SideMembers,
    /// The fan-outs of clients by slot.
    fan_outs: Vec<usize>,
    /// The parts of instances by slot.
    parts: Vec<Part>,
    /// The links of clients that would have none: beyond the limits of the instances.
    beyond: BTreeMap<u32, u32>,
    /// The pairs that differ from those of the last settlement: `true` for new ones.
    changed: BTreeMap<Pair, bool>,
}

impl Matching {
    /// Adds a member in a free slot.
    pub(super) fn add(&mut self, side: Side, slot: u32, hash: u64) {
        self.side(side).add(slot, hash);
        let at = slot as usize;
        self.fan_outs.resize(self.clients.members.len(), 0);
        self.parts.resize(self.instances.members.len(), Part::default());
        match side {
            Side::Clients => self.fan_outs[at] = 0,
            Side::Instances => self.parts[at] = Part::default(),
        }
    }

    /// Sets the kinds of nearness that count. If they differ, all pairs are matched anew.
    pub(super) fn set_classes(&mut self, classes: Classes) {
        if self.classes != classes {
            self.classes = classes;
            for slot in self.clients.slots() {
                self.unlink_all(Side::Clients, slot);
            }
        }
    }

    /// Sets the locality of a member.
    pub(super) fn set_locality(&mut self, side: Side, slot: u32, locality: Locality) {
        if self.side(side).localities[slot as usize] != locality {
            self.unlink_all(side, slot);
            self.side(side).localities[slot as usize] = locality;
        }
    }

    /// Sets the number of usual instances for a client.
    pub(super) fn set_fan_out(&mut self, slot: u32, fan_out: usize) {
        self.fan_outs[slot as usize] = fan_out;
    }

    /// Sets the part of an instance in its service.
    pub(super) fn set_part(&mut self, slot: u32, part: Part) {
        if self.parts[slot as usize].weight != part.weight {
            self.unlink_all(Side::Instances, slot);
        }
        self.parts[slot as usize] = part;
    }

    /// Removes a member with its links.
    pub(super) fn remove(&mut self, side: Side, slot: u32) {
        self.unlink_all(side, slot);
        self.side(side).members[slot as usize].is_there = false;
    }

    /// Returns the slots that a member is linked with.
    pub(super) fn linked(&self, side: Side, slot: u32) -> impl Iterator<Item = u32> {
        let own = match side {
            Side::Clients => &self.clients,
            Side::Instances => &self.instances,
        };
        let beyond = self.beyond.iter().filter_map(move |(client, instance)| match side {
            Side::Clients => (*client == slot).then_some(*instance),
            Side::Instances => (*instance == slot).then_some(*client),
        });
        own.members[slot as usize].links.iter().map(|link| link.other).chain(beyond)
    }

    /// Returns the slots of the instances that serve: those that are ready; if none is, those whose
    /// health checks fail, as then it is the checks that are in doubt.
    pub(super) fn serving(&self) -> Vec<u32> {
        let of = |serving: Serving| -> Vec<u32> {
            let slots = self.instances.slots();
            slots
                .filter(|slot| {
                    let part = self.parts[*slot as usize];
                    part.serving == serving && part.weight.get() > 0
                })
                .collect()
        };
        let ready = of(Serving::Ready);
        if ready.is_empty() { of(Serving::Unhealthy) } else { ready }
    }

    /// Makes the matching stable. Returns the pairs that it changed: `true` for new ones.
    pub(super) fn settle(&mut self) -> BTreeMap<Pair, bool> {
        for (client, instance) in std::mem::take(&mut self.beyond) {
            self.note(Pair { client, instance }, false);
        }
        let serving = self.serving();
        self.share_out(&serving);
        loop {
            if let Some(slot) = self.clients.next_woken() {
                self.improve(Side::Clients, slot);
            } else if let Some(slot) = self.instances.next_woken() {
                self.improve(Side::Instances, slot);
            } else {
                break;
            }
        }
        self.link_beyond(&serving);
        std::mem::take(&mut self.changed)
    }

    fn side(&mut self, side: Side) -> &mut SideMembers {
        match side {
            Side::Clients => &mut self.clients,
            Side::Instances => &mut self.instances,
        }
    }

    /// Sets the limits of all, by who is there.
    fn share_out(&mut self, serving: &[u32]) {
        let mut census = Census::default();
        for slot in serving {
            let (locality, part) =
                (self.instances.localities[*slot as usize], self.parts[*slot as usize]);
            census.add_instance(self.classes.group(locality), part.weight.get().into());
        }
        for slot in self.clients.slots() {
            let group = self.classes.group(self.clients.localities[slot as usize]);
            census.add_client(group, self.fan_outs[slot as usize]);
        }
        census.close();
        let mut serving = serving.iter().peekable();
        for slot in self.instances.slots() {
            let all = match serving.next_if_eq(&&slot) {
                Some(_) => census.of_instance(self.instances.hashes[slot as usize]),
                None => Limits::default(),
            };
            let near = if all.most == 0 { all } else { Limits::NONE };
            self.set_limits(Side::Instances, slot, ClientLimits { all, near });
        }
        for slot in self.clients.slots() {
            let at = slot as usize;
            let group = self.classes.group(self.clients.localities[at]);
            let limits = census.of_client(self.fan_outs[at], self.clients.hashes[at], group);
            self.set_limits(Side::Clients, slot, limits);
        }
    }

    fn set_limits(&mut self, side: Side, slot: u32, limits: ClientLimits) {
        self.side(side).set_limits(slot, limits);
        self.trim(side, slot);
    }

    /// Unlinks all links of a member, and leaves no room for others.
    fn unlink_all(&mut self, side: Side, slot: u32) {
        self.set_limits(side, slot, ClientLimits::default());
    }

    /// Gives a member the best links that both ends want, instead of the lowest that they have.
    fn improve(&mut self, side: Side, slot: u32) {
        let (own, others) = match side {
            Side::Clients => (&self.clients, &self.instances),
            Side::Instances => (&self.instances, &self.clients),
        };
        let (hash, locality) = (own.hashes[slot as usize], own.localities[slot as usize]);
        let wanting = others.wanting(self.classes, hash, locality);
        let mut wanted: BinaryHeap<(u64, u32)> =
            wanting.filter(|(score, _)| own.wants(slot, *score)).collect();
        while let Some((score, other)) = wanted.pop() {
            let pair = side.pair(slot, other);
            let link = Link { score, other, weight: self.weight(side, pair) };
            let own = self.side(side);
            match own.wants(slot, score) {
                true if own.has(slot, &link) => {}
                true => self.link(side, slot, link),
                // Far ones may be wanted yet.
                false if is_near(score) => {}
                false => return,
            }
        }
    }

    /// Returns the weight of a link, as the end on one side has it.
    fn weight(&self, side: Side, pair: Pair) -> u32 {
        match side {
            Side::Clients => self.parts[pair.instance as usize].weight.get().into(),
            Side::Instances => 0,
        }
    }

    fn link(&mut self, side: Side, slot: u32, link: Link) {
        let pair = side.pair(slot, link.other);
        let back = Link { other: slot, weight: self.weight(side.opposite(), pair), ..link };
        self.side(side).insert(slot, link);
        self.side(side.opposite()).insert(link.other, back);
        self.note(pair, true);
        self.trim(side, slot);
        self.trim(side.opposite(), link.other);
    }

    /// Ends the lowest links of a member that it has no room for.
    fn trim(&mut self, side: Side, slot: u32) {
        while let Some(link) = self.side(side).surplus(slot) {
            let pair = side.pair(slot, link.other);
            let back = Link { other: slot, weight: self.weight(side.opposite(), pair), ..link };
            self.side(side).remove(slot, link);
            self.side(side.opposite()).remove(link.other, back);
            self.note(pair, false);
        }
    }

    /// Links clients that have no instance, although some serve, with those of their highest
    /// scores.
    fn link_beyond(&mut self, serving: &[u32]) {
        for client in self.clients.slots() {
            let at = client as usize;
            if self.fan_outs[at] == 0 || !self.clients.members[at].links.is_empty() {
                continue;
            }
            let own = (self.clients.hashes[at], self.clients.localities[at]);
            let score = |slot: &u32| {
                let at = *slot as usize;
                self.classes.score(own, (self.instances.hashes[at], self.instances.localities[at]))
            };
            if let Some(instance) = serving.iter().copied().max_by_key(score) {
                self.beyond.insert(client, instance);
                self.note(Pair { client, instance }, true);
            }
        }
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
