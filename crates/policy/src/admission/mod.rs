//! Admission: the decision whether a workload may join a network, by its node's measurement.
//!
//! A rule applies to the workloads that it selects, by declared or verified labels. A workload is
//! admitted if it meets every rule that selects it. So a workload that claims to be `app=web` must
//! meet the requirements of that, and one that does not claim it gets nothing that the policy gives
//! to `app=web`.

use crate::{
    admission_rules::{AdmissionRule, Shared, SigningKey},
    document::Policy,
    egress_label::{EGRESS, ROUTE},
};
use ipnet::IpNet;
use meshward_types::{
    Labels, NodeName,
    labels::{BadLabel, RESERVED_PREFIX},
    measurement::{
        Image, ImageSignature, MAX_SIGNED, Measurement, Repository, Sha256, SharingContainer,
    },
};
use serde::Deserialize;

/// The label that names the node. It exists only in networks whose policy uses it, since every node
/// would have identities of its own otherwise.
const NODE: &str = "meshward/node";

/// The largest number of signatures of an image that are checked: verified ones, and those that
/// nodes report.
pub(crate) const MAX_LOOKED_AT: usize = 96;

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: SignedName,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedName {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Sha256,
}

/// Returns `true` if a signature's payload (containers-signature(5)) is about an image. The name
/// counts as well: an image that was signed under one name is not admitted under another.
fn is_about(signature: &ImageSignature, image: &Image) -> bool {
    if signature.payload.len() > MAX_SIGNED || signature.signature.len() > MAX_SIGNED {
        return false;
    }
    let Ok(Payload { critical }) = serde_json::from_str::<Payload>(&signature.payload) else {
        return false;
    };
    let name = Repository::of_reference(&critical.identity.docker_reference).ok();
    critical.kind == "cosign container image signature"
        && critical.image.docker_manifest_digest == image.digest
        && name.is_some()
        && name == image.repository
}

/// A workload that asks for admission.
pub struct Candidate<'a> {
    /// The labels that its owner declared and that triggers gave it.
    pub labels: &'a Labels,
    /// The site of its node.
    pub site: Option<&'a str>,
    /// The node's name.
    pub node: &'a NodeName,
    /// The node's measurement; `None` for a process without a container runtime.
    pub measurement: Option<&'a Measurement>,
    /// The prefixes behind it that nobody has approved by hand.
    pub prefixes: &'a [IpNet],
    /// `true` if it is an egress gateway.
    pub is_egress_gateway: bool,
}

/// The result of admission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionDecision {
    /// The labels that policy sees: declared and verified ones.
    pub labels: Labels,
    /// The reasons for refusing it; empty if it is admitted.
    pub reasons: Vec<String>,
}

