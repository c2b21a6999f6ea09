//! The one way to change the mesh: plan on the world, commit to the store, apply to the world,
//! deliver to nodes and relays.

use crate::{
    api_latency::ApiLatency,
    ca::Ca,
    journal::Journal,
    limits::Retention,
    pool::Pool,
    relay_links::RelayLinks,
    report_batcher::{BatchReceiver, ReportBatcher},
    service_load::ServiceLoads,
    sessions::Sessions,
    store::{Backup, Note, Past, Store, StoreError},
    turns::{Priority, Turns},
    webhook::Webhooks,
};
use ipnet::IpNet;
use meshward_api_types::AuditEntry;
use meshward_control_state::{
    Plan, Refusal,
    budget::NodeBudget,
    change_log,
    plan::PolicyUpdates,
    plans::workloads::{self, Report},
    records::{Mutation, Record, RecordKey},
    timestamp,
    world::{Deltas, NodeSet, World},
};
use meshward_relay::{
    forwarder::Forwarder,
    guard::{Guard, MemberConnections},
    limits::Strangers,
};
use meshward_types::{NodeName, Revision, relay::RelayId};
use parking_lot::{Mutex, RwLock};
use std::{path::PathBuf, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tracing::warn;

/// The author of a change, for the audit log.
#[derive(Debug, Clone, Default)]
pub struct ChangeContext {
    /// `user:NAME`, `node:NAME` or `trigger:NAME`.
    pub actor: String,
    /// `true` to only work out what would happen.
    pub dry_run: bool,
    /// The reason, in the author's words.
    pub why: Option<String>,
    /// The address from which the author asks.
    pub origin: Option<String>,
}

impl ChangeContext {
    /// Returns the context of a change that is to be made.
    pub fn named(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), ..Self::default() }
    }

    /// Returns the context with a reason.
    #[must_use]
    pub fn because(&self, why: Option<String>) -> Self {
        Self { why, ..self.clone() }
    }

    /// Returns the context of a change that a node makes.
    pub fn node(name: &NodeName) -> Self {
        Self::named(format!("node:{name}"))
    }
}

/// A change that was made.
pub struct Done<T> {
    /// The first revision that has it.
    pub revision: Revision,
    /// The nodes that it concerns.
    pub touched: NodeSet,
    /// The outcome of the plan.
    pub outcome: T,
}

/// The time between two searches for what is no longer to be kept.
const RETENTION_EVERY: Duration = Duration::from_mins(10);
/// The time for which failed authentications are gathered into a line of the audit log, and the
/// pause until the next line.
const FAILURES_JOINED: Duration = Duration::from_secs(1);
const FAILURES_EVERY: Duration = Duration::from_secs(59);
/// The number of times that a plan is made, if other coordinators keep writing first.
const ATTEMPTS: usize = 16;

/// The settings of a mesh.
pub struct Settings {
    /// The lifetime of a node's certificate.
    pub certificate_lifetime: Duration,
    /// The guard of the listeners.
    pub guard: Arc<Guard>,
    /// The budget of one node.
    pub budget: NodeBudget,
    /// The loopback, link-local and private networks in which webhooks may be.
    pub webhook_networks: Vec<IpNet>,
    /// The folder of the CA and the database.
    pub data_dir: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            certificate_lifetime: Duration::from_hours(24),
            guard: Guard::new(&Strangers::default(), 1000),
            budget: NodeBudget::default(),
            webhook_networks: vec![],
            data_dir: PathBuf::from("."),
        }
    }
}

/// The mesh and everything that serves it.
pub struct Mesh {
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// The sessions of connected nodes.
    pub sessions: Sessions,
    /// The batcher of nodes' reports.
    pub report_batcher: ReportBatcher,
    /// The forwarder of this coordinator, which is relay 1.
    pub forwarder: Forwarder,
    /// The links of the other relays.
    pub relays: RelayLinks,
    /// The lifetime of a node's certificate.
    pub certificate_lifetime: Duration,
    /// The guard of the listeners.
    pub guard: Arc<Guard>,
    /// The budget of one node.
    pub budget: NodeBudget,
    /// The sender of webhooks.
    pub webhooks: Webhooks,
    /// The folder of the CA and the database.
    pub data_dir: PathBuf,
    /// The members' connections, counted.
    pub members: MemberConnections,
    /// The recent changes, for watches.
    pub journal: Journal,
    /// The latency of the API.
    pub api_latency: ApiLatency,
    /// The load of services.
    pub loads: ServiceLoads,
    world: RwLock<World>,
    store: Arc<Mutex<Box<dyn Store>>>,
    writing: Turns,
    /// The threads for long computations.
    pub pool: Pool,
}

