//! The signatures of images, and which images are used.

use crate::records::ImageRecord;
use meshward_types::{
    NetworkName,
    measurement::{ImageSignature, Sha256},
};
use std::collections::{HashMap, hash_map::Entry};

/// The signatures of images, and the number of workloads that run each.
#[derive(Debug, Default)]
pub struct Images {
    records: HashMap<Sha256, ImageRecord>,
    /// The number of workloads that run an image; at least 1.
    uses: HashMap<Sha256, usize>,
    /// A number that changes with every change of the signatures.
    generation: u64,
}

impl Images {
    /// Returns the record of an image.
    pub fn get(&self, digest: &Sha256) -> Option<&ImageRecord> {
        self.records.get(digest)
    }

    /// Returns the signatures of an image that a network's policy is to check.
    pub fn signatures(
        &self,
        digest: &Sha256,
        network: &NetworkName,
    ) -> impl Iterator<Item = &ImageSignature> {
        self.records.get(digest).into_iter().flat_map(|record| record.for_network(network))
    }

    /// Returns the images that have signatures and no workload.
    pub fn idle(&self) -> impl Iterator<Item = &Sha256> {
        self.records.keys().filter(|digest| !self.uses.contains_key(*digest))
    }

    /// Returns the number of images that have signatures.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the number of images that have workloads, with signatures or without.
    pub fn used(&self) -> usize {
        self.uses.len()
    }

    /// Returns a number that changes with every change of the signatures.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn put(&mut self, record: ImageRecord) {
        self.generation += 1;
        self.records.insert(record.digest, record);
    }

    pub(super) fn remove(&mut self, digest: &Sha256) {
        self.generation += 1;
        self.records.remove(digest);
    }

    /// Adds a workload that runs an image.
    pub(super) fn add_use(&mut self, digest: Sha256) {
        *self.uses.entry(digest).or_default() += 1;
    }

    /// Removes a workload that ran an image.
    pub(super) fn remove_use(&mut self, digest: Sha256) {
        let Entry::Occupied(mut uses) = self.uses.entry(digest) else { return };
        *uses.get_mut() -= 1;
        if *uses.get() == 0 {
            uses.remove();
        }
    }
}
