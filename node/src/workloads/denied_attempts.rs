//! Denied attempts of workloads, counted for triggers.

use meshward_control_proto::Fired;
use meshward_datapath::Denial;
use meshward_types::{NetworkName, WorkloadId, trigger::TriggerSpec};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Instant,
};

/// The largest number of attempts of one workload; the oldest are dropped.
const MAX_ATTEMPTS: usize = 1 << 14;

/// The attempts of all workloads, and which triggers have fired for them.
#[derive(Default)]
pub(super) struct DeniedAttempts {
    by_workload: HashMap<WorkloadId, VecDeque<(Instant, Denial)>>,
    fired: HashMap<(WorkloadId, String), Instant>,
}

/// A trigger of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trigger<'a> {
    /// The network.
    pub(crate) network: &'a NetworkName,
    /// The trigger's name.
    pub(crate) name: &'a str,
    /// The condition, and the quarantine that the node may impose by itself.
    pub(crate) spec: &'a TriggerSpec,
}

impl DeniedAttempts {
    /// Notes a denial of a workload.
    pub(super) fn note(&mut self, now: Instant, workload: &WorkloadId, denial: Denial) {
        let attempts = self.by_workload.entry(workload.clone()).or_default();
        if attempts.len() == MAX_ATTEMPTS {
            attempts.pop_front();
        }
        attempts.push_back((now, denial));
    }

    /// Forgets everything but the workloads that are there, and what is older than any trigger
    /// looks back.
    pub(super) fn forget(&mut self, now: Instant, is_there: impl Fn(&WorkloadId) -> bool) {
        self.by_workload.retain(|workload, attempts| {
            while attempts.front().is_some_and(|(at, _)| {
                now.duration_since(*at) > meshward_types::trigger::MAX_WITHIN
            }) {
                attempts.pop_front();
            }
            is_there(workload) && !attempts.is_empty()
        });
        self.fired.retain(|(workload, _), _| is_there(workload));
    }

    /// Returns the report of a trigger whose condition a workload satisfies now. It fires once, and
    /// again after its time has passed.
    pub(super) fn fires(
        &mut self,
        now: Instant,
        workload: &WorkloadId,
        trigger: Trigger<'_>,
    ) -> Option<Fired> {
        let Trigger { network, name, spec } = trigger;
        let within = spec.within;
        let key = (workload.clone(), name.to_owned());
        if self.fired.get(&key).is_some_and(|at| now.duration_since(*at) < within) {
            return None;
        }
        let attempts = self.by_workload.get(workload)?.iter().rev();
        let recent = attempts
            .take_while(|(at, _)| now.duration_since(*at) <= within)
            .map(|(_, denial)| denial);
        // A flow that is tried again and again is one.
        let flows: HashSet<&Denial> = recent.collect();
        let ports: HashSet<_> = flows.iter().map(|denial| (denial.protocol, denial.port)).collect();
        let addresses: HashSet<_> = flows.iter().map(|denial| denial.destination).collect();
        let reached =
            |wanted: Option<u32>, seen: usize| wanted.is_none_or(|wanted| seen >= wanted as usize);
        let all = reached(spec.denied_flows, flows.len())
            && reached(spec.distinct_ports, ports.len())
            && reached(spec.distinct_addresses, addresses.len());
        all.then(|| {
            self.fired.insert(key, now);
            Fired {
                network: network.clone(),
                trigger: name.to_owned(),
                workload: workload.clone(),
                denied_flows: flows.len() as u32,
                distinct_ports: ports.len() as u32,
                distinct_addresses: addresses.len() as u32,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_datapath::WorkloadIndex;
    use meshward_types::Protocol;
    use std::time::Duration;

    fn denial(port: u16, source_port: u16) -> Denial {
        let destination = [10, 0, 0, (port % 3) as u8].into();
        Denial {
            workload: WorkloadIndex(0),
            destination,
            protocol: Protocol::Tcp,
            port,
            source_port,
        }
    }

    fn spec(flows: u32, ports: u32) -> TriggerSpec {
        TriggerSpec {
            watch: meshward_types::Selector::default(),
            denied_flows: Some(flows),
            distinct_ports: Some(ports),
            distinct_addresses: None,
            within: Duration::from_secs(10),
            alone: false,
            seconds: None,
        }
    }

    #[test]
    fn a_trigger_fires_when_all_of_its_condition_holds_and_once_in_its_time() {
        let (mut attempts, start) = (DeniedAttempts::default(), Instant::now());
        let (network, id) = ("shop".parse().unwrap(), "w-1".parse().unwrap());
        let fires = |attempts: &mut DeniedAttempts, at: u64| {
            let trigger = Trigger { network: &network, name: "scan", spec: &spec(4, 3) };
            attempts.fires(start + Duration::from_secs(at), &id, trigger)
        };
        for (port, source) in [(1, 1), (2, 1), (3, 1), (3, 1), (3, 1)] {
            attempts.note(start, &id, denial(port, source));
        }
        assert!(fires(&mut attempts, 0).is_none(), "three flows, one of them tried three times");
        attempts.note(start, &id, denial(3, 2));
        let fired = fires(&mut attempts, 1).unwrap();
        assert_eq!((fired.denied_flows, fired.distinct_ports, fired.distinct_addresses), (4, 3, 3));
        assert!(fires(&mut attempts, 5).is_none(), "once");
        assert!(fires(&mut attempts, 12).is_none(), "what was seen is too old");
        for port in 0..4 {
            attempts.note(start + Duration::from_secs(12), &id, denial(port, 9));
        }
        assert!(fires(&mut attempts, 12).is_some());
        attempts.forget(start, |_| false);
        assert!(attempts.by_workload.is_empty() && attempts.fired.is_empty());
    }
}
