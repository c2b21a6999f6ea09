//! Metrics of services: of the connections that workloads of this node have through them.

use meshward_datapath::{CONNECT_BOUNDS, ConnectTimes, EndpointStats, InstanceStats, ServiceStats};
use meshward_runtime::metrics::{counted, measured};
use meshward_types::NetworkName;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::{Registry, Unit},
};

/// A service of a network.
struct Service<'a> {
    network: &'a NetworkName,
    stats: &'a ServiceStats,
}

type ServiceLabels = [(&'static str, String); 2];
type InstanceLabels = [(&'static str, String); 3];

impl Service<'_> {
    fn labels(&self) -> ServiceLabels {
        [("network", self.network.to_string()), ("service", self.stats.name.to_string())]
    }

    /// Returns a value of each instance.
    fn each(
        &self,
        value: fn(&InstanceStats) -> u64,
    ) -> impl Iterator<Item = (InstanceLabels, u64)> {
        let [network, service] = self.labels();
        self.stats.instances.iter().map(move |instance| {
            let own = ("instance", instance.workload.to_string());
            ([network.clone(), service.clone(), own], value(instance))
        })
    }
}

/// Registers the metrics of all services.
pub(super) fn register<'a>(
    registry: &mut Registry,
    stats: impl Iterator<Item = (&'a NetworkName, &'a EndpointStats)>,
) {
    let services: Vec<Service<'_>> = stats
        .flat_map(|(network, stats)| {
            stats.services.iter().map(move |stats| Service { network, stats })
        })
        .collect();
    let of_instances = |value: fn(&InstanceStats) -> u64| -> Vec<_> {
        services.iter().flat_map(|service| service.each(value)).collect()
    };
    let of_services = |value: fn(&ServiceStats) -> u64| -> Vec<_> {
        services.iter().map(|service| (service.labels(), value(service.stats))).collect()
    };
    measured(
        registry,
        "service_open_connections",
        "Open connections through a service, by instance",
        of_instances(|instance| instance.open),
    );
    counted(
        registry,
        "service_connections",
        "Connections begun through a service, by instance",
        of_instances(|instance| instance.connections),
    );
    counted(
        registry,
        "service_refused",
        "Connections that an instance refused",
        of_instances(|instance| instance.refused),
    );
    counted(
        registry,
        "service_unanswered",
        "Connections that an instance did not answer",
        of_instances(|instance| instance.unanswered),
    );
    counted(
        registry,
        "service_moved",
        "Connections that were sent on to another instance",
        of_services(|service| service.moved),
    );
    counted(
        registry,
        "service_without_instance",
        "Packets to a service for which there was no instance",
        of_services(|service| service.without_instance),
    );
    let times = services.iter().map(|service| (service.labels(), service.stats.connect_times));
    registry.register_collector(Box::new(ConnectSeconds(times.collect())));
}

/// The histogram of times to connect, of each service.
#[derive(Debug)]
struct ConnectSeconds(Vec<(ServiceLabels, ConnectTimes)>);

const MICROSECONDS: f64 = 1e6;

impl Collector for ConnectSeconds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "service_connect",
            "Time until an instance accepts a TCP connection",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (labels, times) in &self.0 {
            let bounds = CONNECT_BOUNDS.iter().map(|bound| *bound as f64 / MICROSECONDS);
            let bounds = bounds.chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
            let (sum, count) = (times.sum as f64 / MICROSECONDS, times.buckets.iter().sum());
            metric
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn the_histogram_has_each_bucket_with_those_below_it() {
        let mut times = ConnectTimes::default();
        (times.buckets[0], times.buckets[3], times.buckets[12]) = (2, 1, 1);
        times.sum = 7_000_500;
        let labels = [("network", "shop".to_owned()), ("service", "api".to_owned())];
        let mut registry = Registry::with_prefix("meshward_node");
        registry.register_collector(Box::new(ConnectSeconds(vec![(labels, times)])));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let labels = "network=\"shop\",service=\"api\"";
        for line in [
            "# TYPE meshward_node_service_connect_seconds histogram".to_owned(),
            format!("meshward_node_service_connect_seconds_sum{{{labels}}} 7.0005"),
            format!("meshward_node_service_connect_seconds_count{{{labels}}} 4"),
            format!("meshward_node_service_connect_seconds_bucket{{le=\"0.0001\",{labels}}} 2"),
            format!("meshward_node_service_connect_seconds_bucket{{le=\"0.001\",{labels}}} 3"),
            format!("meshward_node_service_connect_seconds_bucket{{le=\"+Inf\",{labels}}} 4"),
        ] {
            assert!(text.contains(&line), "no {line} in\n{text}");
        }
    }
}
