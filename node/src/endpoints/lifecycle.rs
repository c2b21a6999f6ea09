//! Starting and stopping endpoints.

use crate::{
    attachment, clock,
    endpoint_config::EndpointConfig,
    enforcement::{Enforcement, RunningEndpoint},
    folder::Folder,
    names::resolver::Tasks as NameTasks,
    workers::{self, Workers},
};
use anyhow::Result;
use ipnet::IpNet;
use meshward_datapath::{Endpoint, SecretKey};
use meshward_types::{NetworkName, NodeName};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tracing::{info, warn};

/// The margin by which the limit on disk is ahead of the timestamps, in seconds.
const TIMESTAMP_MARGIN: u64 = 600;

/// The part of the node that starts and stops endpoints.
pub struct Endpoints {
    node: NodeName,
    /// The first UDP port that is tried.
    first_port: u16,
    pub(super) folder: Folder,
    pub(super) workers: Arc<Workers>,
    pub(super) enforcement: Arc<Enforcement>,
    /// Held while endpoints are started and keys are changed: their files have one writer.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) kept: Mutex<HashMap<NetworkName, Kept>>,
    stun_servers: Mutex<Vec<SocketAddr>>,
    /// The queue of the thread of names.
    names: NameTasks,
}

/// The part of an endpoint's state that enforcement does not need.
pub(super) struct Kept {
    /// The prefixes of its network: packets for them do not leave this host but by the mesh.
    prefixes: Vec<IpNet>,
    /// The timestamps of its handshakes are below this as far as the disk knows, in seconds since
    /// 1970.
    pub(super) timestamps_below: u64,
}

/// The inputs of an endpoint's start.
struct Prepared {
    secret: SecretKey,
    /// The key of before, and for how long it is good still.
    previous: Option<(SecretKey, Duration)>,
    sockets: Vec<UdpSocket>,
    port: u16,
    /// The timestamps of before are all below this, in seconds since 1970.
    timestamp_floor: u64,
    timestamps_below: u64,
}

impl Endpoints {
    /// No endpoint yet.
    pub(crate) fn new(
        node: NodeName,
        first_port: u16,
        folder: Folder,
        (workers, names): (Arc<Workers>, NameTasks),
        enforcement: Arc<Enforcement>,
    ) -> Self {
        Self {
            node,
            first_port,
            folder,
            workers,
            enforcement,
            changing: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
            stun_servers: Mutex::default(),
            names,
        }
    }

    /// Starts the endpoints of networks that have none, and returns the networks whose endpoints
    /// were started. `resume`: for how long connections of before are taken up.
    pub async fn start_lacking(&self, resume: Duration) -> Vec<NetworkName> {
        let (mut started, mut failures) = (Vec::new(), Vec::new());
        for network in self.enforcement.lacking_endpoints() {
            match self.start(&network, resume).await {
                Ok(true) => started.push(network),
                Ok(false) => {}
                Err(error) => {
                    failures.push(format!("the endpoint of {network} cannot start: {error:#}"));
                }
            }
        }
        let why = (!failures.is_empty()).then(|| failures.join("; "));
        self.folder.troubles().note("endpoints", why);
        started
    }

