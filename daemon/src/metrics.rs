//! The Prometheus endpoint: `GET /metrics` over plain HTTP, on loopback unless configured otherwise.

use crate::{
    http,
    places::Places,
    sources::{KnownSources, OpenLimit},
};
use anyhow::Context;
use axum::{Router, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{fmt::Debug, future::Future, hash::Hash, net::SocketAddr, pin::Pin, sync::Arc};
use tokio::net::TcpListener;

/// Makes the registry of one scrape.
pub type Scrape = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Registry> + Send>> + Send + Sync>;

/// Connections of those who scrape: a handful of them is what there usually is.
const SCRAPERS: OpenLimit = OpenLimit { per_address: 16, per_prefix: 32, total: 64 };

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves what `scrape` makes, until the process ends.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn serve(listen: SocketAddr, scrape: Scrape) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} for metrics; set another `metrics_listen`"))?;
    let places = Places::new(SCRAPERS, 0, Arc::new(KnownSources::new(1)));
    tokio::spawn(http::serve(listener, routes(scrape), places));
    Ok(())
}

/// The route `/metrics`, for a router of another listener.
pub fn routes(scrape: Scrape) -> Router {
    let answer = move || {
        let scrape = scrape.clone();
        async move {
            let mut text = String::new();
            // Writing to a string has no way to fail.
            encode(&mut text, &scrape().await).expect("metrics encode into a string");
            ([(CONTENT_TYPE, TEXT)], text).into_response()
        }
    };
    Router::new().route("/metrics", get(answer))
}

/// Registers one number.
pub fn number(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value as i64);
    registry.register(name, help, gauge);
}

/// Registers a counter whose values are kept elsewhere, one for each set of labels.
pub fn counted<L>(registry: &mut Registry, name: &str, help: &str, values: impl IntoIterator<Item = (L, u64)>)
where
    L: EncodeLabelSet + Clone + Debug + Hash + Eq + Send + Sync + 'static,
{
    let family = Family::<L, prometheus_client::metrics::counter::Counter>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    registry.register(name, help, family);
}

/// Registers a gauge, one value for each set of labels.
pub fn measured<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) where
    L: EncodeLabelSet + Clone + Debug + Hash + Eq + Send + Sync + 'static,
{
    let family = Family::<L, Gauge>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value as i64);
    }
    registry.register(name, help, family);
}