impl Mesh {
    /// Opens the mesh of a store.
    ///
    /// # Errors
    /// Fails if a record of the store cannot be read.
    pub fn open(
        ca: Ca,
        mut store: Box<dyn Store>,
        settings: Settings,
    ) -> anyhow::Result<Arc<Self>> {
        let (report_batcher, batches) = ReportBatcher::new();
        let contents = store.load()?;
        let world = World::load(contents.revision, contents.records).map_err(anyhow::Error::msg)?;
        let mesh = Arc::new(Self {
            ca: Arc::new(ca),
            sessions: Sessions::default(),
            report_batcher,
            forwarder: Forwarder::default(),
            relays: RelayLinks::default(),
            certificate_lifetime: settings.certificate_lifetime,
            guard: settings.guard,
            budget: settings.budget,
            webhooks: Webhooks::new(settings.webhook_networks),
            data_dir: settings.data_dir,
            members: MemberConnections::default(),
            journal: Journal::starting_after(contents.revision),
            api_latency: ApiLatency::default(),
            loads: ServiceLoads::default(),
            world: RwLock::new(world),
            store: Arc::new(Mutex::new(store)),
            writing: Turns::default(),
            pool: Pool::start()?,
        });
        mesh.look(|world| {
            mesh.relays.publish(world.relay_specs());
            // After a restart the nodes come back, and strangers may come at the same time.
            let endpoints = world.nodes.values().flat_map(|node| node.endpoints.values());
            let candidates = endpoints.flat_map(|endpoint| &endpoint.candidates);
            candidates.for_each(|candidate| mesh.guard.note_known(candidate.ip()));
        });
        tokio::spawn(mesh.clone().write_reports(batches));
        Ok(mesh)
    }

