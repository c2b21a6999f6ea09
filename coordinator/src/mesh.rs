//! The one way to change the mesh: plan on the world, commit to the store, follow in the world,
//! wake whom it touches.

use crate::{
    api_latency::ApiLatency,
    ca::Ca,
    journal::Journal,
    limits::Retention,
    pool::Pool,
    relay_links::RelayLinks,
    report_batcher::{BatchReceiver, ReportBatcher},
    sessions::Sessions,
    store::{Backup, Note, Past, Store, StoreError},
    turns::Turns,
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
    world::World,
};
use meshward_relay::{
    forwarder::Forwarder,
    guard::{Guard, MemberConnections},
    limits::Strangers,
};
use meshward_types::{NodeName, Revision, relay::RelayId};
use parking_lot::{Mutex, RwLock};
use roaring::RoaringBitmap;
use std::{path::PathBuf, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tracing::warn;

/// Who makes a change.
#[derive(Debug, Clone, Default)]
pub struct ChangeContext {
    /// `user:NAME`, `node:NAME` or `trigger:NAME`.
    pub actor: String,
    /// Only work out what would happen.
    pub dry_run: bool,
    /// Why, as they say.
    pub why: Option<String>,
    /// The address that they ask from.
    pub origin: Option<String>,
}

impl ChangeContext {
    /// Somebody who means it.
    pub fn named(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), ..Self::default() }
    }

    /// The same, saying why.
    pub fn because(&self, why: Option<String>) -> Self {
        Self { why, ..self.clone() }
    }

    /// A node, which means what it says.
    pub fn node(name: &NodeName) -> Self {
        Self::named(format!("node:{name}"))
    }
}

/// A change that was made.
pub struct Done<T> {
    /// The revision that has it.
    pub revision: Revision,
    /// The nodes that must follow, by their indices.
    pub touched: RoaringBitmap,
    /// What the plan gave.
    pub outcome: T,
}

/// How often it is looked for what is not to be kept any more.
const RETENTION_EVERY: Duration = Duration::from_mins(10);
/// For how long failed authentications are gathered for a line of the audit log, and how soon
/// another one follows.
const FAILURES_JOINED: Duration = Duration::from_secs(1);
const FAILURES_EVERY: Duration = Duration::from_secs(59);
/// How often a plan is made anew because another coordinator was faster.
const ATTEMPTS: usize = 16;

/// How a mesh is served.
pub struct Settings {
    /// How long a node's certificate is good.
    pub certificate_lifetime: Duration,
    /// Who gets in when not all can.
    pub guard: Arc<Guard>,
    /// What one node may take.
    pub budget: NodeBudget,
    /// Networks of the coordinator's own in which webhooks may be.
    pub webhook_networks: Vec<IpNet>,
    /// Where the CA and the database are.
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
    pub ca: Arc<Ca>,
    pub sessions: Sessions,
    pub report_batcher: ReportBatcher,
    /// What this coordinator relays itself.
    pub forwarder: Forwarder,
    pub relays: RelayLinks,
    /// How long a node's certificate is good.
    pub certificate_lifetime: Duration,
    pub guard: Arc<Guard>,
    pub budget: NodeBudget,
    pub webhooks: Webhooks,
    /// Where the CA and the database are.
    pub data_dir: PathBuf,
    /// Their connections, counted.
    pub members: MemberConnections,
    /// What has changed of late, for those who watch.
    pub journal: Journal,
    pub api_latency: ApiLatency,
    world: RwLock<World>,
    store: Arc<Mutex<Box<dyn Store>>>,
    writing: Turns,
    /// Where what takes long is worked out.
    pub pool: Pool,
}

