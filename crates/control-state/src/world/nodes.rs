//! The nodes, each with an index for bitmaps of nodes.

use super::node_set::NodeIndex;
use crate::records::NodeRecord;
use meshward_types::NodeName;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
};

/// The nodes. An index is never used again while the process lives, and is at most the number of
/// nodes that have joined since it started.
#[derive(Debug, Default)]
pub struct Nodes {
    records: BTreeMap<NodeName, NodeRecord>,
    indices: HashMap<NodeName, NodeIndex>,
    names: Vec<NodeName>,
}

impl Deref for Nodes {
    type Target = BTreeMap<NodeName, NodeRecord>;
    fn deref(&self) -> &Self::Target {
        &self.records
    }
}

impl Nodes {
    /// Makes a set without nodes, in which nodes will have the indices that they have in another.
    pub fn with_indices_of(other: &Self) -> Self {
        Self {
            records: BTreeMap::new(),
            indices: other.indices.clone(),
            names: other.names.clone(),
        }
    }

    /// Inserts or replaces a node. Returns its index.
    pub fn put(&mut self, record: NodeRecord) -> NodeIndex {
        let next = NodeIndex(self.names.len() as u32);
        let index = *self.indices.entry(record.name.clone()).or_insert(next);
        if index == next {
            self.names.push(record.name.clone());
        }
        self.records.insert(record.name.clone(), record);
        index
    }

    /// Removes a node and its index.
    pub fn remove(&mut self, name: &NodeName) {
        self.records.remove(name);
        // A node that joins with this name later is another one.
        self.indices.remove(name);
    }

    /// Returns the index of a node.
    pub fn index(&self, name: &NodeName) -> Option<NodeIndex> {
        self.indices.get(name).copied()
    }

    /// Returns the name that a node with this index has, or had before it was removed.
    pub fn name(&self, index: NodeIndex) -> Option<&NodeName> {
        self.names.get(index.0 as usize)
    }

    /// Returns the site of the node with this index.
    pub fn site(&self, index: NodeIndex) -> Option<&str> {
        self.record(index)?.site.as_deref()
    }

    /// Returns the node with this index.
    pub fn record(&self, index: NodeIndex) -> Option<&NodeRecord> {
        self.records.get(self.name(index)?).filter(|record| self.index(&record.name) == Some(index))
    }
}
