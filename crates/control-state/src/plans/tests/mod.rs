//! Random histories: whatever happens, the world equals the one read back from its records, what
//! every node holds after its deltas is its whole view, and nobody is told of a link that is not
//! its own.

mod owners;
mod parts;
mod services;

use super::{
    credentials, drains,
    endpoints::{EndpointClaims, set_endpoints},
    networks, nodes,
    policies::{self, Submission},
    quarantines::{self, Hand},
    tokens, triggers,
    workloads::{self, RejectedReport, Report},
};
use crate::{
    Plan, Refusal,
    change_log::{self, ChangeLog, ListKind},
    records::{DrainTarget, Mutation, Record, RecordKey, WorkloadRecord, WorkloadRef},
    world::{Deltas, World},
};
use ::time::OffsetDateTime;
use meshward_api_types::{CreateNetwork, CreateToken, Impose, QuarantineTarget, Role};
use meshward_control_proto::{
    EndpointReport, Fired, JoinRequest, MemberKind, Resource, ResourceKey, View, ViewReplica,
    WorkloadReport,
};
use meshward_policy::{Candidate, Policy};
use meshward_types::{
    Health, NetworkName, NodeName, PolicyFile, PublicKey, Revision, WorkloadId,
    measurement::{Image, Measurement, Repository, Sha256},
    token::{Fingerprint, SECRET},
};
use proptest::prelude::*;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const NOW: i64 = 1_000_000;

/// A world, the records that a store would hold, and what the connected nodes have.
#[derive(Default)]
struct Mesh {
    world: World,
    records: Vec<Record>,
    held: BTreeMap<NodeName, ViewReplica>,
    away: BTreeMap<NodeName, ViewReplica>,
    journal: Option<ChangeLog>,
}

impl Mesh {
    fn commit<T>(&mut self, plan: Result<Plan<T>, Refusal>) -> Result<T, Refusal> {
        let plan = plan?;
        for mutation in &plan.mutations {
            let key = match mutation {
                Mutation::Put(record) => record.key(),
                Mutation::Delete(key) => key.clone(),
            };
            self.records.retain(|record| record.key() != key);
            if let Mutation::Put(record) = mutation {
                self.records.push(record.clone());
            }
        }
        let revision = self.world.revision.next();
        let touched = change_log::touched(&self.world, &plan.mutations);
        let deltas = self.world.apply(revision, &plan.mutations, &plan.policies);
        self.journal.iter_mut().for_each(|journal| journal.append(revision, touched.clone()));
        self.deliver(&deltas);
        Ok(plan.outcome)
    }

    /// Hands deltas to the nodes that are connected; a new node comes with nothing, and is
    /// compared.
    fn deliver(&mut self, deltas: &Deltas) {
        for (node, held) in &mut self.held {
            let Some(index) = self.world.nodes.index(node) else { continue };
            let own = deltas.all.iter().filter(|delta| delta.nodes.contains(index));
            let changes: Vec<_> = own.flat_map(|delta| delta.changes.iter().cloned()).collect();
            assert_eq!(changes.is_empty(), !deltas.touched().contains(index));
            held.apply(self.world.revision, &changes);
        }
        self.held.retain(|node, _| self.world.nodes.contains_key(node));
        self.away.retain(|node, _| self.world.nodes.contains_key(node));
        let new: Vec<NodeName> = self
            .world
            .nodes
            .keys()
            .filter(|node| !self.held.contains_key(*node))
            .cloned()
            .collect();
        for node in new.into_iter().filter(|node| !self.away.contains_key(node)).collect::<Vec<_>>()
        {
            self.connect(&node, ViewReplica::default());
        }
    }

    /// A node comes back with what it had.
    fn connect(&mut self, node: &NodeName, mut held: ViewReplica) {
        let view = self.world.view_of(node);
        if self.world.digest_of(node) != held.digest() {
            held.apply(view.revision, &view.changes_since(&held.resource_hashes()));
        }
        self.held.insert(node.clone(), held);
    }

    fn start(
        &mut self,
        node: &NodeName,
        reports: Vec<WorkloadReport>,
    ) -> Result<Vec<RejectedReport>, Refusal> {
        self.report(&[(
            node.clone(),
            reports.into_iter().map(|report| Report::Started(report.into())).collect(),
        )])
        .remove(0)
    }

    fn report(
        &mut self,
        reports: &[(NodeName, Vec<Report>)],
    ) -> Vec<Result<Vec<RejectedReport>, Refusal>> {
        let reports: Vec<_> = reports.iter().map(|(node, reports)| (node, &reports[..])).collect();
        let plan = workloads::plan_reports(&self.world, &reports);
        self.commit(Ok(plan)).unwrap()
    }

    fn join(&mut self, name: &str, token: &CreateToken) -> Result<(), Refusal> {
        let (token, record) = tokens::make(Fingerprint([0; 32]), token, token_seed(), NOW)?;
        let plan = tokens::create(&self.world, &record, NOW);
        self.commit(plan)?;
        let plan =
            nodes::join(&self.world, &request(name, &token.secret()), &format!("key-{name}"), NOW);
        self.commit(plan).map(drop)
    }

