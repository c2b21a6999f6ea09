//! The load of services as external metrics, in the form that Kubernetes' autoscaler reads.

use super::{
    caller::Caller,
    problem::ApiError,
    request::{At, Params},
};
use crate::{
    mesh::Mesh,
    service_load::{self, ServiceLoad},
};
use axum::{Json, extract::State, http::StatusCode};
use meshward_api_types::{ExternalMetricValue, ExternalMetricValueList, operations};
use meshward_control_state::timestamp;
use meshward_types::{Labels, NetworkName, Selector, ServiceName};
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc};
use time::OffsetDateTime;

const API_VERSION: &str = "external.metrics.k8s.io/v1beta1";

/// A metric: its name, and its value for a service.
type Metric = (&'static str, fn(&ServiceLoad) -> u64);

const METRICS: [Metric; 3] = [
    ("meshward_service_desired_instances", |load| load.desired as u64),
    ("meshward_service_open_flows", ServiceLoad::open),
    ("meshward_service_flows_per_second", ServiceLoad::begun),
];

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Filter {
    label_selector: Option<String>,
}

/// Returns a metric of services as external metrics of Kubernetes.
#[utoipa::path(get, path = operations::EXTERNAL_METRIC.path(), tag = "services", operation_id = "get_external_metric",
    params(("namespace" = String, Path, description = "Any namespace: services do not belong to one"),
        ("metric" = String, Path, description = "`meshward_service_desired_instances`, `meshward_service_open_flows` or `meshward_service_flows_per_second`"),
        ("labelSelector" = Option<String>, Query, description = "Only services with these labels: `network=NAME,service=NAME`")),
    responses((status = 200, body = ExternalMetricValueList)))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At((_namespace, metric)): At<(String, String)>,
    Params(filter): Params<Filter>,
) -> Result<Json<ExternalMetricValueList>, ApiError> {
    let Some((metric_name, value)) = METRICS.into_iter().find(|(name, _)| *name == metric) else {
        let known = METRICS.map(|(name, _)| name).join(", ");
        let metric: String = metric.chars().take(100).collect();
        let text = format!("there is no metric `{metric}`; there are: {known}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    };
    let selector: Selector = match filter.label_selector.as_deref() {
        None | Some("") => Selector::default(),
        Some(text) => text.parse().map_err(|error| {
            let text = format!("labelSelector: {error}; write network=NAME,service=NAME");
            ApiError::new(StatusCode::BAD_REQUEST, text)
        })?,
    };
    let names: Vec<(NetworkName, ServiceName)> = mesh.look(|world| {
        let services = service_load::services(world);
        services.map(|(network, name)| (network.record.name.clone(), name.clone())).collect()
    });
    let is_wanted = |(network, name): &(NetworkName, ServiceName)| {
        let labels: Result<Labels, _> = format!("network={network},service={name}").parse();
        caller.reaches(network) && labels.is_ok_and(|labels| selector.matches(&labels))
    };
    let now = timestamp(OffsetDateTime::now_utc());
    let item = |(network, name): (NetworkName, ServiceName)| ExternalMetricValue {
        metric_name: metric_name.into(),
        value: value(&mesh.loads.of(&network, &name)).to_string(),
        metric_labels: BTreeMap::from([
            ("network".into(), network.to_string()),
            ("service".into(), name.to_string()),
        ]),
        timestamp: now.clone(),
    };
    Ok(Json(ExternalMetricValueList {
        kind: "ExternalMetricValueList".into(),
        api_version: API_VERSION.into(),
        metadata: BTreeMap::new(),
        items: names.into_iter().filter(is_wanted).map(item).collect(),
    }))
}
