//! Judging the workloads of a network by a policy that is not theirs yet, beside the world: some
//! nodes' at a time.

use crate::{
    plans::admission::{Judge, unapproved},
    records::Standing,
    world::{Shared, World},
};
use ipnet::IpNet;
use meshward_policy::Policy;
use meshward_types::{
    Labels, NetworkName, NodeName, Revision, WorkloadId,
    measurement::{Image, ImageSignature, Sha256},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

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

/// What was found beside the world, and is taken up by the plan as far as it still holds.
#[derive(Debug, Default)]
pub struct Warmed {
    /// What the policy says of images, so that their signatures are checked once.
    pub signers: HashMap<Image, Vec<String>>,
    /// The signatures that this was said of: see [`crate::world::World::images`].
    pub images: u64,
    /// The revision that all of this was seen at, or an earlier one.
    pub since: Revision,
    /// The sites of the nodes whose workloads were judged.
    pub sites: BTreeMap<NodeName, Option<String>>,
    /// The workloads that become others than they are: their labels, and why they are not let in.
    pub moving: HashMap<WorkloadId, (Labels, Vec<String>)>,
}

/// A workload, as it is to be judged.
struct Case {
    shared: Shared,
    unapproved: Vec<IpNet>,
    /// The labels by which policy knows it now, if it is let in.
    labels: Option<Labels>,
}

/// Shows the world to somebody, for a short look.
pub type Look<'a> = &'a dyn Fn(&mut dyn FnMut(&World));

/// Judges all workloads of a network. `look`: looks at the world, shortly.
pub fn judge_all(look: Look<'_>, name: &NetworkName, policy: &Arc<Policy>) -> Judging {
    let (mut nodes, mut warmed) = (Vec::new(), Warmed::default());
    look(&mut |world| {
        nodes = world.nodes.keys().cloned().collect();
        (warmed.images, warmed.since) = (world.images.generation(), world.revision);
    });
    let mut judging = Judging { warmed, ..Judging::default() };
    let names_node = policy.speaks_of_nodes();
    for some in nodes.chunks(NODES) {
        let (mut cases, mut signatures) = (Vec::new(), HashMap::new());
        look(&mut |world| {
            (cases, signatures) = copy(world, name, some, &mut judging.warmed);
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

/// Takes the workloads of some nodes, and the signatures of their images that nothing is known of
/// yet.
fn copy(
    world: &World,
    name: &NetworkName,
    nodes: &[NodeName],
    warmed: &mut Warmed,
) -> (Vec<Case>, Signatures) {
    let (mut cases, mut signatures) = (Vec::new(), Signatures::new());
    let Some(network) = world.networks.get(name) else { return (cases, signatures) };
    for node in nodes.iter().filter_map(|node| world.nodes.get(node)) {
        let Some(index) = world.nodes.index(&node.name) else { continue };
        warmed.sites.insert(node.name.clone(), node.site.clone());
        for shared in network.shared_on(index) {
            let standing = shared.standing();
            let images =
                standing.measurement().into_iter().flat_map(|measured| measured.all_images());
            for image in images.filter(|image| !warmed.signers.contains_key(*image)) {
                let kept = || world.images.signatures(&image.digest, name).cloned().collect();
                signatures.entry(image.digest).or_insert_with(kept);
            }
            let labels = match standing {
                Standing::Admitted(record) => network.identities.get(&record.identity),
                Standing::Refused(_) => None,
            };
            let labels = labels.map(|identity| identity.labels.clone());
            let unapproved = unapproved(world, node, name, standing.prefixes(), None);
            cases.push(Case { shared, unapproved, labels });
        }
    }
    (cases, signatures)
}

fn judge(
    case: &Case,
    policy: &Policy,
    names_node: bool,
    signatures: &Signatures,
    judging: &mut Judging,
) {
    let standing = case.shared.standing();
    let Warmed { signers, sites, moving, .. } = &mut judging.warmed;
    let site = sites.get(standing.node()).and_then(Option::as_deref);
    let judge =
        Judge { policy, names_node, node: standing.node(), site, unapproved: &case.unapproved };
    let (labels, reasons) = judge.judge(&standing.report(), standing.label_override(), |image| {
        let look = || {
            let signatures = signatures.get(&image.digest).map_or(&[][..], Vec::as_slice);
            policy.signers(image, signatures.iter())
        };
        signers.entry(image.clone()).or_insert_with(look).clone()
    });
    let before = match standing {
        Standing::Admitted(_) => &[],
        Standing::Refused(record) => &record.reasons[..],
    };
    if reasons == before && (!reasons.is_empty() || case.labels.as_ref() == Some(&labels)) {
        return;
    }
    let called = || format!("{} ({})", standing.name(), standing.id());
    match reasons.as_slice() {
        same if same == before => {}
        [] => judging.admitted.push(called()),
        reasons => judging.refused.push(format!("{}: {}", called(), reasons.join("; "))),
    }
    moving.insert(standing.id().clone(), (labels, reasons));
}
