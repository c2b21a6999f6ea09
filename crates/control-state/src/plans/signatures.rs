//! Signatures of images that nodes have found.

use super::batch::Batch;
use crate::records::{ImageRecord, Mutation, NodeRecord, Record};
use meshward_control_proto::WorkloadReport;
use meshward_policy::Policy;
use meshward_types::{
    NetworkName,
    measurement::{Image, ImageSignature, MAX_SIGNATURES, MAX_SIGNED, Measurement},
};

/// The largest number of nodes whose unverified signatures of one image are kept.
const MAX_REPORTERS: usize = 4;

/// The largest number of signatures that are checked of one report, times the keys.
const MAX_CHECKS: usize = 128;

impl Batch<'_> {
    /// Stores the signatures that a node has found of a workload's images. Those by a key of the
    /// network's policy are stored for all of its nodes, the others under the node that found
    /// them, so that no node's junk displaces another's.
    pub(super) fn store_signatures(&mut self, node: &NodeRecord, report: &WorkloadReport) {
        let world = self.world;
        let Some(network) = world.networks.get(&report.network) else { return };
        let mut sorting = Sorting {
            policy: network.links.policy(),
            network: &report.network,
            checks: MAX_CHECKS,
        };
        let measurement = report.measurement.as_deref();
        for image in measurement.into_iter().flat_map(Measurement::all_images) {
            let found = report.signatures.iter().filter(|of| of.image == image.digest);
            let found = found.flat_map(|of| &of.signatures).filter(|one| is_small(one));
            let known = self.images.get(&image.digest).or_else(|| world.images.get(&image.digest));
            let before = known.cloned().unwrap_or_else(|| ImageRecord::new(image.digest));
            let mut record = before.clone();
            let others = sorting.verify(image, found.take(MAX_SIGNATURES), &mut record);
            if others.is_empty() {
                record.reported.remove(&node.name);
            } else if record.reported.contains_key(&node.name)
                || record.reported.len() < MAX_REPORTERS
            {
                record.reported.insert(node.name.clone(), others);
            }
            if record != before {
                self.images.insert(image.digest, record.clone());
                // The signers that contexts remember were found without these.
                self.contexts.clear();
                self.mutations.push(Mutation::Put(Record::Image(record)));
            }
        }
    }
}

/// Sorts signatures by the keys of a policy.
struct Sorting<'a> {
    policy: &'a Policy,
    network: &'a NetworkName,
    /// The number of checks that are left, times the keys.
    checks: usize,
}

impl Sorting<'_> {
    /// Adds the signatures by keys of the policy to an image's record. Returns the others.
    fn verify<'s>(
        &mut self,
        image: &Image,
        found: impl Iterator<Item = &'s ImageSignature>,
        record: &mut ImageRecord,
    ) -> Vec<ImageSignature> {
        let mut others = Vec::new();
        for signature in found {
            let verified = record.verified.get(self.network);
            if verified.is_some_and(|verified| verified.contains(signature)) {
                continue;
            }
            let is_full = verified.is_some_and(|verified| verified.len() >= MAX_SIGNATURES);
            if !is_full && self.checks > 0 && self.policy.verifies(image, signature) {
                record.verified.entry(self.network.clone()).or_default().push(signature.clone());
            } else {
                others.push(signature.clone());
            }
            self.checks = self.checks.saturating_sub(self.policy.keys.len());
        }
        others
    }
}

fn is_small(signature: &ImageSignature) -> bool {
    signature.payload.len() <= MAX_SIGNED && signature.signature.len() <= MAX_SIGNED
}
