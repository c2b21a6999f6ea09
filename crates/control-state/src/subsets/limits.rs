//! The limits of members: how many links each has room for, and for how much weight.
//!
//! All of them follow from who is there, in whole numbers, so that they are the same in every
//! coordinator. What remains of a division is given to a part of the members, by their hashes: then
//! a small change of a mean changes the limits of few.

use super::nearness::Group;
use std::collections::HashMap;

/// The percentage by which an instance may have more clients than the mean. Less would move more
/// pairs with every change, more would leave instances unequal.
const SLACK_PERCENT: u32 = 5;

/// The share by which an instance may have more clients than the mean, and one beyond that.
pub const SLACK: f64 = SLACK_PERCENT as f64 / 100.0;

/// The bits of a fraction.
const FRACTION: u32 = 16;

/// The room of a member for links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// The number of links that it takes whatever they weigh.
    pub(super) least: usize,
    /// The most links that it takes.
    pub(super) most: usize,
    /// The weight from which on it takes no more, with [`FRACTION`] bits of a fraction.
    pub(super) weight: u64,
}

/// Links that a member holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) links: usize,
    pub(super) weight: u64,
}

/// The limits of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ClientLimits {
    /// Those of its subset.
    pub(super) all: Limits,
    /// Those of the near instances in it.
    pub(super) near: Limits,
}

impl Limits {
    /// Room for everything.
    pub(super) const NONE: Self = Self { least: usize::MAX, most: usize::MAX, weight: u64::MAX };

    /// Returns the limits of a member that takes so many links.
    pub(super) fn links(links: usize) -> Self {
        Self { least: links, most: links, weight: 0 }
    }

    /// Returns `true` if there is room for another link beside what a member holds.
    pub(super) fn have_room(&self, held: Held) -> bool {
        let is_light = held.links < self.least || held.weight << FRACTION < self.weight;
        held.links < self.most && is_light
    }
}

impl Held {
    pub(super) fn add(&mut self, weight: u32) {
        self.links += 1;
        self.weight += u64::from(weight);
    }

    pub(super) fn remove(&mut self, weight: u32) {
        self.links -= 1;
        self.weight -= u64::from(weight);
    }
}

/// The sum of instances that serve.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    number: u64,
    weight: u64,
}

/// The clients of a group, and its instances that serve.
#[derive(Debug, Clone, Copy, Default)]
struct Neighbourhood {
    serving: Sum,
    clients: u128,
    /// The near instances that its clients have room for.
    near_wanted: u128,
    /// The weight of its instances that each client from elsewhere may have, with a fraction.
    supply: u128,
}

/// The census of all clients and of the instances that serve: limits follow from it.
#[derive(Debug, Default)]
pub(super) struct Census {
    all: Sum,
    /// The sum of the squares of weights.
    squares: u128,
    near: HashMap<Group, Neighbourhood>,
    clients: u128,
    /// The fan-outs of clients, each at most the number of instances.
    fan_outs: u128,
    /// The clients that are not linked with all instances.
    choosy: u128,
    /// The mean number of clients of an instance with its slack, with a fraction.
    share: u128,
    /// The sum of what neighbourhoods supply.
    supply: u128,
}

impl Census {
    /// Counts an instance that serves. All instances are counted before any client is.
    pub(super) fn add_instance(&mut self, group: Option<Group>, weight: u32) {
        let weight = u64::from(weight);
        let near = group.map(|group| &mut self.near.entry(group).or_default().serving);
        for sum in near.into_iter().chain([&mut self.all]) {
            sum.number += 1;
            sum.weight += weight;
        }
        self.squares += u128::from(weight * weight);
    }

    /// Counts a client. All clients are counted before [`Self::close`].
    pub(super) fn add_client(&mut self, group: Option<Group>, fan_out: usize) {
        let instances = self.all.number as usize;
        self.clients += 1;
        self.fan_outs += fan_out.min(instances) as u128;
        self.choosy += u128::from(fan_out > 0 && fan_out < instances);
        if let Some(near) = group.and_then(|group| self.near.get_mut(&group)) {
            near.clients += 1;
            near.near_wanted += (fan_out - reserve(fan_out)).min(instances) as u128;
        }
    }

    /// Works out what follows from all who are there.
    ///
    /// As clients fill their subsets up to a weight, each link stands for the same share of an
    /// instance's weight: so all instances have room for as many. A client's last link exceeds the
    /// weight by half of it on average, less half of the mean (renewal theory).
    pub(super) fn close(&mut self) {
        let (number, weight) =
            (u128::from(self.all.number.max(1)), u128::from(self.all.weight.max(1)));
        let even = (self.fan_outs << FRACTION) / number;
        let square = weight * weight;
        let uneven = (self.squares * number).saturating_sub(square);
        let excess = ((self.choosy * uneven) << FRACTION) / (2 * square * number);
        self.share = (even + excess) * u128::from(100 + SLACK_PERCENT) / 100 + (1 << FRACTION);
        for near in self.near.values_mut() {
            let own = u128::from(near.serving.weight);
            let has_room = (own * self.share) >> FRACTION;
            let wanted = (near.near_wanted * weight / number).min(near.clients * own);
            let others = (self.clients - near.clients).max(1);
            near.supply = (has_room.saturating_sub(wanted) << FRACTION) / others;
            self.supply += near.supply;
        }
    }

    /// Returns the limit of every instance, for one with this hash: the mean and its slack.
    pub(super) fn of_instance(&self, hash: u64) -> Limits {
        Limits::links(((self.share + u128::from(fraction(hash))) >> FRACTION) as usize)
    }

    /// Returns the limits of a client with this hash: the weight of as many usual instances as its
    /// fan-out says. A quarter of it is for far instances, as far as these have room beside what is
    /// near them.
    pub(super) fn of_client(
        &self,
        fan_out: usize,
        hash: u64,
        group: Option<Group>,
    ) -> ClientLimits {
        if fan_out == 0 {
            return ClientLimits::default();
        }
        if fan_out >= self.all.number as usize {
            return ClientLimits { all: Limits::NONE, near: Limits::NONE };
        }
        let all = self.limits(fan_out, hash);
        let near = group.and_then(|group| self.near.get(&group));
        let Some(near) = near.filter(|_| reserve(fan_out) > 0) else {
            return ClientLimits { all, near: all };
        };
        let usual = u128::from(self.all.weight) << FRACTION;
        let for_far = reserve(fan_out) as u128 * usual / u128::from(self.all.number);
        let far = u128::from(self.all.weight - near.serving.weight) << FRACTION;
        let for_far = for_far.min(far).min(self.supply - near.supply) as u64;
        let of_near = self.limits(fan_out - reserve(fan_out), hash);
        let weight = all.weight.saturating_sub(for_far);
        ClientLimits { all, near: Limits { weight, ..of_near } }
    }

    /// Returns the limits of so many usual instances.
    fn limits(&self, fan_out: usize, hash: u64) -> Limits {
        let usual = u128::from(self.all.weight);
        let wanted = ((fan_out as u128) << FRACTION) - u128::from(fraction(hash));
        Limits {
            least: (fan_out / 2 + 1).min(fan_out),
            most: fan_out * 2,
            weight: (wanted * usual / u128::from(self.all.number.max(1))) as u64,
        }
    }
}

/// Returns the instances of a fan-out that are far ones, although near ones may be enough.
fn reserve(fan_out: usize) -> usize {
    fan_out.saturating_add(2) / 4
}

/// Returns a fraction that follows from a hash.
fn fraction(hash: u64) -> u64 {
    hash >> (64 - FRACTION)
}
