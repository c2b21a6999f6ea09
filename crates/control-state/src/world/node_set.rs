//! Indices of nodes, and sets of them.

use roaring::{MultiOps, RoaringBitmap};
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

/// The index of a node in the world: small, so that sets of nodes are bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub u32);

/// A set of nodes, as a compressed bitmap of their indices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSet(RoaringBitmap);

impl NodeSet {
    /// Adds a node. Returns `true` if it was not in the set.
    pub fn insert(&mut self, node: NodeIndex) -> bool {
        self.0.insert(node.0)
    }

    /// Removes a node. Returns `true` if it was in the set.
    pub fn remove(&mut self, node: NodeIndex) -> bool {
        self.0.remove(node.0)
    }

    /// Returns `true` if a node is in the set.
    pub fn contains(&self, node: NodeIndex) -> bool {
        self.0.contains(node.0)
    }

    /// Returns `true` if there is no node.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of nodes.
    pub fn len(&self) -> usize {
        self.0.len() as usize
    }

    /// Returns the number of nodes that are in another set, too.
    pub fn intersection_len(&self, other: &Self) -> usize {
        self.0.intersection_len(&other.0) as usize
    }

    /// Returns the nodes in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = NodeIndex> {
        self.0.iter().map(NodeIndex)
    }
}

impl FromIterator<NodeIndex> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeIndex>>(nodes: I) -> Self {
        Self(nodes.into_iter().map(|node| node.0).collect())
    }
}

impl FromIterator<NodeSet> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeSet>>(sets: I) -> Self {
        Self(sets.into_iter().map(|set| set.0).union())
    }
}

impl<'a> FromIterator<&'a NodeSet> for NodeSet {
    fn from_iter<I: IntoIterator<Item = &'a NodeSet>>(sets: I) -> Self {
        Self(sets.into_iter().map(|set| &set.0).union())
    }
}

impl Extend<NodeIndex> for NodeSet {
    fn extend<I: IntoIterator<Item = NodeIndex>>(&mut self, nodes: I) {
        self.0.extend(nodes.into_iter().map(|node| node.0));
    }
}

impl BitOrAssign for NodeSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitOr for &NodeSet {
    type Output = NodeSet;
    fn bitor(self, other: Self) -> NodeSet {
        NodeSet(&self.0 | &other.0)
    }
}

impl BitAnd for &NodeSet {
    type Output = NodeSet;
    fn bitand(self, other: Self) -> NodeSet {
        NodeSet(&self.0 & &other.0)
    }
}

impl Sub for &NodeSet {
    type Output = NodeSet;
    fn sub(self, other: Self) -> NodeSet {
        NodeSet(&self.0 - &other.0)
    }
}
