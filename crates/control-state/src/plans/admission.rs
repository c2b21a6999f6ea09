//! Admission: judging a workload by the policy of its network.

use crate::{
    records::{ApprovalRecord, LabelOverride, NodeRecord, ReportRecord},
    world::{NetworkState, World},
};
use ipnet::IpNet;
use meshward_policy::{Candidate, Policy};
use meshward_types::{Labels, NetworkName, NodeName, measurement::Image};
use std::{collections::HashMap, sync::Arc};

/// A network's policy, and what it has said of images.
pub(super) struct AdmissionContext {
    pub(super) policy: Arc<Policy>,
    pub(super) names_node: bool,
    pub(super) signers: HashMap<Image, Vec<String>>,
}

impl AdmissionContext {
    /// That of the policy that stands.
    pub(super) fn standing(network: &NetworkState) -> Self {
        let policy = network.links.policy().clone();
        Self { names_node: network.names_node, policy, signers: HashMap::new() }
    }

    pub(super) fn of(policy: Arc<Policy>) -> Self {
        Self { names_node: policy.speaks_of_nodes(), policy, signers: HashMap::new() }
    }
}

/// The prefixes behind a workload that nobody has approved by hand. `approval`: one that comes or
/// goes with the same plan.
pub(super) fn unapproved(
    world: &World,
    node: &NodeRecord,
    network: &NetworkName,
    prefixes: &[IpNet],
    approval: Option<(&ApprovalRecord, bool)>,
) -> Vec<IpNet> {
    let is_open = |prefix: &&IpNet| {
        let record =
            ApprovalRecord { network: network.clone(), node: node.name.clone(), prefix: **prefix };
        match approval {
            Some((changed, approved)) if *changed == record => !approved,
            _ => !world.approvals.contains(&record),
        }
    };
    prefixes.iter().filter(is_open).copied().collect()
}

/// By what a workload is judged.
pub(super) struct Judge<'a> {
    pub policy: &'a Policy,
    pub names_node: bool,
    pub node: &'a NodeName,
    pub site: Option<&'a str>,
    pub unapproved: &'a [IpNet],
}

impl Judge<'_> {
    /// The labels, the verified ones included, and why it is not let in, if it is not. `signers`:
    /// who has signed an image.
    pub fn judge(
        &self,
        report: &ReportRecord,
        label_override: Option<&LabelOverride>,
        signers: impl FnMut(&Image) -> Vec<String>,
    ) -> (Labels, Vec<String>) {
        let labels = match label_override {
            Some(given) => report.labels.clone().with_all(&given.labels),
            None => Ok(report.labels.clone()),
        };
        let judged = labels.and_then(|labels| {
            let candidate = Candidate {
                labels: &labels,
                site: self.site,
                node: self.node,
                measurement: report.measurement.as_deref(),
                prefixes: self.unapproved,
            };
            self.policy.judge(&candidate, self.names_node, signers)
        });
        let (labels, mut reasons) = match judged {
            Ok(judged) => (judged.labels, judged.reasons),
            Err(error) => (report.labels.clone(), vec![error.to_string()]),
        };
        reasons.extend(report.objection.clone());
        (labels, reasons)
    }
}
