//! External metrics, in the form of Kubernetes' `external.metrics.k8s.io/v1beta1`
//! (`k8s.io/metrics/pkg/apis/external_metrics/v1beta1`).

use meshward_types::schema::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Values of a metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalMetricValueList {
    /// `ExternalMetricValueList`.
    pub kind: String,
    /// `external.metrics.k8s.io/v1beta1`.
    pub api_version: String,
    /// Nothing: a list of values has no metadata.
    pub metadata: BTreeMap<String, String>,
    /// The values, one for each service.
    pub items: Vec<ExternalMetricValue>,
}

/// A value of a metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalMetricValue {
    /// The metric.
    pub metric_name: String,
    /// The labels: `network` and `service`.
    pub metric_labels: BTreeMap<String, String>,
    /// The time of the value.
    #[schema(value_type = Time)]
    pub timestamp: String,
    /// The value, as a quantity of Kubernetes.
    pub value: String,
}
