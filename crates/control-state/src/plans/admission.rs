//! Admission: a network's policy decides whether a workload may be on the mesh, and by which
//! labels.

use crate::{
    records::{ApprovalRecord, LabelOverride, NodeRecord, ReportRecord},
    world::World,
};
use ipnet::IpNet;
use meshward_policy::{Candidate, Policy};
use meshward_types::{Labels, NetworkName, NodeName, measurement::Image, outside::is_default};
use std::{collections::HashMap, sync::Arc};

/// A network's policy, and the signers of images that it has found.
pub(super) struct AdmissionContext {
    pub(super) policy: Arc<Policy>,
    pub(super) names_node: bool,
    pub(super) signers: HashMap<Image, Vec<String>>,
}

impl AdmissionContext {
    /// Makes the context of a network's policy in force.
    pub(super) fn in_force(world: &World, network: &NetworkName) -> Self {
        let Some(network) = world.networks.get(network) else {
            return Self::of(Arc::new(Policy::deny_all(network.clone())));
        };
        let policy = network.links.policy().clone();
        Self { names_node: network.names_node, policy, signers: HashMap::new() }
    }

    /// Makes the context of a policy.
    pub(super) fn of(policy: Arc<Policy>) -> Self {
        Self { names_node: policy.speaks_of_nodes(), policy, signers: HashMap::new() }
    }
}

/// A change of the approval of routes, in the same plan as the change of their workloads.
#[derive(Debug, Clone, Copy)]
pub(super) enum ApprovalChange<'a> {
    /// The routes are approved.
    Granted(&'a [ApprovalRecord]),
    /// The approvals are withdrawn.
    Withdrawn(&'a [ApprovalRecord]),
}

impl World {
    /// Returns the prefixes behind a workload that no admin has approved.
    pub(super) fn unapproved(
        &self,
        node: &NodeRecord,
        network: &NetworkName,
        prefixes: &[IpNet],
        change: Option<ApprovalChange<'_>>,
    ) -> Vec<IpNet> {
        let is_unapproved = |prefix: &&IpNet| {
            let record = ApprovalRecord {
                network: network.clone(),
                node: node.name.clone(),
                prefix: **prefix,
            };
            match change {
                Some(ApprovalChange::Granted(granted)) if granted.contains(&record) => false,
                Some(ApprovalChange::Withdrawn(gone)) if gone.contains(&record) => true,
                _ => !self.approvals.contains(&record),
            }
        };
        prefixes.iter().filter(is_unapproved).copied().collect()
    }
}

/// The labels by which policy knows a workload, and the reasons for refusing it; none if it is
/// admitted.
#[derive(Debug, Clone)]
pub struct AdmissionVerdict {
    /// The labels, verified ones included.
    pub labels: Labels,
    /// The reasons.
    pub reasons: Vec<String>,
}

/// A policy, and the facts about a workload that the workload's report does not have.
pub(super) struct AdmissionCheck<'a> {
    pub(super) policy: &'a Policy,
    pub(super) names_node: bool,
    pub(super) node: &'a NodeName,
    pub(super) site: Option<&'a str>,
    pub(super) unapproved: &'a [IpNet],
}

impl AdmissionCheck<'_> {
    /// Evaluates the policy. `signers` returns the signers of an image.
    pub(super) fn evaluate(
        &self,
        report: &ReportRecord,
        label_override: Option<&LabelOverride>,
        signers: impl FnMut(&Image) -> Vec<String>,
    ) -> AdmissionVerdict {
        let labels = match label_override {
            Some(own) => report.labels.clone().with_all(&own.labels),
            None => Ok(report.labels.clone()),
        };
        let judged = labels.and_then(|labels| {
            let candidate = Candidate {
                labels: &labels,
                site: self.site,
                node: self.node,
                measurement: report.measurement.as_deref(),
                prefixes: self.unapproved,
                is_egress_gateway: is_egress_gateway(&report.prefixes),
            };
            self.policy.evaluate(&candidate, self.names_node, signers)
        });
        let (labels, mut reasons) = match judged {
            Ok(judged) => (judged.labels, judged.reasons),
            Err(error) => (report.labels.clone(), vec![error.to_string()]),
        };
        reasons.extend(report.objection.clone());
        AdmissionVerdict { labels, reasons }
    }
}

/// Returns `true` if the workload with these prefixes behind it is an egress gateway.
pub(super) fn is_egress_gateway(prefixes: &[IpNet]) -> bool {
    prefixes.iter().any(is_default)
}
