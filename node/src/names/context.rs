//! The parts of the node that the thread of names needs, and the upstreams of all networks.

use super::{
    counts::CountedOutcome,
    host::HostResolvers,
    resolver::NetworkResolver,
    upstreams::{self, Upstreams, trusting_the_host},
};
use crate::{clock, enforcement::Enforcement, offloads::Offloads, workers::Workers};
use meshward_names::{Query, UpstreamAnswer};
use meshward_types::NetworkName;
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
};
use tracing::warn;

/// The parts of the node that the thread of names needs.
pub(crate) struct Context {
    pub(super) workers: Arc<Workers>,
    pub(super) offloads: Offloads,
    pub(super) enforcement: Arc<Enforcement>,
    host: Mutex<HostResolvers>,
    upstreams: Mutex<HashMap<NetworkName, Arc<Upstreams>>>,
    tls: LazyLock<ClientConfig>,
}

impl Context {
    /// The parts of the node; the host's resolvers are in the file `resolv_conf`.
    pub(crate) fn new(
        enforcement: Arc<Enforcement>,
        workers: Arc<Workers>,
        offloads: Offloads,
        resolv_conf: PathBuf,
    ) -> Self {
        let host = Mutex::new(HostResolvers::new(resolv_conf));
        let tls = LazyLock::new(trusting_the_host as fn() -> ClientConfig);
        Self { workers, offloads, enforcement, host, upstreams: Mutex::default(), tls }
    }

    /// Forgets the upstreams of networks that this node does not serve any more.
    pub(super) fn forget_stopped(&self) {
        let is_served = |network: &NetworkName| self.enforcement.endpoint(network).is_some();
        self.upstreams.lock().retain(|network, _| is_served(network));
    }

    /// Asks an upstream.
    pub(super) async fn ask(
        &self,
        network: &NetworkName,
        resolver: &NetworkResolver,
        query: &Query,
    ) -> UpstreamAnswer {
        let upstreams = self.upstreams_of(network, resolver);
        let named = query.question().map(|question| &question.name);
        let upstream = named.and_then(|name| upstreams?.for_name(name));
        let (outcome, said) = match upstreams::ask(upstream, query).await {
            Ok(said) => (CountedOutcome::Upstream, said),
            Err(said) => (CountedOutcome::Failed, said),
        };
        resolver.count(query.kind(), outcome);
        said
    }

    /// Returns the upstreams of a network, as its settings and the host's file are now.
    fn upstreams_of(
        &self,
        network: &NetworkName,
        resolver: &NetworkResolver,
    ) -> Option<Arc<Upstreams>> {
        let settings = resolver.settings();
        let mut host = self.host.lock();
        let version = host.version(clock::now());
        let mut all = self.upstreams.lock();
        if let Some(own) = all.get(network).filter(|own| own.is_current(&settings, version)) {
            return Some(own.clone());
        }
        match Upstreams::new(settings, &host, version, || self.tls.clone()) {
            Ok(own) => {
                let own = Arc::new(own);
                all.insert(network.clone(), own.clone());
                Some(own)
            }
            Err(error) => {
                warn!(%network, "its upstreams cannot be asked: {error:#}");
                None
            }
        }
    }
}
