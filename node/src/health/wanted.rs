//! The checks that services want of this node's workloads.

use crate::{attachment::Attachment, enforcement::Enforcement, workloads::Workloads};
use meshward_control_proto::{Resource, ResourceKey, View, view::ServiceSpec};
use meshward_types::{HealthCheck, IdentityId, Labels, NetworkName, ServiceName, WorkloadId};
use std::collections::BTreeMap;

/// The largest number of different checks of one workload. Those of further services, in the order
/// of their names, are not made.
const MAX_CHECKS: usize = 16;

/// A workload that is checked.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) attachment: Attachment,
    /// The checks, at most [`MAX_CHECKS`], all different.
    pub(super) checks: Vec<WantedCheck>,
}

/// A check, and the services that want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedCheck {
    pub(super) check: HealthCheck,
    /// The port that is probed.
    pub(super) port: u16,
    pub(super) services: Vec<ServiceName>,
}

impl Subject {
    /// Returns `true` if the other one is probed in the same place.
    pub(super) fn is_at(&self, other: &Attachment) -> bool {
        let Attachment { report, netns, netns_id, origin, .. } = &self.attachment;
        report.addresses == other.report.addresses
            && (netns, netns_id, origin) == (&other.netns, &other.netns_id, &other.origin)
    }
}

/// Returns the workloads that services want to be checked.
pub(super) fn wanted(
    enforcement: &Enforcement,
    workloads: &Workloads,
) -> BTreeMap<WorkloadId, Subject> {
    let services = enforcement.view(|view| checked_services(view));
    if services.is_empty() {
        return BTreeMap::new();
    }
    // A device has no namespace here.
    let is_candidate = |own: &Attachment| {
        own.is_in_namespace() && own.measured && services.contains_key(&own.report.network)
    };
    let own = workloads.find_all(is_candidate);
    own.into_iter()
        .filter_map(|(id, attachment)| {
            let network = &attachment.report.network;
            let standing = enforcement.standing(network, &id);
            let identity = standing.spec.map(|spec| spec.identity).or(standing.vouched)?;
            let labels = enforcement.view(|view| labels_of(view, network, identity))?;
            let checks = checks_of(services.get(network)?, &labels);
            (!checks.is_empty()).then_some((id, Subject { attachment, checks }))
        })
        .collect()
}

/// Returns the services with health checks, in the order of their names.
fn checked_services(view: &View) -> BTreeMap<NetworkName, BTreeMap<ServiceName, ServiceSpec>> {
    let of = |network: &NetworkName| -> BTreeMap<ServiceName, ServiceSpec> {
        let checked = view.services(network).filter(|(_, spec)| spec.health.is_some());
        checked.map(|(name, spec)| (name.clone(), spec.clone())).collect()
    };
    let all = view.networks().map(|(network, _)| (network.clone(), of(network)));
    all.filter(|(_, services)| !services.is_empty()).collect()
}

fn labels_of(view: &View, network: &NetworkName, identity: IdentityId) -> Option<Labels> {
    match view.resources.get(&ResourceKey::Identity(network.clone(), identity)) {
        Some(Resource::Identity(spec)) => Some(spec.labels.clone()),
        _ => None,
    }
}

fn checks_of(services: &BTreeMap<ServiceName, ServiceSpec>, labels: &Labels) -> Vec<WantedCheck> {
    let mut checks: Vec<WantedCheck> = Vec::new();
    for (name, spec) in services.iter().filter(|(_, spec)| spec.instances.matches(labels)) {
        let first = spec.ports.first().map(|port| port.target);
        let Some(check) = spec.health.clone() else { continue };
        let Some(port) = check.port.or(first) else { continue };
        let is_same = |own: &WantedCheck| (&own.check, own.port) == (&check, port);
        if let Some(same) = checks.iter_mut().find(|own| is_same(own)) {
            same.services.push(name.clone());
        } else if checks.len() < MAX_CHECKS {
            checks.push(WantedCheck { check, port, services: vec![name.clone()] });
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_types::{Affinity, HealthProbe, Protocol, ServicePort};
    use std::time::Duration;

    fn service(selector: &str, target: u16, path: &str) -> ServiceSpec {
        ServiceSpec {
            addresses: vec![],
            instances: selector.parse().unwrap(),
            ports: vec![ServicePort { protocol: Protocol::Tcp, port: 80, target }],
            prefer: vec![],
            health: Some(HealthCheck {
                probe: HealthProbe::Http(path.into()),
                port: None,
                every: Duration::from_secs(2),
                timeout: Duration::from_secs(1),
                failures: 3,
            }),
            affinity: Affinity::None,
            weights: vec![],
        }
    }

    #[test]
    fn services_with_the_same_check_share_it_and_others_have_their_own() {
        let services = [
            ("a", service("app=api", 8080, "/")),
            ("b", service("app=api", 8080, "/")),
            ("c", service("app=api", 9090, "/")),
            ("d", service("app=api", 8080, "/ready")),
            ("e", service("app=web", 8080, "/")),
        ];
        let services =
            services.into_iter().map(|(name, spec)| (name.parse().unwrap(), spec)).collect();
        let checks = checks_of(&services, &"app=api,v=1".parse().unwrap());
        let found: Vec<_> = checks
            .iter()
            .map(|own| {
                let names: Vec<&str> = own.services.iter().map(ServiceName::as_str).collect();
                (names.join(","), own.port)
            })
            .collect();
        assert_eq!(found, [("a,b".into(), 8080), ("c".into(), 9090), ("d".into(), 8080)]);
    }

    #[test]
    fn the_checks_of_a_workload_are_bounded() {
        let many = (0..100)
            .map(|n| (format!("s{n:03}").parse().unwrap(), service("app=api", 8000 + n, "/")));
        let checks = checks_of(&many.collect(), &"app=api".parse().unwrap());
        assert_eq!(checks.len(), MAX_CHECKS);
    }
}