    fn network(&mut self, name: &str, prefixes: &[&str]) -> Result<(), Refusal> {
        let plan = networks::create(&self.world, &wanted(name, prefixes));
        self.commit(plan).map(drop)
    }
}

fn token_seed() -> tokens::TokenSeed {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut secret = [0; SECRET];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    tokens::TokenSeed { id: format!("{number:016x}"), secret }
}

fn request(name: &str, secret: &str) -> JoinRequest {
    JoinRequest {
        secret: secret.into(),
        name: name.parse().unwrap(),
        kind: MemberKind::Node,
        labels: meshward_types::Labels::default(),
        csr: vec![],
        clock: 0,
        forget_after: None,
    }
}

fn wanted(name: &str, prefixes: &[&str]) -> CreateNetwork {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    CreateNetwork {
        name: name.parse().unwrap(),
        prefixes,
        block_v4: None,
        block_v6: None,
        mtu: 1420,
    }
}

fn apply(world: &World, source: &str) -> Result<Plan<policies::Applied>, Refusal> {
    let files = [PolicyFile { name: "policy.yaml".into(), text: source.into() }];
    policies::apply(
        world,
        &Submission { files: files.to_vec().into(), guardrails: true, ..Submission::default() },
    )
}

fn time(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

fn hand() -> Hand<'static> {
    Hand { by: "user:test", networks: &[], admin: true, now: time(NOW) }
}

fn impose(target: QuarantineTarget, forensics: bool) -> Impose {
    let allow_from = forensics.then(|| "app=db".parse().unwrap());
    Impose {
        target,
        allow_from,
        seconds: Some(60),
        message: None,
        even_if_none: true,
        reset: false,
    }
}

fn any_token() -> CreateToken {
    CreateToken {
        uses: 1,
        ttl_seconds: 60,
        site: Some("rack".into()),
        networks: vec![],
        relay: false,
        needs_approval: false,
        forget_after_seconds: None,
    }
}

fn shop() -> NetworkName {
    "shop".parse().unwrap()
}

fn report(world: &World, node: &NodeName, id: u8, app: &str) -> Option<WorkloadReport> {
    let block = world.nodes.get(node)?.blocks.get(&shop())?.first()?;
    let IpAddr::V4(base) = block.addr() else { return None };
    let address = Ipv4Addr::from(u32::from(base) + 1 + u32::from(id));
    // Some declare who may reach them.
    let accepts = if id == 2 { vec!["app=api, port=tcp/9".parse().unwrap()] } else { vec![] };
    Some(WorkloadReport {
        prefixes: vec![],
        device: None,
        accepts,
        id: format!("{node}-{id}").parse().unwrap(),
        network: shop(),
        name: "w".parse().unwrap(),
        labels: format!("app={app}").parse().unwrap(),
        addresses: vec![address.into()],
        measurement: measured(node, id),
        signatures: vec![],
        objection: None,
        unhealthy: vec![],
    })
}

/// Some are processes, some containers from a registry, and some of these have privileges.
fn measured(node: &NodeName, id: u8) -> Option<Arc<Measurement>> {
    let repository = Repository::of_reference(if node.as_str() == "node-0" {
        "a.example/w"
    } else {
        "b.example/w"
    });
    let image = Image { repository: repository.ok(), digest: Sha256::of(&[id]) };
    let privileges = if node.as_str() == "node-1" { vec!["privileged".to_owned()] } else { vec![] };
    let config = Sha256::of(b"config");
    let measured = Measurement {
        runtime: "docker".into(),
        images: vec![image],
        config,
        privileges,
        sharing: vec![],
    };
    (id > 0).then(|| Arc::new(measured))
}