    async fn start(&self, network: &NetworkName, resume: Duration) -> Result<bool> {
        let _turn = self.changing.lock().await;
        if self.enforcement.endpoint(network).is_some() {
            return Ok(false);
        }
        let prefixes = self.enforcement.view(|view| {
            view.network(network).map(|spec| spec.prefixes.clone()).unwrap_or_default()
        });
        let prepare = {
            let (prefixes, folder, network) =
                (prefixes.clone(), self.folder.clone(), network.clone());
            let (first_port, workers) = (self.first_port, self.workers.workers());
            move || {
                attachment::block_other_interfaces(&prefixes);
                prepare(&folder, &network, first_port, workers)
            }
        };
        let prepared = tokio::task::spawn_blocking(prepare).await??;
        self.forget_previous_key_in_time(network);
        let (port, timestamps_below) = (prepared.port, prepared.timestamps_below);
        let kept = Kept { prefixes, timestamps_below };
        let started = self.enforcement.start_endpoint(network, |view| {
            let (endpoint, sockets) = self.make(prepared, resume);
            let public_key = endpoint.public_key();
            endpoint.watch_denials(view.triggers(network).next().is_some());
            let served = self.workers.serve(network, endpoint, sockets, self.names.clone())?;
            let (mut config, changes) =
                (EndpointConfig::new(network.clone()), view.network_changes(network));
            let config_changes = config.changes(view.view(), &changes);
            served.apply(view.revision, config_changes, &changes);
            self.kept.lock().insert(network.clone(), kept);
            Ok(RunningEndpoint::new(served, public_key, port, config))
        })?;
        let Some(served) = started else { return Ok(false) };
        served.endpoint.set_stun_servers(&self.stun_servers.lock());
        info!(%network, %port, "endpoint started");
        Ok(true)
    }

    fn make(&self, prepared: Prepared, resume: Duration) -> (Endpoint, Vec<UdpSocket>) {
        let Prepared { secret, previous, sockets, timestamp_floor, timestamps_below, .. } =
            prepared;
        let (node, now) = (self.node.clone(), clock::now());
        let endpoint = match previous {
            None => Endpoint::new(node, secret, now, resume),
            Some((previous, left)) => {
                let endpoint = Endpoint::new(node, previous, now, resume);
                endpoint.rotate_key(now, secret, left);
                endpoint
            }
        };
        endpoint.set_timestamp_floor(timestamp_floor);
        endpoint.set_timestamp_limit(timestamps_below);
        (endpoint, sockets)
    }

    /// Stops an endpoint whose network is gone, once its workloads are taken out, and forgets what
    /// was kept of it. Returns the prefixes that packets of this host may leave for again.
    pub fn stop(&self, network: &NetworkName, running: &RunningEndpoint) -> Vec<IpNet> {
        self.workers.stop(&running.served);
        let gone = self.kept.lock().remove(network);
        let folder = self.folder.clone();
        folder.forget_endpoint(network);
        info!(%network, "endpoint stopped: the node does not serve the network any more");
        gone.map(|kept| kept.prefixes).unwrap_or_default()
    }

    /// Has all endpoints, now and later, ask these STUN servers how they are seen.
    pub fn set_stun_servers(&self, servers: Vec<SocketAddr>) {
        let mut known = self.stun_servers.lock();
        *known = servers;
        for (_, served) in self.enforcement.endpoints() {
            served.endpoint.set_stun_servers(&known);
        }
    }
}

/// Reads what is on disk of an endpoint, and binds its sockets. Blocks.
fn prepare(
    folder: &Folder,
    network: &NetworkName,
    first_port: u16,
    workers: std::num::NonZeroUsize,
) -> Result<Prepared> {
    let (secret, previous) = (folder.endpoint_key(network), folder.previous_endpoint_key(network));
    let sockets = workers::bind(folder.endpoint_port(network), first_port, workers)?;
    let port = sockets[0].local_addr()?.port();
    folder.keep_endpoint_port(network, port)?;
    let timestamp_floor = folder.stamp_limit(network);
    let timestamps_below = timestamp_limit(timestamp_floor, clock::unix_seconds());
    if let Err(error) = folder.keep_stamp_limit(network, timestamps_below) {
        warn!(%network, "{error:#}");
    }
    Ok(Prepared { secret, previous, sockets, port, timestamp_floor, timestamps_below })
}

/// Returns the limit for an endpoint whose timestamps have come so far, at this time; all in
/// seconds since 1970.
pub(super) fn timestamp_limit(newest: u64, now: u64) -> u64 {
    newest.max(now).saturating_add(TIMESTAMP_MARGIN)
}

#[cfg(test)]
impl Endpoints {
    /// Holds the turn to start endpoints and to change keys.
    pub(crate) async fn hold_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }
}