impl Mesh {
    /// The mesh that is stored.
    ///
    /// # Errors
    /// If the store cannot be read in full.
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
            world: RwLock::new(world),
            store: Arc::new(Mutex::new(store)),
            writing: Turns::default(),
            pool: Pool::start()?,
        });
        mesh.look(|world| {
            mesh.relays.publish(world.relay_specs());
            // They come back after a restart, and strangers may come at the same time.
            let endpoints = world.nodes.values().flat_map(|node| node.endpoints.values());
            let candidates = endpoints.flat_map(|endpoint| &endpoint.candidates);
            candidates.for_each(|candidate| mesh.guard.note_known(candidate.ip()));
        });
        tokio::spawn(mesh.clone().write_reports(batches));
        Ok(mesh)
    }

    /// Looks at one revision.
    pub fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.world.read())
    }

    /// Ends what a node that is no member any more has open, and tells it so.
    pub fn let_go(&self, node: &NodeName, why: &str) {
        self.sessions.end(node, why);
        self.forwarder.end(RelayId::of(node));
    }

    /// Makes a change: all of it, durable and distributed, or none. A dry run waits for nobody, and
    /// nobody waits for it.
    ///
    /// # Errors
    /// What the plan refuses, or [`Refusal::Failed`] if the store does.
    pub async fn change<T>(
        &self,
        context: &ChangeContext,
        plan: impl Fn(&World) -> Result<Plan<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        self.change_in_turn(context, false, plan).await
    }

    /// The same, before all others that wait.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn change_first<T>(
        &self,
        context: &ChangeContext,
        plan: impl Fn(&World) -> Result<Plan<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        self.change_in_turn(context, true, plan).await
    }

    async fn change_in_turn<T>(
        &self,
        context: &ChangeContext,
        urgent: bool,
        plan: impl Fn(&World) -> Result<Plan<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        let nothing = |revision, outcome| Done { revision, touched: RoaringBitmap::new(), outcome };
        if context.dry_run {
            let (planned, made) = self.look(|world| (world.revision, plan(world)));
            return Ok(nothing(planned, made?.outcome));
        }
        let _turn = self.writing.take(urgent).await;
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
                    let contents = self.with_store(|store| store.load()).await.map_err(failed)?;
                    let reloaded =
                        self.look(|world| world.reload(contents.revision, contents.records));
                    // Nobody else writes while it is our turn.
                    *self.world.write() = reloaded.map_err(Refusal::Failed)?;
                    self.sessions.compare_all();
                    self.journal.restart_after(contents.revision);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Refusal::Failed("other coordinators keep writing first; try again".into()))
    }

    /// Applies what the store has written, and delivers the deltas to nodes and relays. Readers of
    /// the world wait meanwhile: a session that begins has either seen the revision or is told of it.
    fn apply(
        &self,
        revision: Revision,
        mutations: &[Mutation],
        policies: &PolicyUpdates,
    ) -> RoaringBitmap {
        let mut world = self.world.write();
        let touched = change_log::touched(&world, mutations);
        let deltas = world.apply(revision, mutations, policies);
        self.relays.deliver(&deltas.relays);
        self.sessions.deliver(revision, &deltas);
        self.journal.append(revision, touched);
        deltas.touched()
    }

    /// Writes what nodes report, for ever.
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

    /// The newest lines of the audit log, or of that part of it that came before a revision.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if the store cannot be read.
    pub async fn audit(
        &self,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Refusal> {
        let lines =
            self.with_store(move |store| store.audit(before, limit)).await.map_err(failed)?;
        Ok(lines.into_iter().map(AuditEntry::from).collect())
    }

    /// The states that a policy had, or those before a revision, the newest first.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if the store cannot be read.
    pub async fn history(
        &self,
        key: RecordKey,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<Past>, Refusal> {
        self.with_store(move |store| store.history(&key, before, limit)).await.map_err(failed)
    }

    /// The policies and quarantines as they were at a revision.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if the store cannot be read.
    pub async fn as_of(&self, revision: Revision) -> Result<Vec<Record>, Refusal> {
        self.with_store(move |store| store.as_of(revision)).await.map_err(failed)
    }

    /// Whether the store has room to write what is asked for.
    pub async fn has_room(&self) -> bool {
        self.with_store(|store| Ok(store.has_room())).await.unwrap_or(false)
    }

    /// Forgets what is not to be kept any more, for ever: at each step a little, so that no write
    /// waits for long.
    pub async fn keep_retention(&self, retention: Retention) {
        loop {
            let (retention, now) = (retention.clone(), OffsetDateTime::now_utc().unix_timestamp());
            let more = self.with_store(move |store| store.forget(&retention, now)).await;
            match more {
                Ok(true) => tokio::time::sleep(Duration::from_millis(200)).await,
                Ok(false) => tokio::time::sleep(RETENTION_EVERY).await,
                Err(error) => {
                    warn!("what is old could not be forgotten: {error}");
                    tokio::time::sleep(RETENTION_EVERY).await;
                }
            }
        }
    }

    /// Notes failed authentications in the audit log, for ever: those of a while in one line, so
    /// that nobody fills it by failing.
    pub async fn audit_failures(&self) {
        loop {
            self.guard.failed.notified().await;
            tokio::time::sleep(FAILURES_JOINED).await;
            let failed = self.guard.take_failed();
            let Some(line) = failed.line() else { continue };
            let context = ChangeContext::named("coordinator");
            if let Err(refusal) = self.change(&context, |_| Ok(Plan::noted(line.clone()))).await {
                warn!("failed authentications are not in the audit log yet: {refusal}");
                self.guard.give_back(failed);
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
        let copier = self.with_store(|store| Ok(store.copier())).await.map_err(failed)?;
        let make = move || {
            copier(&file)?;
            Backup::complete(&file, &mesh, ca.as_deref())
        };
        let done = tokio::task::spawn_blocking(make).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())).map_err(failed)
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

fn failed(error: StoreError) -> Refusal {
    let text = format!("nothing was changed: {error}");
    match error {
        StoreError::Full => Refusal::Full(text),
        StoreError::Forgotten(_) => Refusal::Missing(error.to_string()),
        _ => Refusal::Failed(text),
    }
}
