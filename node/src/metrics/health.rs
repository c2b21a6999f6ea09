//! The metrics of health checks.

use meshward_api_types::local::{CheckState, LocalWorkload};
use meshward_runtime::metrics::{counted, measured};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;

/// Registers the checks of this node's workloads by service, and the probes so far by kind and
/// outcome.
pub(super) fn register(
    registry: &mut Registry,
    workloads: &[LocalWorkload],
    probes: &BTreeMap<(&'static str, &'static str), u64>,
) {
    let mut checks = BTreeMap::<_, u64>::new();
    for workload in workloads {
        for check in &workload.checks {
            for service in &check.services {
                let labels = [
                    ("network", workload.network.to_string()),
                    ("service", service.to_string()),
                    ("state", state_name(check.state).to_owned()),
                ];
                *checks.entry(labels).or_default() += 1;
            }
        }
    }
    measured(registry, "health_checks", "Health checks of instances, by their finding", checks);
    let probes = probes.iter().map(|((kind, outcome), count)| {
        ([("kind", (*kind).to_owned()), ("outcome", (*outcome).to_owned())], *count)
    });
    counted(registry, "health_probes", "Probes of health checks, by kind and outcome", probes);
}

fn state_name(state: CheckState) -> &'static str {
    match state {
        CheckState::Unknown => "unknown",
        CheckState::Healthy => "healthy",
        CheckState::Unhealthy => "unhealthy",
    }
}