#[derive(Debug, Clone)]
enum Step {
    Join(u8),
    Remove(u8),
    Start(u8, u8, &'static str),
    Stop(u8, u8),
    Reconcile(u8, Vec<(u8, &'static str)>),
    /// Starts and stops of several nodes in one revision.
    Together(Vec<(u8, u8, Option<&'static str>)>),
    /// A session ends, or begins again.
    Away(u8),
    Back(u8),
    Move(u8, u16),
    Policy(usize),
    Quarantine(&'static str, bool),
    Isolate(u8, u8),
    Fire(u8, u8),
    Expire,
    /// The finding of a service's check of a workload.
    Health(u8, u8, &'static str, bool),
    /// The drain of a workload, or of its node.
    Drain(u8, u8, bool),
    Undrain(u8, u8, bool),
    /// What has left subsets has no flows any more.
    Release,
}

const POLICIES: [&str; 18] = [
    "network: shop",
    "network: shop\nrules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]",
    "network: shop\nrules: [{ name: a, from: { app: { in: [web, api] } }, to: {}, allow: [any] }]",
    "network: shop\n\
    rules: [{ name: b, from: { app: api }, to: { app: { in: [db, api] } }, allow: [tcp/1] }, { \
    name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]",
    "network: shop\nmode: observe\n\
    rules: [{ name: b, from: { app: api }, to: {}, deny: [tcp/1] }]\n\
    forensics: [{ name: f, from: { app: db }, to: {}, allow: [tcp/22] }]",
    "network: shop\ndeclarations: open\n\
    rules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]\n\
    triggers: [{ name: scan, when: { denied_flows: 2, within: 10s }, then: { label: { suspect: \
    'yes' } }, for: 10s }]",
    "network: shop\nrules: [{ name: s, from: { suspect: 'yes' }, to: {}, allow: [icmp] }]\n\
    triggers: [{ name: scan, when: { denied_flows: 2, within: 10s }, then: quarantine }]",
    "network: shop\nrules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]\n\
    admission: [{ name: i, for: { app: web }, images: [a.example/*] }]",
    "network: shop\nrules: [{ name: a, from: { app: web }, to: {}, allow: [tcp/80] }]\n\
    admission: [{ name: p, for: { suspect: { exists: false } } }]",
    "network: shop\n\
    rules: [{ name: a, from: { meshward/node: node-2 }, to: { meshward/image.repo: { exists: true \
    } }, allow: [tcp/80] }]\n\
    admission: [{ name: n, for: { meshward/node: node-3 }, images: ['*'] }]",
    "network: shop\n\
    services: [{ name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }], health: { tcp: 80 } }, \
    { name: db, for: {}, ports: [{ port: 1 }], health: { tcp: 1 } }]\n\
    rules: [{ name: a, from: { app: web }, to: { service: api } }]",
    "network: shop\n\
    services: [{ name: api, for: { app: { in: [api, db] } }, ports: [{ port: 80 }], health: \
    { tcp: 80 }, prefer: [site] }]\n\
    rules: [{ name: a, from: { app: { in: [web, db] } }, to: { service: api } }]",
    "network: shop\ndns: intercept\n\
    services: [{ name: db, for: { app: db }, ports: [{ port: 1 }] }]\n\
    rules: [{ name: b, from: { app: api }, to: { app: db }, allow: [tcp/1] }, { name: c, from: { \
    app: web }, to: { service: db } }]\n\
    admission: [{ name: i, for: { app: web }, images: [a.example/*] }]",
    "network: shop\nservices: [{ name: api, for: { app: api }, ports: [{ port: 80 }], fan_out: 1 }]\nrules: [{ name: s, from: { app: web }, to: { service: api } }]",
    "network: shop\nservices: [{ name: api, for: { app: api }, ports: [{ port: 80 }], fan_out: 2 }, { name: db, for: { app: { in: [db, api] } }, ports: [{ port: 81 }], health: { tcp: 1 }, fan_out: 1 }]\nrules: [{ name: s, from: { app: web }, to: { service: api } }, { name: t, from: { app: { in: [web, api] } }, to: { service: db } }]",
    "network: shop\nservices: [{ name: api, for: { app: { in: [web, api] } }, ports: [{ port: 80 }], fan_out: 1 }]\nrules: [{ name: s, from: {}, to: { service: api } }, { name: l, from: { app: db }, to: { app: api }, allow: [tcp/9] }]",
    "network: shop\nservices: [{ name: api, for: {}, ports: [{ port: 80 }], health: { tcp: 80 } }]\nrules: [{ name: s, from: { app: db }, to: { service: api } }, { name: l, from: { app: api }, to: { app: db }, allow: [tcp/9] }]",
    "network: shop\ndeclarations: open\nservices: [{ name: api, for: { app: api }, ports: [{ port: 80 }], fan_out: 1 }]\nguardrails: [{ name: g, from: { app: db }, to: { app: api }, deny: [any] }]\nrules: [{ name: s, from: { app: { in: [web, db] } }, to: { service: api } }]",
];

fn step() -> impl Strategy<Value = Step> {
    let app = || prop_oneof![Just("web"), Just("api"), Just("db")];
    prop_oneof![
        (0..4u8).prop_map(Step::Join),
        (0..4u8).prop_map(Step::Remove),
        (0..4u8, 0..3u8, app()).prop_map(|(node, id, app)| Step::Start(node, id, app)),
        (0..4u8, 0..3u8, app()).prop_map(|(node, id, app)| Step::Start(node, id, app)),
        (0..4u8, 0..3u8).prop_map(|(node, id)| Step::Stop(node, id)),
        (0..4u8, prop::collection::vec((0..3u8, app()), 0..3))
            .prop_map(|(n, list)| Step::Reconcile(n, list)),
        prop::collection::vec((0..4u8, 0..3u8, prop::option::weighted(0.6, app())), 1..8)
            .prop_map(Step::Together),
        (0..4u8).prop_map(Step::Away),
        (0..4u8).prop_map(Step::Back),
        (0..4u8, 1..4u16).prop_map(|(node, port)| Step::Move(node, port)),
        (0..POLICIES.len()).prop_map(Step::Policy),
        (app(), any::<bool>()).prop_map(|(app, on)| Step::Quarantine(app, on)),
        (0..4u8, 0..3u8).prop_map(|(node, id)| Step::Isolate(node, id)),
        (0..4u8, 0..3u8).prop_map(|(node, id)| Step::Fire(node, id)),
        Just(Step::Expire),
        (0..4u8, 0..3u8, prop::sample::select(&["api", "db"][..]), any::<bool>())
            .prop_map(|(node, id, service, ill)| Step::Health(node, id, service, ill)),
        (0..4u8, 0..3u8, any::<bool>()).prop_map(|(node, id, all)| Step::Drain(node, id, all)),
        (0..4u8, 0..3u8, any::<bool>()).prop_map(|(node, id, all)| Step::Undrain(node, id, all)),
        Just(Step::Release),
    ]
}

#[expect(clippy::too_many_lines, reason = "one arm for each step")]
fn make(mesh: &mut Mesh, step: &Step) -> Result<(), Refusal> {
    let name = |node: &u8| -> NodeName { format!("node-{node}").parse().unwrap() };
    match step {
        Step::Join(node) => mesh.join(name(node).as_str(), &any_token()),
        Step::Remove(node) => {
            let plan = nodes::remove(&mesh.world, &name(node));
            mesh.commit(plan)
        }
        Step::Start(node, id, app) => {
            let reports = report(&mesh.world, &name(node), *id, app).into_iter().collect();
            mesh.start(&name(node), reports).map(drop)
        }
        Step::Stop(node, id) => {
            let id = format!("{}-{id}", name(node)).parse().unwrap();
            mesh.report(&[(name(node), vec![Report::Stopped(id)])]).remove(0).map(drop)
        }
        Step::Reconcile(node, list) => {
            let reports =
                list.iter().filter_map(|(id, app)| report(&mesh.world, &name(node), *id, app));
            let all = Report::All(reports.collect());
            mesh.report(&[(name(node), vec![all])]).remove(0).map(drop)
        }
        Step::Together(list) => {
            let each = list.iter().filter_map(|(node, id, app)| {
                let name = name(node);
                let report = match app {
                    Some(app) => Report::Started(report(&mesh.world, &name, *id, app)?.into()),
                    None => Report::Stopped(format!("{name}-{id}").parse().unwrap()),
                };
                Some((name, vec![report]))
            });
            let reports: Vec<_> = each.collect();
            mesh.report(&reports);
            Ok(())
        }
        Step::Away(node) => {
            let held = mesh.held.remove(&name(node));
            mesh.away.extend(held.map(|held| (name(node), held)));
            Ok(())
        }
        Step::Back(node) => {
            if let Some(held) = mesh.away.remove(&name(node)) {
                mesh.connect(&name(node), held);
            }
            Ok(())
        }
        Step::Release => {
            let leaving: Vec<_> = mesh.world.leaving().collect();
            let deltas = mesh.world.release(&leaving);
            mesh.deliver(&deltas);
            Ok(())
        }
        Step::Move(node, port) => move_endpoint(mesh, *node, *port),
        Step::Health(node, id, service, ill) => {
            let id = format!("{}-{id}", name(node)).parse().unwrap();
            let health = if *ill { Health::Unhealthy } else { Health::Healthy };
            let found = Report::Health(id, service.parse().unwrap(), health);
            mesh.report(&[(name(node), vec![found])]).remove(0).map(drop)
        }
        Step::Drain(node, id, all) => {
            let plan = drains::drain(&mesh.world, &drained(*node, *id, *all), &services::author());
            mesh.commit(plan).map(drop)
        }
        Step::Undrain(node, id, all) => {
            let plan = drains::undrain(&mesh.world, &drained(*node, *id, *all), &[]);
            mesh.commit(plan).map(drop)
        }
        rules => change_rules(mesh, rules),
    }
}

fn drained(node: u8, id: u8, all: bool) -> DrainTarget {
    match all {
        true => DrainTarget::Node(format!("node-{node}").parse().unwrap()),
        false => DrainTarget::Workload(format!("node-{node}-{id}").parse().unwrap()),
    }
}

fn move_endpoint(mesh: &mut Mesh, node: u8, port: u16) -> Result<(), Refusal> {
    let name: NodeName = format!("node-{node}").parse().unwrap();
    let public_key = PublicKey([node; 32]);
    let moved = EndpointReport {
        relays: vec![],
        network: shop(),
        public_key,
        port,
        advertised: vec![],
        reflexive: vec![],
        interfaces: vec![],
    };
    let (reports, logged) = ([moved], BTreeSet::new());
    let plan = set_endpoints(&mesh.world, &name, &claims(&reports, &logged));
    mesh.commit(plan).map(drop)
}

/// Makes a step that changes the policy, quarantines, or the labels of triggers.
fn change_rules(mesh: &mut Mesh, step: &Step) -> Result<(), Refusal> {
    let name = |node: &u8| -> NodeName { format!("node-{node}").parse().unwrap() };
    match step {
        Step::Policy(at) => {
            let plan = apply(&mesh.world, POLICIES[*at]);
            mesh.commit(plan).map(drop)
        }
        Step::Fire(node, id) => {
            let workload = format!("{}-{id}", name(node)).parse().unwrap();
            let fired = Fired {
                network: shop(),
                trigger: "scan".into(),
                workload,
                denied_flows: 9,
                distinct_ports: 9,
                distinct_addresses: 9,
            };
            let plan = triggers::fire(
                &mesh.world,
                &name(node),
                &fired,
                &format!("t{node}{id}"),
                time(NOW),
            );
            mesh.commit(plan).map(drop)
        }
        Step::Expire => {
            let plan = triggers::expire(&mesh.world, time(NOW + 100_000));
            mesh.commit(Ok(plan))
        }
        Step::Quarantine(app, on) => {
            let selector = Some(format!("app={app}").parse().unwrap());
            let target = QuarantineTarget { network: None, selector, workload: None };
            let plan = if *on {
                quarantines::impose(&mesh.world, app, &impose(target, *on), &hand())
            } else {
                quarantines::release(&mesh.world, &target, &hand())
            };
            mesh.commit(plan).map(drop)
        }
        Step::Isolate(node, id) => {
            let workload = format!("{}-{id}", name(node));
            let target = QuarantineTarget {
                network: None,
                selector: None,
                workload: Some(workload.parse().unwrap()),
            };
            let plan =
                quarantines::impose(&mesh.world, &workload, &impose(target, *id == 0), &hand());
            mesh.commit(plan).map(drop)
        }
        other => panic!("{other:?} changes no rules"),
    }
}

/// A node is told of identities, workloads and peers only where one of its own workloads has a link
/// with them.
fn check_need_to_know(world: &World, node: &NodeName, view: &View) -> Result<(), TestCaseError> {
    let own: Vec<_> = world.workloads_on(node).map(|workload| workload.identity).collect();
    for (key, resource) in &view.resources {
        let linked = |identity| {
            own.contains(identity) || view.resources.keys().any(|key| {
                matches!(
                    key,
                    ResourceKey::Link(_, a, b)
                        if (a == identity && own.contains(b)) || (b == identity && own.contains(a))
                )
            })
        };
        match (key, resource) {
            (ResourceKey::Link(_, from, to), _) => {
                prop_assert!(own.contains(from) || own.contains(to));
            }
            (ResourceKey::Identity(_, identity), _) => prop_assert!(linked(identity)),
            (_, Resource::Service(spec)) => services::check_service(world, &own, spec)?,
            (_, Resource::Workload(spec)) => {
                prop_assert!(spec.node == *node || linked(&spec.identity));
            }
            (ResourceKey::Peer(_, peer), _) => {
                let mut theirs = world.workloads_on(peer);
                prop_assert!(peer != node && theirs.any(|workload| linked(&workload.identity)));
            }
            _ => {}
        }
    }
    let network = world.networks.get(&shop()).filter(|_| view.network(&shop()).is_some());
    for id in network.into_iter().flat_map(|network| network.workloads.keys()) {
        let is_known = view.workload(&shop(), id).is_some();
        prop_assert_eq!(is_known, is_needed(world, node, id), "{} and {}", node, id);
    }
    Ok(())
}

/// Returns `true` if a node runs a workload, or has a workload that may exchange packets with it:
/// by another rule than those about services, or by one of these and a subset.
fn is_needed(world: &World, node: &NodeName, id: &WorkloadId) -> bool {
    let network = &world.networks[&shop()];
    let (links, other) = (&network.links, &network.workloads[id]);
    let index = |record: &WorkloadRecord| world.nodes.index(&record.node).unwrap();
    let reaches = |client: &WorkloadRecord, instance: &WorkloadRecord| {
        let narrowed = links.narrowed(client.identity, instance.identity);
        narrowed.into_iter().flatten().any(|service| {
            let service = network.narrowing.service(service).unwrap();
            service.is_joined(index(client), &instance.id)
        })
    };
    other.node == *node
        || world.workloads_on(node).any(|own| {
            links.are_widely_linked(own.identity, other.identity)
                || reaches(own, other)
                || reaches(other, own)
        })
}

/// A coordinator that is restarted has the same views. What has left subsets it learns from the
/// nodes: what may have flows is cut nowhere.
fn check_restart(mesh: &Mesh, mut again: World) -> Result<(), TestCaseError> {
    for node in mesh.world.nodes.keys().rev() {
        let before = mesh.world.view_of(node);
        again.adopt(node, &before.resource_hashes());
    }
    let leaves = mesh.world.leaving().next().is_some();
    for node in mesh.world.nodes.keys() {
        let (view, before) = (again.view_of(node), mesh.world.view_of(node));
        let cut = before.resources.keys().find(|key| !view.resources.contains_key(key));
        prop_assert_eq!(cut, None, "what {} knew", node);
        if !leaves {
            prop_assert_eq!(&view, &before);
            prop_assert_eq!(again.digest_of(node), mesh.world.digest_of(node));
        }
    }
    Ok(())
}

/// Every workload is let in just if the policy of now lets it in, and is known under the labels
/// that are true of it.
fn check_verdicts(world: &World) -> Result<(), TestCaseError> {
    for network in world.networks.values() {
        let policy = network.links.policy();
        for known in network.all_workloads() {
            let (node, report) = (&world.nodes[known.node()], known.report());
            let given =
                known.label_override().map(|given| given.labels.clone()).unwrap_or_default();
            let labels = report.labels.clone().with_all(&given).unwrap();
            let candidate = Candidate {
                labels: &labels,
                site: node.site.as_deref(),
                node: &node.name,
                measurement: report.measurement.as_deref(),
                prefixes: &[],
                is_egress_gateway: super::admission::is_egress_gateway(&report.prefixes),
            };
            let judged = policy.evaluate(&candidate, policy.speaks_of_nodes(), |_| vec![]).unwrap();
            match known {
                WorkloadRef::Admitted(record) => {
                    prop_assert!(judged.reasons.is_empty());
                    prop_assert_eq!(&network.identities[&record.identity].labels, &judged.labels);
                }
                WorkloadRef::Refused(record) => prop_assert_eq!(&record.reasons, &judged.reasons),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Judged beside the world, while that goes on, workloads become what they would if all of them
    /// were judged in the plan.
    #[test]
    fn what_was_judged_beside_the_world_is_what_the_plan_finds(
        before in prop::collection::vec(step(), 1..25),
        meanwhile in prop::collection::vec(step(), 0..8),
        next in 0..POLICIES.len(),
    ) {
        let mut mesh =
            Mesh { journal: Some(ChangeLog::starting_after(Revision(0))), ..Mesh::default() };
        mesh.network("shop", &["10.42.0.0/24"]).unwrap();
        for step in &before {
            drop(make(&mut mesh, step));
        }
        let policy = Arc::new(Policy::parse(POLICIES[next]).unwrap());
        let (mesh, steps) = (RefCell::new(mesh), RefCell::new(meanwhile.iter()));
        let go_on = |steps: usize, some: &mut dyn Iterator<Item = &Step>| {
            some.take(steps).for_each(|step| drop(make(&mut mesh.borrow_mut(), step)));
        };
        let look = |look: &mut dyn FnMut(&World)| {
            look(&mesh.borrow().world);
            go_on(3, &mut *steps.borrow_mut());
        };
        let judging = policies::preview_admission(&look, &shop(), &policy);
        go_on(usize::MAX, &mut *steps.borrow_mut());
        let mesh = mesh.into_inner();
        let since = mesh
            .journal
            .as_ref()
            .unwrap()
            .since(ListKind::Workloads, judging.precomputed.since)
            .unwrap();
        let network = &mesh.world.networks[&shop()];
        let reclassify_under = |known: Option<_>| {
            let (precomputed, touched) = known.unzip();
            super::reclassify::reclassify_under(&mesh.world, network, &policy, precomputed, touched)
        };
        let (all, some) =
            (reclassify_under(None), reclassify_under(Some((&judging.precomputed, &since.keys))));
        prop_assert_eq!(format!("{:?}", all.mutations), format!("{:?}", some.mutations));
        prop_assert_eq!((all.admitted, all.refused), (some.admitted, some.refused));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_history_keeps_the_world_true(steps in prop::collection::vec(step(), 1..40)) {
        let mut mesh = Mesh::default();
        mesh.network("shop", &["10.42.0.0/24"]).unwrap();
        for step in &steps {
            let Ok(()) = make(&mut mesh, step) else { continue };
            for (node, held) in &mesh.held {
                let view = mesh.world.view_of(node);
                prop_assert_eq!(&held.resources, &view.resources, "{} after {:?}", node, step);
                prop_assert_eq!(
                    held.digest(),
                    mesh.world.digest_of(node),
                    "{} after {:?}",
                    node,
                    step
                );
                check_need_to_know(&mesh.world, node, &view)?;
            }
            check_verdicts(&mesh.world)?;
            services::check_addresses(&mesh.world)?;
            services::check_names(&mesh.world)?;
            let again = World::load(mesh.world.revision, mesh.records.clone()).unwrap();
            check_restart(&mesh, again)?;
        }
    }
}

#[test]
fn a_token_admits_as_many_nodes_as_it_says_and_no_longer_than_it_says() {
    let mut mesh = Mesh::default();
    let (token, record) =
        tokens::make(Fingerprint([0; 32]), &any_token(), token_seed(), NOW).unwrap();
    let plan = tokens::create(&mesh.world, &record, NOW);
    mesh.commit(plan).unwrap();
    let join = |mesh: &Mesh, name: &str, secret: &str, key: &str, now| {
        nodes::join(&mesh.world, &request(name, secret), key, now)
    };
    let said = |plan: Result<Plan<Option<String>>, Refusal>| plan.err().unwrap().to_string();
    assert!(said(join(&mesh, "a", "wrong", "k", NOW)).contains("unknown"));
    assert!(said(join(&mesh, "a", &token.secret(), "k", NOW + 60)).contains("expired"));
    let plan = join(&mesh, "a", &token.secret(), "k", NOW);
    mesh.commit(plan).unwrap();
    assert!(said(join(&mesh, "b", &token.secret(), "k2", NOW)).contains("spent"));
    assert!(
        join(&mesh, "a", &token.secret(), "k", NOW).unwrap().mutations.is_empty(),
        "asked again"
    );
    let plan = tokens::revoke(&mesh.world, &record.id);
    mesh.commit(plan).unwrap();
    assert!(said(join(&mesh, "a", &token.secret(), "k", NOW)).contains("unknown"));
}

#[test]
fn a_name_is_taken_only_once() {
    let mut mesh = Mesh::default();
    mesh.join("a", &any_token()).unwrap();
    let (token, record) =
        tokens::make(Fingerprint([0; 32]), &any_token(), token_seed(), NOW).unwrap();
    let plan = tokens::create(&mesh.world, &record, NOW);
    mesh.commit(plan).unwrap();
    let refused = nodes::join(&mesh.world, &request("a", &token.secret()), "another", NOW);
    assert!(refused.err().unwrap().to_string().contains("already"));
}

#[test]
fn overlapping_and_exhausted_ranges_are_said() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/29", "fd42::/48"]).unwrap();
    let clash = mesh.network("lab", &["10.42.0.0/16"]).unwrap_err().to_string();
    assert!(clash.contains("10.42.0.0/16 overlaps 10.42.0.0/29 of network `shop`"), "{clash}");
    for name in ["a", "b"] {
        mesh.join(name, &any_token()).unwrap();
    }
    mesh.join("c", &any_token()).unwrap();
    let problem = &mesh.world.nodes[&"c".parse().unwrap()].problems[&shop()];
    assert!(problem.contains("exhausted"), "{problem}");
    let two = mesh.network("two", &["10.1.0.0/16", "10.2.0.0/16"]).unwrap_err().to_string();
    assert!(two.contains("at most one prefix"), "{two}");
}

#[test]
fn a_node_speaks_only_for_its_own_addresses_and_networks() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.network("lab", &["10.43.0.0/16"]).unwrap();
    let token = CreateToken { networks: vec![shop()], ..any_token() };
    mesh.join("a", &token).unwrap();
    mesh.join("b", &token).unwrap();
    let (a, b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let good = report(&mesh.world, &a, 1, "web").unwrap();
    assert!(mesh.start(&a, vec![good.clone()]).unwrap().is_empty());
    let refusal = |node: &NodeName, change: &dyn Fn(&mut WorkloadReport)| {
        let mut report = report(&mesh.world, node, 2, "web").unwrap();
        change(&mut report);
        let reports = [Report::Started(report.into())];
        let plan = workloads::plan_reports(&mesh.world, &[(node, &reports)]);
        plan.outcome[0]
            .as_ref()
            .unwrap()
            .first()
            .map(|rejected| rejected.reason.clone())
            .unwrap_or_default()
    };
    assert_eq!(refusal(&a, &|_| {}), "");
    assert!(refusal(&b, &|r| r.addresses = good.addresses.clone()).contains("not in a block"));
    assert!(refusal(&b, &|r| r.id = good.id.clone()).contains("another node"));
    assert!(refusal(&a, &|r| r.addresses = good.addresses.clone()).contains("belongs to workload"));
    assert!(refusal(&a, &|r| r.network = "lab".parse().unwrap()).contains("may not serve"));
    assert!(
        refusal(&a, &|r| r.labels = "meshward/site=aws".parse().unwrap()).contains("cannot be set")
    );
    assert!(refusal(&a, &|r| r.addresses.clear()).contains("no address"));
}

#[test]
fn a_policy_whose_tests_fail_changes_nothing() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    let source = format!(
        "{}\ntests: [{{ from: {{ app: web }}, to: {{ app: api }}, port: tcp/80, expect: deny }}]",
        POLICIES[1]
    );
    let refused = apply(&mesh.world, &source).err().unwrap().to_string();
    assert!(refused.contains("policy test 1 failed") && refused.contains("rule `a`"), "{refused}");
    let unknown = apply(&mesh.world, "network: lab").err().unwrap().to_string();
    assert!(unknown.contains("policy.yaml:1:10: there is no network `lab`"), "{unknown}");
}

#[test]
fn a_deleted_network_leaves_nothing_behind() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.join("a", &any_token()).unwrap();
    let a: NodeName = "a".parse().unwrap();
    let started = report(&mesh.world, &a, 1, "web").unwrap();
    mesh.start(&a, vec![started.clone()]).unwrap();
    assert!(
        networks::delete(&mesh.world, &shop()).err().unwrap().to_string().contains("1 workloads")
    );
    mesh.report(&[(a.clone(), vec![Report::Stopped(started.id)])]).remove(0).unwrap();
    let plan = networks::delete(&mesh.world, &shop());
    mesh.commit(plan).unwrap();
    let left = |record: &&Record| !matches!(record.key(), RecordKey::Node(_) | RecordKey::Token(_));
    assert_eq!(mesh.records.iter().find(left), None);
    assert!(mesh.world.view_of(&a).resources.is_empty());
    assert_eq!(mesh.world.revision, Revision(6));
}

#[test]
fn an_owner_changes_rules_of_their_network_and_no_guardrails() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.network("lab", &["10.43.0.0/16"]).unwrap();
    let guarded =
        "network: shop\nguardrails: [{ name: g, from: {}, to: { app: db }, deny: [tcp/1] }]\n";
    let plan = apply(&mesh.world, guarded);
    mesh.commit(plan).unwrap();
    let own = [shop()];
    let says = |world: &World, text: &str, prune: bool| {
        let files = [PolicyFile { name: "p.yaml".into(), text: text.into() }];
        let wanted = Submission {
            files: files.to_vec().into(),
            prune,
            networks: own.to_vec(),
            ..Submission::default()
        };
        policies::apply(world, &wanted).err().map(|refusal| refusal.to_string()).unwrap_or_default()
    };
    let rules = "rules: [{ name: r, from: {}, to: {}, allow: [tcp/80] }]";
    assert_eq!(says(&mesh.world, &format!("{guarded}{rules}"), false), "");
    assert!(
        says(&mesh.world, &format!("network: shop\n{rules}"), false).contains("belong to admins")
    );
    assert!(says(&mesh.world, "network: lab", false).contains("no say in network `lab`"));
    assert!(says(&mesh.world, "network: shop", true).contains("belong to admins"));
}

#[test]
fn pruning_removes_the_policies_that_no_file_names() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.network("lab", &["10.43.0.0/16"]).unwrap();
    for network in ["shop", "lab"] {
        let plan = apply(&mesh.world, &format!("network: {network}"));
        mesh.commit(plan).unwrap();
    }
    let files = [PolicyFile { name: "p.yaml".into(), text: "network: shop".into() }];
    let wanted = |prune| Submission {
        files: files.to_vec().into(),
        prune,
        guardrails: true,
        ..Submission::default()
    };
    assert!(policies::apply(&mesh.world, &wanted(false)).unwrap().mutations.len() == 1);
    let plan = policies::apply(&mesh.world, &wanted(true));
    mesh.commit(plan).unwrap();
    assert!(mesh.world.networks[&"lab".parse().unwrap()].policy_files.is_empty());
    assert!(!mesh.world.networks[&shop()].policy_files.is_empty());
}

#[test]
fn a_trigger_acts_on_its_nodes_own_workloads_and_for_its_time() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    for name in ["node-0", "node-1"] {
        mesh.join(name, &any_token()).unwrap();
    }
    let node: NodeName = "node-0".parse().unwrap();
    let reports = report(&mesh.world, &node, 1, "web").into_iter().collect();
    mesh.start(&node, reports).unwrap();
    let plan = apply(&mesh.world, POLICIES[5]);
    mesh.commit(plan).unwrap();
    let other: NodeName = "node-1".parse().unwrap();
    let seen = Fired {
        network: shop(),
        trigger: "scan".into(),
        workload: "node-0-1".parse().unwrap(),
        denied_flows: 2,
        distinct_ports: 1,
        distinct_addresses: 1,
    };
    let plan = triggers::fire(&mesh.world, &other, &seen, "x", time(NOW)).unwrap();
    assert!(plan.mutations.is_empty(), "a node has no say about another's workload");
    make(&mut mesh, &Step::Fire(0, 1)).unwrap();
    let labels = |mesh: &Mesh| mesh.world.workloads().next().unwrap().labels.to_string();
    assert!(labels(&mesh).contains("suspect=yes"), "{}", labels(&mesh));
    // The node comes back and says what its owner declared: what the trigger gave stays.
    make(&mut mesh, &Step::Reconcile(0, vec![(1, "web")])).unwrap();
    assert!(labels(&mesh).contains("suspect=yes"));
    assert!(triggers::expire(&mesh.world, time(NOW + 9)).mutations.is_empty());
    let plan = triggers::expire(&mesh.world, time(NOW + 10));
    mesh.commit(Ok(plan)).unwrap();
    assert!(!labels(&mesh).contains("suspect"));
}

#[test]
fn identities_that_nobody_has_any_more_do_not_pile_up_and_no_number_comes_again() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.join("node-0", &any_token()).unwrap();
    let node: NodeName = "node-0".parse().unwrap();
    let mut numbers = std::collections::BTreeSet::new();
    for run in 0..3000 {
        let report = report(&mesh.world, &node, 1, &format!("run-{run}")).unwrap();
        mesh.start(&node, vec![report]).unwrap();
        let identity = mesh.world.workloads_on(&node).next().unwrap().identity;
        assert!(numbers.insert(identity), "{identity} came again");
        if run % 500 == 0 {
            // A restart knows the records alone.
            mesh.world = World::load(mesh.world.revision, mesh.records.clone()).unwrap();
        }
    }
    let kept = mesh.world.networks[&shop()].identities.len();
    assert!(kept < 1100, "{kept}");
}

#[test]
fn the_last_admin_stays() {
    let mut mesh = Mesh::default();
    let wanted = |name: &str, role| meshward_api_types::CreateCredential {
        name: name.into(),
        role,
        networks: vec![],
        lifetime_seconds: None,
    };
    let plan = credentials::create(&mesh.world, &wanted("a", Role::Admin), "s", NOW);
    mesh.commit(plan).unwrap();
    assert!(
        credentials::revoke(&mesh.world, "a").err().unwrap().to_string().contains("last admin")
    );
    let owner = credentials::create(&mesh.world, &wanted("b", Role::Owner), "t", NOW)
        .err()
        .unwrap()
        .to_string();
    assert!(owner.contains("at least one network"), "{owner}");
    let plan = credentials::create(&mesh.world, &wanted("b", Role::Admin), "t", NOW);
    mesh.commit(plan).unwrap();
    let plan = credentials::revoke(&mesh.world, "a");
    mesh.commit(plan).unwrap();
    assert!(credentials::revoke(&mesh.world, "b").is_err());
}

/// Returns the claims of a node whose session comes from 192.0.2.1, without others' sessions.
fn claims<'a>(
    reports: &'a [EndpointReport],
    logged_keys: &'a BTreeSet<PublicKey>,
) -> EndpointClaims<'a> {
    EndpointClaims {
        reports,
        session_address: "192.0.2.1".parse().unwrap(),
        session_address_of: &|_| None,
        logged_keys,
    }
}
