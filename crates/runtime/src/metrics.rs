//! The Prometheus endpoint: `GET /metrics` over plain HTTP, on loopback unless configured
//! otherwise.

use crate::{
    connection_permits::ConnectionPermits,
    http,
    sources::{KnownSources, OpenLimit},
};
use anyhow::Context;
use axum::{Router, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{fmt::Debug, fs, future::Future, hash::Hash, net::SocketAddr, pin::Pin, sync::Arc};
use tokio::net::TcpListener;

/// A function that returns the registry of one scrape.
pub type Scrape = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Registry> + Send>> + Send + Sync>;

/// Limits on connections of scrapers, of which there are usually a handful.
const SCRAPERS: OpenLimit = OpenLimit { per_address: 16, per_prefix: 32, total: 64 };

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the registries of `scrape` until the process ends.
///
/// # Errors
/// Fails if the address cannot be listened on.
pub async fn serve(listen: SocketAddr, scrape: Scrape) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen} for metrics; set another `metrics_listen`")
    })?;
    let permits = ConnectionPermits::new(SCRAPERS, 0, Arc::new(KnownSources::new(1)));
    tokio::spawn(http::serve(listener, routes(scrape), permits));
    Ok(())
}

/// Returns the route `/metrics` for the router of another listener.
///
/// # Panics
/// A request panics if a metric cannot be encoded, which none does.
pub fn routes(scrape: Scrape) -> Router {
    let answer = move || {
        let scrape = scrape.clone();
        async move {
            let mut text = String::new();
            // Writing to a string cannot fail.
            let _ = encode(&mut text, &scrape().await);
            ([(CONTENT_TYPE, TEXT)], text).into_response()
        }
    };
    Router::new().route("/metrics", get(answer))
}

/// Returns a registry whose names begin with `prefix`, with metrics of the build and the process
/// (proc(5)), named as Prometheus' own clients do.
pub fn with_process(prefix: &str, version: &str, register: impl FnOnce(&mut Registry)) -> Registry {
    let mut root = Registry::default();
    let own = OwnUse::read();
    number(&mut root, "process_resident_memory_bytes", "Memory in use", own.resident);
    number(&mut root, "process_open_fds", "Open file descriptors", own.descriptors);
    number(&mut root, "process_max_fds", "Limit of open file descriptors", own.most_descriptors);
    number(&mut root, "process_threads", "Threads", own.threads);
    number(
        &mut root,
        "process_start_time_seconds",
        "Start time of the process, in seconds since the Unix epoch",
        own.began,
    );
    let seconds =
        prometheus_client::metrics::counter::Counter::<f64, std::sync::atomic::AtomicU64>::default(
        );
    seconds.inc_by(own.cpu_seconds);
    root.register("process_cpu_seconds", "Processor time used", seconds);
    let registry = root.sub_registry_with_prefix(prefix);
    let build =
        [([("version", version.to_owned()), ("arch", std::env::consts::ARCH.to_owned())], 1)];
    measured(registry, "build_info", "1, with the version", build);
    register(registry);
    root
}

/// The process's use of the machine.
#[derive(Default)]
struct OwnUse {
    /// Resident memory, in bytes.
    resident: u64,
    descriptors: u64,
    most_descriptors: u64,
    threads: u64,
    cpu_seconds: f64,
    /// The start time, in seconds since 1970.
    began: u64,
}

/// Ticks per second in `/proc`, the same on every Linux (`USER_HZ`, `proc_pid_stat(5)`).
const TICKS: f64 = 100.0;

impl OwnUse {
    fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = |name: &str| -> u64 {
            let found = status.lines().find_map(|line| line.strip_prefix(name));
            found.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The command's name is in parentheses and may contain anything; user and system time are
        // fields 14 and 15.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
        let ticks: u64 = fields.iter().skip(11).take(2).sum();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let most = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let since_boot = fields.get(19).copied().unwrap_or(0) as f64 / TICKS;
        Self {
            resident: line("VmRSS:") * 1024,
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64),
            most_descriptors: most
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0),
            threads: line("Threads:"),
            cpu_seconds: ticks as f64 / TICKS,
            began: booted().map_or(0, |booted| booted + since_boot as u64),
        }
    }
}

/// Returns the time when this machine was started, in seconds since 1970 (`proc_stat(5)`).
fn booted() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Registers one number.
pub fn number(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value as i64);
    registry.register(name, help, gauge);
}

/// Registers a counter whose value is kept elsewhere. Its name gets the suffix `_total`.
pub fn count(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

/// Registers a counter whose values are kept elsewhere, one for each set of labels.
pub fn counted<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) where
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_told_by_the_usual_names() {
        let began =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let registry =
            with_process("meshward_test", "1.2.3", |own| number(own, "things", "Things", 7));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!((3.0..1e5).contains(&value("process_open_fds")));
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        // The clock may have been set since the start of the machine, but not by much.
        let start = value("process_start_time_seconds");
        assert!((start - began as f64).abs() < 300.0, "{start} {began}");
        assert_eq!(value("meshward_test_things") as u64, 7);
        assert!(text.contains("meshward_test_build_info{version=\"1.2.3\",arch="), "{text}");
    }
}
