//! The nearness of clients and instances, and the scores of pairs.

use meshward_types::Nearness;

/// The lowest score of a near pair.
const LEAST_NEAR: u64 = 1 << CLASS_SHIFT;
/// The bits below those of the class.
const CLASS_SHIFT: u32 = 62;

/// The locality of a member: its node and its site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Locality {
    /// The index of its node.
    pub(super) node: u32,
    /// The number of its site; 0: unknown.
    pub(super) site: u32,
}

/// A group of members that are near each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Group {
    /// Those of a site.
    Site(u32),
    /// Those of a node.
    Node(u32),
}

/// The kinds of nearness that a service prefers, as classes of pairs: 0 for what is not preferred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Classes {
    node: u64,
    site: u64,
}

impl Classes {
    /// Returns the classes of kinds, the most preferred of which is first.
    pub(super) fn new(prefer: &[Nearness]) -> Self {
        let class = |kind| {
            let at = prefer.iter().position(|own| *own == kind);
            at.map_or(0, |at| (prefer.len() - at).min(2) as u64)
        };
        let (node, site) = (class(Nearness::Node), class(Nearness::Site));
        // What is on the node is on its site as well.
        Self { node: node.max(site), site }
    }

    /// Returns the group of what is near a locality, if anything is.
    pub(super) fn group(self, locality: Locality) -> Option<Group> {
        match (self.site > 0 && locality.site != 0, self.node > 0) {
            (true, _) => Some(Group::Site(locality.site)),
            (false, true) => Some(Group::Node(locality.node)),
            (false, false) => None,
        }
    }

    /// Returns the score of a pair, from the hashes and localities of both: nearer pairs have
    /// higher ones.
    #[inline]
    pub(super) fn score(self, (a, at): (u64, Locality), (b, near): (u64, Locality)) -> u64 {
        let by_node = u64::from(at.node == near.node) * self.node;
        let by_site = u64::from(at.site == near.site && at.site != 0) * self.site;
        (by_node.max(by_site) << CLASS_SHIFT) | (mix(a ^ b) >> (64 - CLASS_SHIFT))
    }
}

/// Returns `true` if a score is that of a near pair.
#[inline]
pub(super) fn is_near(score: u64) -> bool {
    score >= LEAST_NEAR
}

/// Spreads the bits of a number: the finalizer of `SplitMix64` (Steele, Lea, Flood 2014).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