impl Policy {
    /// Returns the names of the keys that have signed an image. Only the first `MAX_LOOKED_AT`
    /// signatures are checked.
    pub fn signers<'a>(
        &self,
        image: &Image,
        signatures: impl IntoIterator<Item = &'a ImageSignature>,
    ) -> Vec<String> {
        let about = signatures.into_iter().take(MAX_LOOKED_AT).filter(|one| is_about(one, image));
        let about: Vec<&ImageSignature> = about.collect();
        let signed = |key: &SigningKey| about.iter().any(|signature| key.signed(signature));
        self.keys.iter().filter(|(_, key)| signed(key)).map(|(name, _)| name.clone()).collect()
    }

    /// Returns `true` if one of the keys has made a signature of an image.
    pub fn verifies(&self, image: &Image, signature: &ImageSignature) -> bool {
        is_about(signature, image) && self.keys.values().any(|key| key.signed(signature))
    }

    /// Returns `true` if any part of the policy refers to nodes.
    pub fn speaks_of_nodes(&self) -> bool {
        let in_rules =
            self.rules.iter().chain(&self.guardrails).flat_map(|rule| [&rule.from, &rule.to]);
        let in_triggers = self.triggers.iter().map(|trigger| &trigger.watch);
        let in_admission = self.admission.iter().map(|rule| &rule.who);
        let in_routes = self.routes.iter().map(|rule| &rule.who);
        let in_forensics = self.forensics.iter().flat_map(|own| [&own.rule.from, &own.rule.to]);
        let in_rules = in_rules.chain(in_forensics);
        let mut selectors = in_rules.chain(in_triggers).chain(in_admission).chain(in_routes);
        selectors.any(|selector| selector.requirements().any(|(key, _)| key.as_str() == NODE))
    }

    /// Returns `true` if this policy and another give every workload the same verdict.
    pub fn admits_like(&self, other: &Self) -> bool {
        self.admission == other.admission
            && self.routes == other.routes
            && self.keys == other.keys
            && self.speaks_of_nodes() == other.speaks_of_nodes()
    }

    /// Evaluates a workload. `signers` returns the names of the keys that have signed an image;
    /// `name_node` adds the node to its labels ([`Self::speaks_of_nodes`]).
    ///
    /// # Errors
    /// Fails if there are too many labels with the verified ones.
    pub fn evaluate(
        &self,
        candidate: &Candidate,
        name_node: bool,
        mut signers: impl FnMut(&Image) -> Vec<String>,
    ) -> Result<AdmissionDecision, BadLabel> {
        let images = candidate.measurement.map_or(&[][..], |measured| &measured.images);
        let sharing = candidate.measurement.map_or(&[][..], |measured| &measured.sharing);
        let signed: Vec<Vec<String>> = images.iter().map(&mut signers).collect();
        let signed_sharing: Vec<Vec<String>> = sharing
            .iter()
            .map(|other| other.image.as_ref().map(&mut signers).unwrap_or_default())
            .collect();
        let labels = facts(candidate, name_node, &signed, &signed_sharing)?;
        let mut reasons = Vec::new();
        let rules: Vec<_> =
            self.admission.iter().filter(|rule| rule.who.matches(&labels)).collect();
        for rule in &rules {
            let own = candidate.measurement.map(|measured| Subject::of(measured, &signed));
            let objections = rule.objections(own.as_ref());
            reasons.extend(objections.into_iter().map(|text| format!("{}: {text}", rule.name)));
            if rule.shared == Shared::Allow {
                continue;
            }
            for (other, signers) in sharing.iter().zip(&signed_sharing) {
                let objections = rule.objections(Some(&Subject::sharing(other, signers)));
                let called = called(other);
                reasons.extend(
                    objections.into_iter().map(|text| format!("{}: {called}: {text}", rule.name)),
                );
            }
        }
        if rules.iter().all(|rule| rule.shared == Shared::Evaluate) {
            let objections =
                sharing.iter().filter_map(|other| Some((called(other), other.objection.as_ref()?)));
            reasons.extend(objections.map(|(called, text)| format!("{called}: {text}")));
        }
        for prefix in candidate.prefixes {
            if !self.routes.iter().any(|rule| rule.approves(&labels, prefix)) {
                let node = candidate.node;
                let command = match candidate.is_egress_gateway {
                    true => format!("meshctl egress approve {node}"),
                    false => format!("meshctl route approve {prefix} --node {node}"),
                };
                reasons.push(format!(
                    "the prefix {prefix} is not approved: `{command}` does that, or a rule under \
                    `routes:` in the policy"
                ));
            }
        }
        Ok(AdmissionDecision { labels, reasons })
    }
}

/// The input of a rule.
struct Subject<'a> {
    /// The workload's images, with the names of the keys that have signed each.
    images: Vec<(&'a Image, &'a [String])>,
    config: &'a Sha256,
    privileges: &'a [String],
}

impl<'a> Subject<'a> {
    fn of(measured: &'a Measurement, signed: &'a [Vec<String>]) -> Self {
        let images = measured.images.iter().zip(signed.iter().map(Vec::as_slice)).collect();
        Self { images, config: &measured.config, privileges: &measured.privileges }
    }

