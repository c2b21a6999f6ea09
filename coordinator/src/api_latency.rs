//! The latency of the API, by operation.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

/// The upper bounds of the classes of latency, in seconds.
const CLASSES: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// A request of the API, as it is counted: there are as many as there are operations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiRequest {
    pub method: String,
    /// The path as the document has it, such as `/v1/nodes/{name}`.
    pub path: String,
    /// The first digit of the status, such as `2xx`.
    pub status: String,
}

/// How long the API takes to answer.
#[derive(Debug, Clone)]
pub struct ApiLatency(Family<ApiRequest, Histogram>);

impl Default for ApiLatency {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(CLASSES)))
    }
}

impl ApiLatency {
    /// Counts a request that was answered.
    pub fn note(&self, request: ApiRequest, took: Duration) {
        self.0.get_or_create(&request).observe(took.as_secs_f64());
    }

    /// Registers the histogram.
    pub fn register(&self, registry: &mut Registry) {
        let help = "From a request's head to its answer's, by operation and class of status";
        registry.register("api_seconds", help, self.0.clone());
    }
}
