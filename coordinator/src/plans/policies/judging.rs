//! Judging the workloads of a network by a policy that is not theirs yet, beside the world: some nodes' at a time.

use crate::{
    plans::workloads::{Judge, unapproved},
    records::{Given, Standing},
    world::World,
};
use ipnet::IpNet;
use meshward_model::{
    NetworkName, NodeName,
    control::WorkloadReport,
    measurement::{Image, ImageSignature, Sha256},
};
use meshward_policy::Policy;
use std::{collections::HashMap, sync::Arc};

/// The nodes whose workloads are copied at a time.
const NODES: usize = 8;

/// What would become of the workloads of a network.
#[derive(Debug, Default)]
pub struct Judging {
    /// Those that would be let in, and are not.
    pub admitted: Vec<String>,
    /// Those that would not be let in any more, or for other reasons, and why.
    pub refused: Vec<String>,
    /// What was found of their images.
    pub warmed: Warmed,
}

/// What a policy says of images, so that their signatures are checked once.
#[derive(Debug, Default)]
pub struct Warmed {
    pub signers: HashMap<Image, Vec<String>>,
    /// The signatures that this was said of: see [`crate::world::World::images`].
    pub images: u64,
}

/// A workload, as it is to be judged.
struct Case {
    node: NodeName,
    site: Option<String>,
    report: WorkloadReport,
    given: Option<Given>,
    unapproved: Vec<IpNet>,
    /// Why it is not let in now; nothing: it is.
    reasons: Vec<String>,
}

/// Shows the world to somebody, for a short look.
pub type Look<'a> = &'a dyn Fn(&mut dyn FnMut(&World));

/// Judges all workloads of a network. `look`: looks at the world, shortly.
pub fn judge_all(look: Look<'_>, name: &NetworkName, policy: &Arc<Policy>) -> Judging {
    let (mut nodes, mut images) = (Vec::new(), 0);
    look(&mut |world| {
        nodes = world.nodes.keys().cloned().collect();
        images = world.images.generation();
    });
    let mut judging = Judging { warmed: Warmed { images, ..Warmed::default() }, ..Judging::default() };
    let names_node = policy.speaks_of_nodes();
    for some in nodes.chunks(NODES) {
        let (mut cases, mut signatures) = (Vec::new(), HashMap::new());
        look(&mut |world| {
            (cases, signatures) = copy(world, name, some, &judging.warmed.signers);
        });
        for case in cases {
            judge(&case, policy, names_node, &signatures, &mut judging);
        }
    }
    judging.admitted.sort_unstable();
    judging.refused.sort_unstable();
    judging
}

type Signatures = HashMap<Sha256, Vec<ImageSignature>>;

/// Copies the workloads of some nodes, and the signatures of their images that nothing is known of yet.
fn copy(
    world: &World,
    name: &NetworkName,
    nodes: &[NodeName],
    known: &HashMap<Image, Vec<String>>,
) -> (Vec<Case>, Signatures) {
    let (mut cases, mut signatures) = (Vec::new(), Signatures::new());
    let Some(network) = world.networks.get(name) else { return (cases, signatures) };
    for node in nodes.iter().filter_map(|node| world.nodes.get(node)) {
        let Some(index) = world.nodes.index(&node.name) else { continue };
        let admitted = network.workloads_on(index).map(Standing::Admitted);
        for standing in admitted.chain(network.refused_on(index).map(Standing::Refused)) {
            let report = standing.report();
            let images = report.measurement.iter().flat_map(|measured| measured.all_images());
            for image in images.filter(|image| !known.contains_key(*image)) {
                let kept = || world.images.signatures(&image.digest, name).cloned().collect();
                signatures.entry(image.digest).or_insert_with(kept);
            }
            cases.push(Case {
                node: node.name.clone(),
                site: node.site.clone(),
                given: standing.given().cloned(),
                unapproved: unapproved(world, node, &report, None),
                reasons: match standing {
                    Standing::Admitted(_) => vec![],
                    Standing::Refused(record) => record.reasons.clone(),
                },
                report,
            });
        }
    }
    (cases, signatures)
}

fn judge(case: &Case, policy: &Policy, names_node: bool, signatures: &Signatures, judging: &mut Judging) {
    let signers = &mut judging.warmed.signers;
    let judge = Judge {
        policy,
        names_node,
        node: &case.node,
        site: case.site.as_deref(),
        unapproved: &case.unapproved,
    };
    let (_, reasons) = judge.judge(&case.report, case.given.as_ref(), |image| {
        let look = || {
            let signatures = signatures.get(&image.digest).map_or(&[][..], Vec::as_slice);
            policy.signers(image, signatures.iter())
        };
        signers.entry(image.clone()).or_insert_with(look).clone()
    });
    let called = format!("{} ({})", case.report.name, case.report.id);
    if reasons == case.reasons {
        return;
    }
    match reasons.is_empty() {
        true => judging.admitted.push(called),
        false => judging.refused.push(format!("{called}: {}", reasons.join("; "))),
    }
}
