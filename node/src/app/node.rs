//! The parts of the node, and what concerns several of them: updates, sessions, the end.

use crate::{
    clock::unix_seconds,
    config::Config,
    coordinator_link::CoordinatorLink,
    endpoints::{Endpoints, PREVIOUS_KEY_LIFETIME},
    enforcement::{Applied, Enforcement, RunningEndpoint},
    folder::Folder,
    names::{context::Context, service},
    offloads::Offloads,
    reachability::{Parts, Reachability},
    relay_queue,
    runners::Runners,
    view_persister::UpdateNumber,
    view_store::ViewStore,
    workers::Workers,
    workloads::Workloads,
};
use anyhow::Result;
use meshward_control_proto::{Change, FromNode};
use meshward_datapath::RESUME_WINDOW;
use meshward_runtime::{member::Membership, tls::clock, write_behind::RETRY};
use meshward_types::{NetworkName, Revision};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tracing::warn;

/// The bound on how long an update waits for the endpoints that it brings; then they start while
/// others are applied.
const STARTED_WITHIN: Duration = Duration::from_millis(500);
/// The interval at which the age of the keys is checked.
const KEYS_INTERVAL: Duration = Duration::from_mins(1);

/// The node.
pub struct Node {
    /// The membership of this machine.
    pub membership: Membership,
    /// The configuration.
    pub config: Config,
    /// The data folder.
    pub folder: Folder,
    pub(super) workers: Arc<Workers>,
    /// The link to the coordinator.
    pub link: Arc<CoordinatorLink>,
    /// Enforcement.
    pub enforcement: Arc<Enforcement>,
    /// The endpoints' lives.
    pub endpoints: Arc<Endpoints>,
    /// The workloads.
    pub workloads: Arc<Workloads>,
    /// Paths to this node and from it.
    pub reachability: Arc<Reachability>,
    /// The programs that run commands of health checks beside `meshctl run`'s own.
    pub runners: Arc<Runners>,
}

/// An update that is in force.
pub struct Enforced {
    /// The update's number: it is on disk once the view's persister has reached it.
    pub number: UpdateNumber,
    /// The start of the endpoints that it brings, if it brings any: it ends in bounded time.
    pub starting: Option<tokio::task::JoinHandle<()>>,
}

impl Node {
    /// Restores the state on disk: the last view, its endpoints, and the workloads that still live.
    /// No coordinator is needed for that. Damaged files are set aside, and the rest starts.
    ///
    /// # Errors
    /// Fails if the kernel gives no thread.
    pub async fn restore(
        membership: Membership,
        config: Config,
        folder: Folder,
        relay: relay_queue::Sender,
    ) -> Result<Arc<Self>> {
        let (view, store) = ViewStore::open(&folder);
        let attachments = folder.workloads();
        let offloads = Offloads::without(&config.disable_offloads);
        let workers = Arc::new(Workers::start(config.workers, offloads, relay)?);
        let name = membership.name.clone();
        let troubles = folder.troubles().clone();
        let enforcement = Enforcement::start(name.clone(), view.into(), store, troubles)?;
        let resolv_conf = config.resolv_conf.clone();
        let names = service::start(Context::new(
            enforcement.clone(),
            workers.clone(),
            offloads,
            resolv_conf,
        ))?;
        let link = Arc::new(CoordinatorLink::default());
        let endpoints = Arc::new(Endpoints::new(
            name,
            config.first_port,
            folder.clone(),
            (workers.clone(), names),
            enforcement.clone(),
        ));
        let workloads = Arc::new(Workloads::new(
            membership.clone(),
            offloads,
            folder.clone(),
            workers.clone(),
            (enforcement.clone(), link.clone()),
        ));
        let parts = Parts {
            workers: workers.clone(),
            enforcement: enforcement.clone(),
            endpoints: endpoints.clone(),
            link: link.clone(),
        };
        let reachability =
            Reachability::restore(membership.clone(), config.clone(), folder.clone(), parts).await;
        let node = Arc::new(Self {
            membership,
            config,
            folder,
            workers,
            link,
            enforcement,
            endpoints,
            workloads,
            reachability: Arc::new(reachability),
            runners: Arc::default(),
        });
        node.start_endpoints(RESUME_WINDOW).await;
        for attachment in attachments {
            node.workloads.restore(attachment).await;
        }
        node.workloads.forget_old_translation();
        let endpoints = node.endpoints.clone();
        tokio::task::spawn_blocking(move || endpoints.restore_flows()).await?;
        Ok(node)
    }

