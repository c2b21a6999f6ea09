//! The members of one side of the matching, and their links.

use super::{
    limits::{ClientLimits, Held, Limits},
    nearness::{Classes, Locality, is_near},
};
use std::collections::VecDeque;

/// The members of one side by slot.
#[derive(Debug, Default)]
pub(super) struct SideMembers {
    pub(super) members: Vec<Member>,
    /// The hashes of the members' names: apart, as their localities and floors, so that a pass over
    /// them is fast.
    pub(super) hashes: Vec<u64>,
    pub(super) localities: Vec<Locality>,
    /// The scores that a new link must exceed: 0 while there is room, `u64::MAX` for who has none
    /// at all.
    floors: Vec<u64>,
    /// The scores that a new near link must exceed beside those.
    near_floors: Vec<u64>,
    /// Members that may have a better link than those that they have, each once, the first to be
    /// looked at first: so what a member loses meanwhile costs one look.
    woken: VecDeque<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) is_there: bool,
    is_woken: bool,
    limits: ClientLimits,
    /// The links, the lowest score first.
    pub(super) links: Vec<Link>,
    held: Held,
    /// The near ones of these links.
    near: Held,
}

/// A link, as one end has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) score: u64,
    pub(super) other: u32,
    /// The weight of the other end.
    pub(super) weight: u32,
}

/// The room that a member has for another link, and for another near one.
#[derive(Debug, Clone, Copy)]
struct Room {
    has_any: bool,
    has_near: bool,
}

impl Room {
    fn exceeds(self, before: Self) -> bool {
        self.has_any && !before.has_any || self.has_near && !before.has_near
    }
}

impl Member {
    fn room(&self) -> Room {
        Room {
            has_any: self.limits.all.have_room(self.held),
            has_near: self.limits.near.have_room(self.near),
        }
    }

    /// Returns the lowest of the near links.
    fn lowest_near(&self) -> Option<Link> {
        self.links.get(self.links.len() - self.near.links).copied()
    }

    /// Returns the lowest link that the limits have no room for beside the higher ones.
    fn surplus(&self) -> Option<Link> {
        let is_surplus = |link: &Link, limits: Limits, mut held: Held| {
            held.remove(link.weight);
            !limits.have_room(held)
        };
        let near = self.lowest_near().filter(|link| is_surplus(link, self.limits.near, self.near));
        let lowest = self.links.first().copied();
        near.or_else(|| lowest.filter(|link| is_surplus(link, self.limits.all, self.held)))
    }
}

impl SideMembers {
    /// Adds a member in a free slot.
    pub(super) fn add(&mut self, slot: u32, hash: u64) {
        let at = slot as usize;
        if at == self.members.len() {
            self.members.push(Member::default());
            self.hashes.push(0);
            self.localities.push(Locality::default());
            self.floors.push(u64::MAX);
            self.near_floors.push(u64::MAX);
        }
        self.members[at].is_there = true;
        self.hashes[at] = hash;
    }

    /// Returns the slots of the members that are there.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + use<> {
        let there: Vec<u32> = (0..)
            .zip(&self.members)
            .filter_map(|(slot, member)| member.is_there.then_some(slot))
            .collect();
        there.into_iter()
    }

    /// Sets the limits of a member, and wakes it if it has come to have room.
    pub(super) fn set_limits(&mut self, slot: u32, limits: ClientLimits) {
        let member = &mut self.members[slot as usize];
        if member.limits == limits {
            return;
        }
        let before = member.room();
        member.limits = limits;
        if member.room().exceeds(before) {
            self.wake(slot);
        }
        self.update_floors(slot);
    }

    fn wake(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.members[slot as usize].is_woken, true) {
            self.woken.push_back(slot);
        }
    }

    /// Returns the next member that may have a better link.
    pub(super) fn next_woken(&mut self) -> Option<u32> {
        let slot = self.woken.pop_front()?;
        self.members[slot as usize].is_woken = false;
        Some(slot)
    }

    /// Inserts a link.
    pub(super) fn insert(&mut self, slot: u32, link: Link) {
        let member = &mut self.members[slot as usize];
        let at = member.links.partition_point(|other| *other < link);
        member.links.insert(at, link);
        member.held.add(link.weight);
        if is_near(link.score) {
            member.near.add(link.weight);
        }
        self.update_floors(slot);
    }

    /// Removes a link, and wakes the member if it has come to have room.
    pub(super) fn remove(&mut self, slot: u32, link: Link) {
        let member = &mut self.members[slot as usize];
        let Ok(at) = member.links.binary_search(&link) else { return };
        let before = member.room();
        member.links.remove(at);
        member.held.remove(link.weight);
        if is_near(link.score) {
            member.near.remove(link.weight);
        }
        if member.room().exceeds(before) {
            self.wake(slot);
        }
        self.update_floors(slot);
    }

    /// Returns the lowest link that a member has no room for beside the higher ones.
    pub(super) fn surplus(&self, slot: u32) -> Option<Link> {
        self.members[slot as usize].surplus()
    }

    /// Returns `true` if a member has a link.
    pub(super) fn has(&self, slot: u32, link: &Link) -> bool {
        self.members[slot as usize].links.binary_search(link).is_ok()
    }

    /// Returns `true` if a member would rather have a link of this score than some that it has.
    #[inline]
    pub(super) fn wants(&self, slot: u32, score: u64) -> bool {
        exceeds(score, self.floors[slot as usize], self.near_floors[slot as usize])
    }

    /// Returns the members of this side that would rather have a link with one of the other side
    /// than some that they have, with the scores.
    pub(super) fn wanting(
        &self,
        classes: Classes,
        hash: u64,
        locality: Locality,
    ) -> impl Iterator<Item = (u64, u32)> {
        let members = self.hashes.iter().copied().zip(self.localities.iter().copied());
        let scores = members.map(move |member| classes.score((hash, locality), member));
        let floors = self.floors.iter().zip(&self.near_floors);
        let wanting = scores.zip(floors).zip(0..);
        let wanting =
            wanting.filter(|((score, (floor, near)), _)| exceeds(*score, **floor, **near));
        wanting.map(|((score, _), slot)| (score, slot))
    }

    fn update_floors(&mut self, slot: u32) {
        let member = &self.members[slot as usize];
        let floor = |has_room: bool, limits: Limits, lowest: Option<Link>| match lowest {
            _ if limits.most == 0 => u64::MAX,
            Some(lowest) if !has_room => lowest.score,
            _ => 0,
        };
        let ClientLimits { all, near } = member.limits;
        let lowest = member.links.first().copied();
        let Room { has_any, has_near } = member.room();
        self.floors[slot as usize] = floor(has_any, all, lowest);
        self.near_floors[slot as usize] = floor(has_near, near, member.lowest_near());
    }
}

/// Returns `true` if the score of a link exceeds the floor of all links, and that of near ones if
/// it is near.
#[inline]
fn exceeds(score: u64, floor: u64, near_floor: u64) -> bool {
    score > floor && (!is_near(score) || score > near_floor)
}
