//! The latency of the API, by operation.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

/// The upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// The labels of the histogram: as many sets as there are operations and classes of status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiRequest {
    /// The HTTP method, in capitals.
    pub method: String,
    /// The path as in the API's document, such as `/v1/nodes/{name}`.
    pub path: String,
    /// The class of the status, such as `2xx`.
    pub status: String,
}

/// The latency of the API's answers, by operation.
#[derive(Debug, Clone)]
pub struct ApiLatency(Family<ApiRequest, Histogram>);

impl Default for ApiLatency {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BUCKETS)))
    }
}

impl ApiLatency {
    /// Records the latency of a request that was answered.
    pub fn note(&self, request: &ApiRequest, took: Duration) {
        self.0.get_or_create(request).observe(took.as_secs_f64());
    }

    /// Registers the histogram.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time from the head of a request to the head of its answer";
        registry.register("api_request_duration_seconds", help, self.0.clone());
    }
}
