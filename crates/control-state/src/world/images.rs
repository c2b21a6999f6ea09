//! The signatures of images, and which images are used.

use crate::records::ImageRecord;
use meshward_types::{
    NetworkName,
    measurement::{ImageSignature, Sha256},
};
use std::collections::HashMap;

/// What is known of images.
#[derive(Debug, Default)]
pub struct Images {
    records: HashMap<Sha256, ImageRecord>,
    /// How many workloads run an image.
    used: HashMap<Sha256, usize>,
    /// Another number after each change of the signatures.
    generation: u64,
}

impl Images {
    /// What is known of an image.
    pub fn get(&self, digest: &Sha256) -> Option<&ImageRecord> {
        self.records.get(digest)
    }

    /// The signatures of an image that a network's policy is to look at.
    pub fn signatures(
        &self,
        digest: &Sha256,
        network: &NetworkName,
    ) -> impl Iterator<Item = &ImageSignature> {
        self.records.get(digest).into_iter().flat_map(|record| record.for_network(network))
    }

    /// The images whose signatures are kept, though nothing runs that was started from them.
    pub fn idle(&self) -> impl Iterator<Item = &Sha256> {
        self.records.keys().filter(|digest| !self.used.contains_key(*digest))
    }

    /// How many images have signatures.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// How many images are used, with signatures or without.
    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// A number that stands for the signatures as they are: another after each change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn put(&mut self, record: ImageRecord) {
        self.generation += 1;
        self.records.insert(record.digest, record);
    }

    pub fn remove(&mut self, digest: &Sha256) {
        self.generation += 1;
        self.records.remove(digest);
    }

    /// Notes that a workload runs an image, or does not any more.
    pub fn note(&mut self, digest: Sha256, used: bool) {
        let count = self.used.entry(digest).or_default();
        *count = if used { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.used.remove(&digest);
        }
    }
}
