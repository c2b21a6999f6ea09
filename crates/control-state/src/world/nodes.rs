//! The nodes, each with a small number for sets of them.

use crate::records::NodeRecord;
use meshward_types::NodeName;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
};

/// The nodes. An index is not used again while the process lives.
#[derive(Debug, Default)]
pub struct Nodes {
    records: BTreeMap<NodeName, NodeRecord>,
    indices: HashMap<NodeName, u32>,
    names: Vec<NodeName>,
}

impl Deref for Nodes {
    type Target = BTreeMap<NodeName, NodeRecord>;
    fn deref(&self) -> &Self::Target {
        &self.records
    }
}

impl Nodes {
    /// No nodes, but the indices that others have.
    pub fn with_indices_of(other: &Self) -> Self {
        Self {
            records: BTreeMap::new(),
            indices: other.indices.clone(),
            names: other.names.clone(),
        }
    }

    pub fn put(&mut self, record: NodeRecord) -> u32 {
        let next = self.names.len() as u32;
        let index = *self.indices.entry(record.name.clone()).or_insert(next);
        if index == next {
            self.names.push(record.name.clone());
        }
        self.records.insert(record.name.clone(), record);
        index
    }

    pub fn remove(&mut self, name: &NodeName) {
        self.records.remove(name);
        // Whoever joins under the name later is another node.
        self.indices.remove(name);
    }

    pub fn index(&self, name: &NodeName) -> Option<u32> {
        self.indices.get(name).copied()
    }

    pub fn name(&self, index: u32) -> Option<&NodeName> {
        self.names.get(index as usize)
    }

    pub fn record(&self, index: u32) -> Option<&NodeRecord> {
        self.records.get(self.name(index)?).filter(|record| self.index(&record.name) == Some(index))
    }
}