    /// Starts the endpoints of new networks, and those that could not be started before; then
    /// restores the workloads that waited for them. Connections from before the start are resumed
    /// for `resume`.
    async fn start_endpoints(&self, resume: Duration) {
        for network in self.endpoints.start_lacking(resume).await {
            self.workloads.spread_routes(&network);
            self.reachability.report_endpoint(&network);
        }
        self.workloads.restore_deferred().await;
    }

    /// Tries again to start the endpoints that could not be started, for ever.
    pub async fn retry_endpoints(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            self.start_endpoints(Duration::ZERO).await;
        }
    }

    /// Applies an update: when this returns, it is in force. The endpoints that it brings, and
    /// their workloads of before, are started in a task of their own: nothing that follows waits
    /// for them.
    pub fn enforce(self: &Arc<Self>, revision: Revision, changes: &[Change]) -> Enforced {
        let applied = self.enforcement.apply(revision, changes);
        // The rest follows: no packet passes any more that the update denies.
        self.stop_endpoints(&applied.stopped);
        self.workloads.apply_update(&applied);
        let Applied { number, lacks_endpoint, .. } = applied;
        let starting = lacks_endpoint.then(|| {
            let node = self.clone();
            let start = tokio::spawn(async move { node.start_endpoints(Duration::ZERO).await });
            tokio::spawn(async move {
                let _ = tokio::time::timeout(STARTED_WITHIN, start).await;
            })
        });
        Enforced { number, starting }
    }

    fn stop_endpoints(&self, stopped: &[(NetworkName, RunningEndpoint)]) {
        for (network, running) in stopped {
            self.workloads.drop_endpoint(network, running);
            let prefixes = self.endpoints.stop(network, running);
            self.workloads.allow_elsewhere(prefixes);
            self.reachability.forget_endpoint(network);
        }
    }

    /// Closes everything, for ever: this node is no member of the mesh any more. Its workloads keep
    /// running, without an interface of the mesh.
    ///
    /// # Errors
    /// Fails if it cannot be noted on disk. Everything is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.stop_endpoints(&self.enforcement.close());
        self.folder.keep_removed(unix_seconds())
    }

    /// Begins a session: returns what to say first; what changes from now on goes to
    /// `to_coordinator`.
    pub fn begin_session(&self, to_coordinator: mpsc::UnboundedSender<FromNode>) -> Vec<FromNode> {
        // First: a workload that is attached from now on is in the reports, or sent, or both.
        self.link.begin(to_coordinator);
        let has = FromNode::inventory(self.reachability.reports(), self.workloads.reports());
        let (revision, digest) = self.enforcement.view(|view| (view.revision, view.digest()));
        let hello = FromNode::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.reachability.instance(),
            clock: clock(),
            revision,
            digest,
        };
        std::iter::once(hello).chain(has).collect()
    }

    /// Ends a session: from now on the node vouches for what starts.
    pub fn end_session(&self) {
        self.link.end();
        self.workloads.vouch_for_undecided(None);
        self.enforcement.notify_changed();
    }

    /// Gives endpoints other keys, those of all networks if none is named, and tells the
    /// coordinator. The current ones stay good for `keep`.
    ///
    /// # Errors
    /// Fails if a key cannot be written; then the endpoint has the one that it had.
    pub async fn rotate_keys(&self, networks: &[NetworkName], keep: Duration) -> Result<()> {
        for (network, _) in self.enforcement.endpoints() {
            if networks.is_empty() || networks.contains(&network) {
                self.endpoints.rotate_key(&network, keep).await?;
                self.reachability.report_endpoint(&network);
            }
        }
        Ok(())
    }

    /// Rotates keys at their age limit, for ever. While the coordinator is away they stay, since no
    /// peer could learn of new ones.
    pub async fn watch_keys(&self) {
        let age = self.config.rotate_keys.0;
        loop {
            tokio::time::sleep(KEYS_INTERVAL.min(age.max(Duration::from_secs(1)))).await;
            if !self.link.has_session() {
                continue;
            }
            let old = self.endpoints.with_keys_older_than(age);
            if !old.is_empty()
                && let Err(error) = self.rotate_keys(&old, PREVIOUS_KEY_LIFETIME).await
            {
                warn!("the keys stay as they are: {error:#}");
            }
        }
    }
}
