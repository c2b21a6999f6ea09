//! The load of services: the flows that this node's workloads have with instances, reported to the
//! coordinator in each second in which they change.

use crate::app::Node;
use meshward_control_proto::{FromNode, InstanceLoad, MAX_LOADS};
use meshward_datapath::{InstanceStats, ServiceStats};
use meshward_types::{NetworkName, ServiceName, WorkloadId};
use std::{cmp::Reverse, collections::HashMap, sync::Arc, time::Duration};

/// The time between two reports.
const INTERVAL: Duration = Duration::from_secs(1);

type InstanceKey = (NetworkName, ServiceName, WorkloadId);

/// What has been counted and reported.
#[derive(Default)]
struct Reporter {
    /// The flows that were begun by the last count.
    begun: HashMap<InstanceKey, u64>,
    /// The last report, and the session that it was in.
    reported: Option<(u64, Vec<InstanceLoad>)>,
}

/// Reports the load of services, forever.
pub async fn report(node: Arc<Node>) {
    let mut reporter = Reporter::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let loads = reporter.count(node.service_stats());
        let Some(session) = node.link.session_number() else { continue };
        let Some(report) = reporter.report(session, loads) else { continue };
        node.link.send(FromNode::Load(report));
    }
}

impl Reporter {
    /// Returns what is to be sent in a session: nothing, if that has been sent. A session begins with
    /// no load.
    fn report(&mut self, session: u64, loads: Vec<InstanceLoad>) -> Option<Vec<InstanceLoad>> {
        let is_known = match &self.reported {
            Some((number, known)) if *number == session => *known == loads,
            _ => loads.is_empty(),
        };
        self.reported = Some((session, loads.clone()));
        (!is_known).then_some(loads)
    }

    /// Returns the load of the instances that have any: of the most loaded ones, if there are more
    /// than a report has room for.
    fn count(&mut self, stats: Vec<(NetworkName, Vec<ServiceStats>)>) -> Vec<InstanceLoad> {
        let mut before = std::mem::take(&mut self.begun);
        let mut loads = Vec::new();
        for (network, service) in stats
            .into_iter()
            .flat_map(|(network, all)| all.into_iter().map(move |own| (network.clone(), own)))
        {
            for InstanceStats { workload, open, connections, answer_time, .. } in service.instances
            {
                let key = (network.clone(), service.name.clone(), workload);
                // A first count says nothing of the last second.
                let begun = connections.saturating_sub(before.remove(&key).unwrap_or(connections));
                self.begun.insert(key.clone(), connections);
                if open > 0 || begun > 0 {
                    let (network, service, instance) = key;
                    loads.push(InstanceLoad {
                        network,
                        service,
                        instance,
                        open: u32::try_from(open).unwrap_or(u32::MAX),
                        begun: u32::try_from(begun).unwrap_or(u32::MAX),
                        connect_time: answer_time.map(rounded),
                    });
                }
            }
        }
        if loads.len() > MAX_LOADS {
            loads.sort_by_key(|load| Reverse(load.open.saturating_add(load.begun)));
            loads.truncate(MAX_LOADS);
        }
        loads.sort_by(|a, b| {
            (&a.network, &a.service, &a.instance).cmp(&(&b.network, &b.service, &b.instance))
        });
        loads
    }
}

/// Rounds a time up to its three highest bits, so that it does not change all the time.
fn rounded(time: Duration) -> Duration {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let step = 1 << micros.ilog2().saturating_sub(2);
    Duration::from_micros(micros.div_ceil(step).saturating_mul(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_datapath::ConnectTimes;

    fn stats(instances: &[(&str, u64, u64)]) -> Vec<(NetworkName, Vec<ServiceStats>)> {
        let instance = |(workload, open, connections): &(&str, u64, u64)| InstanceStats {
            workload: workload.parse().unwrap(),
            open: *open,
            connections: *connections,
            refused: 0,
            unanswered: 0,
            answer_time: Some(Duration::from_millis(1)),
        };
        let service = ServiceStats {
            name: "api".parse().unwrap(),
            connections: 0,
            refused: 0,
            unanswered: 0,
            moved: 0,
            without_instance: 0,
            connect_times: ConnectTimes::default(),
            instances: instances.iter().map(instance).collect(),
        };
        vec![("shop".parse().unwrap(), vec![service])]
    }

    #[test]
    fn instances_with_flows_or_new_ones_are_reported() {
        let mut reporter = Reporter::default();
        let counted = |reporter: &mut Reporter, instances: &[(&str, u64, u64)]| -> Vec<String> {
            let loads = reporter.count(stats(instances)).into_iter();
            loads.map(|load| format!("{} {} {}", load.instance, load.open, load.begun)).collect()
        };
        let first = counted(&mut reporter, &[("b", 0, 9), ("a", 2, 50)]);
        assert_eq!(first, ["a 2 0"], "a first count says nothing of the last second");
        let second = counted(&mut reporter, &[("b", 0, 12), ("a", 2, 50), ("c", 0, 0)]);
        assert_eq!(second, ["a 2 0", "b 0 3"]);
        assert_eq!(counted(&mut reporter, &[("b", 0, 12), ("a", 0, 50)]), [""; 0]);
    }

    #[test]
    fn the_most_loaded_instances_are_reported_if_there_are_too_many() {
        let names: Vec<String> = (0..=MAX_LOADS).map(|at| format!("w{at}")).collect();
        let instances: Vec<(&str, u64, u64)> =
            names.iter().enumerate().map(|(at, name)| (name.as_str(), at as u64 + 1, 0)).collect();
        let loads = Reporter::default().count(stats(&instances));
        assert_eq!(loads.len(), MAX_LOADS);
        assert!(loads.iter().all(|load| load.open > 1));
    }

    #[test]
    fn a_report_is_sent_once_in_each_session() {
        let mut reporter = Reporter::default();
        let loads = |reporter: &mut Reporter, open| reporter.count(stats(&[("a", open, 1)]));
        let (none, some) = (loads(&mut reporter, 0), loads(&mut reporter, 1));
        assert_eq!(reporter.report(1, none.clone()), None, "a session begins with no load");
        assert_eq!(reporter.report(1, some.clone()), Some(some.clone()));
        assert_eq!(reporter.report(1, some.clone()), None);
        assert_eq!(reporter.report(2, some.clone()), Some(some));
        assert_eq!(reporter.report(2, none.clone()), Some(none), "it has ended");
    }

    #[test]
    fn times_are_rounded_up_by_a_quarter_at_most() {
        for micros in [1, 2, 3, 7, 8, 999, 1000, 123_456, u64::from(u32::MAX)] {
            let up = rounded(Duration::from_micros(micros)).as_micros() as u64;
            assert!(up >= micros && up <= micros + micros / 4, "{micros} to {up}");
        }
        assert_eq!(rounded(Duration::from_millis(1)), rounded(Duration::from_micros(1020)));
    }
}