    /// Reads the world at one revision.
    pub fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.world.read())
    }

    /// Closes the connections of a node that is no longer a member, and gives it the reason.
    pub fn disconnect(&self, node: &NodeName, reason: &str) {
        self.sessions.end(node, reason);
        self.forwarder.end(RelayId::of(node));
    }

    /// Makes a change: all of it, durable and distributed, or none. A dry run takes no turn: it
    /// neither waits nor makes others wait.
    ///
    /// # Errors
    /// The plan's refusal, or [`Refusal::Failed`] if the store cannot write.
    pub async fn change<T>(
        &self,
        context: &ChangeContext,
        plan: impl Fn(&World) -> Result<Plan<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        self.change_in_turn(context, Priority::Normal, plan).await
    }

    /// Makes a change before all others that wait.
    ///
    /// # Errors
    /// Fails as [`Self::change`] does.
    pub async fn change_first<T>(
        &self,
        context: &ChangeContext,
        plan: impl Fn(&World) -> Result<Plan<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        self.change_in_turn(context, Priority::Urgent, plan).await
    }

    async fn change_in_turn<T>(
        &self,
        context: &ChangeContext,
        priority: Priority,
        plan: impl Fn(&World) -> Result<Plan<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        let nothing = |revision, outcome| Done { revision, touched: NodeSet::default(), outcome };
        if context.dry_run {
            let (planned, made) = self.look(|world| (world.revision, plan(world)));
            return Ok(nothing(planned, made?.outcome));
        }
        let _turn = self.writing.acquire(priority).await;
        for _ in 0..ATTEMPTS {
            let (planned, made) = self.look(|world| (world.revision, plan(world)));
            let Plan { mutations, policies, action, outcome } = made?;
            if mutations.is_empty() && action.is_empty() {
                return Ok(nothing(planned, outcome));
            }
            let note = Note {
                at: timestamp(OffsetDateTime::now_utc()),
                actor: context.actor.clone(),
                action,
                why: context.why.clone(),
                origin: context.origin.clone(),
            };
            let mutations = Arc::new(mutations);
            let committed = {
                let mutations = mutations.clone();
                self.with_store(move |store| store.commit(planned, &mutations, &note)).await
            };
            match committed {
                Ok(revision) => {
                    let touched = self.apply(revision, &mutations, &policies);
                    return Ok(Done { revision, touched, outcome });
                }
                Err(StoreError::Conflict { .. }) => {
                    let contents = self
                        .with_store(|store| store.load())
                        .await
                        .map_err(|error| refused(&error))?;
                    let reloaded =
                        self.look(|world| world.reload(contents.revision, contents.records));
                    // Nothing else writes during this turn.
                    *self.world.write() = reloaded.map_err(Refusal::Failed)?;
                    self.sessions.compare_all();
                    self.journal.restart_after(contents.revision);
                }
                Err(error) => return Err(refused(&error)),
            }
        }
        Err(Refusal::Failed("other coordinators keep writing first; try again".into()))
    }

    /// Applies what the store has written, and delivers the deltas to nodes and relays. Readers of
    /// the world wait meanwhile: a session that begins has either read the revision, or gets its
    /// deltas.
    fn apply(
        &self,
        revision: Revision,
        mutations: &[Mutation],
        policies: &PolicyUpdates,
    ) -> NodeSet {
        let mut world = self.world.write();
        let touched = change_log::touched(&world, mutations);
        let deltas = world.apply(revision, mutations, policies);
        self.relays.deliver(&deltas.relays);
        self.sessions.deliver(revision, &deltas);
        self.journal.append(revision, touched);
        deltas.touched()
    }

    /// Changes what follows from load, and is in no record, and delivers the deltas to nodes: at the
    /// world's revision.
    pub(crate) fn adjust(&self, change: impl FnOnce(&mut World) -> Deltas) {
        let mut world = self.world.write();
        let deltas = change(&mut world);
        self.sessions.deliver(world.revision, &deltas);
    }

    /// Writes the reports of nodes, forever.
    async fn write_reports(self: Arc<Self>, mut receiver: BatchReceiver) {
        while let Some(batches) = receiver.next().await {
            let context = match &batches[..] {
                [only] => ChangeContext::node(&only.node),
                _ => ChangeContext::named("nodes"),
            };
            let reports: Vec<(&NodeName, &[Report])> =
                batches.iter().map(|batch| (&batch.node, &batch.reports[..])).collect();
            let done =
                self.change(&context, |world| Ok(workloads::plan_reports(world, &reports))).await;
            let answers: Vec<_> = match done {
                Ok(done) => done.outcome,
                Err(refusal) => batches.iter().map(|_| Err(refusal.clone())).collect(),
            };
            for (batch, answer) in batches.into_iter().zip(answers) {
                batch.answer(answer);
            }
        }
    }

    /// Returns the newest lines of the audit log, or of that part of it that came before a
    /// revision.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if the store cannot be read.
    pub async fn audit(
        &self,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Refusal> {
        let lines = self.with_store(move |store| store.audit(before, limit)).await;
        let lines = lines.map_err(|error| refused(&error))?;
        Ok(lines.into_iter().map(AuditEntry::from).collect())
    }

    /// Returns the states that a policy had, or those before a revision, the newest first.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if the store cannot be read.
    pub async fn history(
        &self,
        key: RecordKey,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<Past>, Refusal> {
        self.with_store(move |store| store.history(&key, before, limit))
            .await
            .map_err(|error| refused(&error))
    }

    /// Returns the policies and quarantines as they were at a revision.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if the store cannot be read.
    pub async fn as_of(&self, revision: Revision) -> Result<Vec<Record>, Refusal> {
        self.with_store(move |store| store.as_of(revision)).await.map_err(|error| refused(&error))
    }

    /// Returns `true` if the disk has room for writes.
    pub async fn has_room(&self) -> bool {
        self.with_store(|store| Ok(store.has_room())).await.unwrap_or(false)
    }

    /// Deletes what is no longer to be kept, forever: a little at a time, so that no write waits
    /// for long.
    pub async fn keep_retention(&self, retention: Retention) {
        loop {
            let (retention, now) = (retention.clone(), OffsetDateTime::now_utc().unix_timestamp());
            let more = self.with_store(move |store| store.forget(&retention, now)).await;
            match more {
                Ok(true) => tokio::time::sleep(Duration::from_millis(200)).await,
                Ok(false) => tokio::time::sleep(RETENTION_EVERY).await,
                Err(error) => {
                    warn!("old states and audit lines could not be deleted: {error}");
                    tokio::time::sleep(RETENTION_EVERY).await;
                }
            }
        }
    }

    /// Writes failed authentications to the audit log, forever: those of a minute in one line, so
    /// that nobody fills it by failing.
    pub async fn audit_failures(&self) {
        loop {
            self.guard.failed.notified().await;
            tokio::time::sleep(FAILURES_JOINED).await;
            let failed = self.guard.drain_failed();
            let Some(line) = failed.line() else { continue };
            let context = ChangeContext::named("coordinator");
            if let Err(refusal) = self.change(&context, |_| Ok(Plan::noted(line.clone()))).await {
                warn!("failed authentications are not in the audit log yet: {refusal}");
                self.guard.restore_failed(failed);
            }
            tokio::time::sleep(FAILURES_EVERY).await;
        }
    }

    /// Writes a backup to a file that is not there yet, and checks it. `ca`: the data folder, if
    /// the CA is to be in it.
    ///
    /// # Errors
    /// [`Refusal::Failed`] or [`Refusal::Full`].
    pub async fn back_up(&self, file: PathBuf, ca: Option<PathBuf>) -> Result<Backup, Refusal> {
        let mesh = self.ca.mesh.clone();
        let copier =
            self.with_store(|store| Ok(store.copier())).await.map_err(|error| refused(&error))?;
        let make = move || {
            copier(&file)?;
            Backup::complete(&file, &mesh, ca.as_deref())
        };
        let done = tokio::task::spawn_blocking(make).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            .map_err(|error| refused(&error))
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut **store.lock())).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

fn refused(error: &StoreError) -> Refusal {
    let text = format!("nothing was changed: {error}");
    match error {
        StoreError::Full => Refusal::Full(text),
        StoreError::Forgotten(_) => Refusal::Missing(error.to_string()),
        _ => Refusal::Failed(text),
    }
}