    fn sharing(other: &'a SharingContainer, signers: &'a [String]) -> Self {
        let images = other.image.iter().map(|image| (image, signers)).collect();
        Self { images, config: &other.config, privileges: &other.privileges }
    }
}

fn called(other: &SharingContainer) -> String {
    match &other.image {
        Some(image) => {
            format!("container {} ({image}), which shares its network namespace", other.name)
        }
        None => format!("container {}, which shares its network namespace", other.name),
    }
}

/// Returns the labels with the verified facts; of images, those facts that hold for everything in
/// the network namespace.
fn facts(
    candidate: &Candidate,
    name_node: bool,
    signed: &[Vec<String>],
    signed_sharing: &[Vec<String>],
) -> Result<Labels, BadLabel> {
    let mut labels = candidate.labels.clone();
    let mut add = |fact: &str, value: &str| -> Result<(), BadLabel> {
        labels = std::mem::take(&mut labels).with_fact(fact, value)?;
        Ok(())
    };
    if let Some(site) = candidate.site {
        add("site", site)?;
    }
    if name_node {
        add(NODE.trim_start_matches(RESERVED_PREFIX), candidate.node.as_str())?;
    }
    if candidate.is_egress_gateway {
        add(ROUTE.trim_start_matches(RESERVED_PREFIX), EGRESS)?;
    }
    let Some(measured) = candidate.measurement else { return Ok(labels) };
    if measured.sharing.iter().any(|other| other.image.is_none()) {
        return Ok(labels);
    }
    if let Some(first) = measured.images.first() {
        if let Some(repository) = &first.repository
            && measured.all_images().all(|image| image.repository == first.repository)
        {
            add("image.repo", repository.as_str())?;
        }
        let of_all = signed.first().into_iter().flatten();
        let all = signed.iter().chain(signed_sharing);
        let mut of_all = of_all.filter(|key| all.clone().all(|keys| keys.contains(key)));
        if let Some(key) = of_all.next() {
            add("image.signed-by", key)?;
        }
    }
    Ok(labels)
}

impl AdmissionRule {
    fn objections(&self, measured: Option<&Subject>) -> Vec<String> {
        let wants_image =
            !(self.images.is_empty() && self.signed_by.is_empty() && self.config.is_empty());
        let Some(measured) = measured else {
            let text = "it is a process that no container runtime runs, so it has no image that \
                could be checked";
            return if wants_image { vec![text.to_owned()] } else { vec![] };
        };
        let mut objections = Vec::new();
        if wants_image && measured.images.is_empty() {
            objections.push("it has not started, so its image is not known yet".to_owned());
        }
        for (image, signers) in &measured.images {
            if !self.images.is_empty() && !self.images.iter().any(|pattern| pattern.matches(image))
            {
                let allowed: Vec<String> = self.images.iter().map(ToString::to_string).collect();
                objections.push(format!(
                    "image {image} comes from elsewhere than {}",
                    allowed.join(", ")
                ));
            }
            if !self.signed_by.is_empty() && !self.signed_by.iter().any(|key| signers.contains(key))
            {
                let keys = self.signed_by.join(" or ");
                objections.push(format!("image {image} has no valid signature by {keys}"));
            }
        }
        if !self.config.is_empty() && !self.config.contains(measured.config) {
            objections.push(format!(
                "it is set up in another way than expected: its configuration is {}",
                measured.config
            ));
        }
        let more =
            measured.privileges.iter().filter(|privilege| !self.privileges.contains(privilege));
        let more: Vec<&str> = more.map(String::as_str).collect();
        if !more.is_empty() {
            objections.push(format!("it has privileges that are not listed: {}", more.join(", ")));
        }
        objections
    }
}

#[cfg(test)]
mod tests;
