//! Random histories: whatever happens, the world equals the one read back from its records, every node whose view
//! changed is woken, and nobody is told of a link that is not its own.

use super::{networks, nodes, policies, quarantines, tokens, workloads};
use crate::{
    mesh::{Plan, Refusal},
    records::{Mutation, Record, RecordKey},
    world::{Touched, World},
};
use meshward_model::{
    Item, ItemKey, NetworkName, NodeName, PublicKey, Revision, View,
    api::{CreateNetwork, CreateToken, QuarantineTarget},
    control::{EndpointReport, JoinRequest, WorkloadReport},
    token::Fingerprint,
};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

const NOW: i64 = 1_000_000;

/// A world and the records that a store would hold.
#[derive(Default)]
struct Mesh {
    world: World,
    records: Vec<Record>,
}

impl Mesh {
    fn commit<T>(&mut self, plan: Result<Plan<T>, Refusal>) -> Result<(T, Touched), Refusal> {
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
        Ok((plan.outcome, self.world.apply(revision, &plan.mutations)))
    }

    fn views(&self) -> BTreeMap<NodeName, View> {
        self.world.nodes.keys().map(|node| (node.clone(), self.world.view_of(node))).collect()
    }

    fn join(&mut self, name: &str, token: &CreateToken) -> Result<Touched, Refusal> {
        let (token, record) = tokens::make(Fingerprint([0; 32]), token, NOW)?;
        let plan = tokens::create(&self.world, &record);
        self.commit(plan)?;
        let plan = nodes::join(&self.world, &request(name, &token.secret()), &format!("key-{name}"), NOW);
        self.commit(plan).map(|(_, touched)| touched)
    }

    fn network(&mut self, name: &str, prefixes: &[&str]) -> Result<Touched, Refusal> {
        let plan = networks::create(&self.world, &wanted(name, prefixes));
        self.commit(plan).map(|(_, touched)| touched)
    }
}

fn request(name: &str, secret: &str) -> JoinRequest {
    JoinRequest {
        secret: secret.into(),
        name: name.parse().unwrap(),
        labels: Default::default(),
        csr: vec![],
    }
}

fn wanted(name: &str, prefixes: &[&str]) -> CreateNetwork {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    CreateNetwork { name: name.parse().unwrap(), prefixes, block_v4: None, block_v6: None, mtu: 1420 }
}

fn any_token() -> CreateToken {
    CreateToken { uses: 1, ttl_seconds: 60, site: Some("rack".into()), networks: vec![] }
}

fn shop() -> NetworkName {
    "shop".parse().unwrap()
}

fn report(world: &World, node: &NodeName, id: u8, app: &str) -> Option<WorkloadReport> {
    let block = world.nodes.get(node)?.blocks.get(&shop())?.first()?;
    let IpAddr::V4(base) = block.addr() else { return None };
    let address = Ipv4Addr::from(u32::from(base) + 1 + u32::from(id));
    Some(WorkloadReport {
        id: format!("{node}-{id}").parse().unwrap(),
        network: shop(),
        name: "w".parse().unwrap(),
        labels: format!("app={app}").parse().unwrap(),
        addresses: vec![address.into()],
    })
}

#[derive(Debug, Clone)]
enum Step {
    Join(u8),
    Remove(u8),
    Start(u8, u8, &'static str),
    Stop(u8, u8),
    Reconcile(u8, Vec<(u8, &'static str)>),
    Move(u8, u16),
    Policy(usize),
    Quarantine(&'static str, bool),
    Isolate(u8, u8),
}

const POLICIES: [&str; 3] = [
    "network: shop",
    "network: shop\nrules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]",
    "network: shop\nrules: [{ name: a, from: { app: { in: [web, api] } }, to: {}, allow: [any] }]",
];

fn step() -> impl Strategy<Value = Step> {
    let app = || prop_oneof![Just("web"), Just("api"), Just("db")];
    prop_oneof![
        (0..4u8).prop_map(Step::Join),
        (0..4u8).prop_map(Step::Remove),
        (0..4u8, 0..3u8, app()).prop_map(|(node, id, app)| Step::Start(node, id, app)),
        (0..4u8, 0..3u8, app()).prop_map(|(node, id, app)| Step::Start(node, id, app)),
        (0..4u8, 0..3u8).prop_map(|(node, id)| Step::Stop(node, id)),
        (0..4u8, prop::collection::vec((0..3u8, app()), 0..3)).prop_map(|(n, list)| Step::Reconcile(n, list)),
        (0..4u8, 1..4u16).prop_map(|(node, port)| Step::Move(node, port)),
        (0..POLICIES.len()).prop_map(Step::Policy),
        (app(), any::<bool>()).prop_map(|(app, on)| Step::Quarantine(app, on)),
        (0..4u8, 0..3u8).prop_map(|(node, id)| Step::Isolate(node, id)),
    ]
}

fn take(mesh: &mut Mesh, step: &Step) -> Result<Touched, Refusal> {
    let name = |node: &u8| -> NodeName { format!("node-{node}").parse().unwrap() };
    let touched = |done: Result<((), Touched), Refusal>| done.map(|(_, touched)| touched);
    match step {
        Step::Join(node) => mesh.join(name(node).as_str(), &any_token()),
        Step::Remove(node) => {
            let plan = nodes::remove(&mesh.world, &name(node));
            touched(mesh.commit(plan))
        }
        Step::Start(node, id, app) => {
            let reports: Vec<_> = report(&mesh.world, &name(node), *id, app).into_iter().collect();
            let plan = workloads::start(&mesh.world, &name(node), &reports);
            mesh.commit(plan).map(|(_, touched)| touched)
        }
        Step::Stop(node, id) => {
            let id = format!("{}-{id}", name(node)).parse().unwrap();
            let plan = workloads::stop(&mesh.world, &name(node), &[id]);
            touched(mesh.commit(plan))
        }
        Step::Reconcile(node, list) => {
            let reports: Vec<_> =
                list.iter().filter_map(|(id, app)| report(&mesh.world, &name(node), *id, app)).collect();
            let plan = workloads::reconcile(&mesh.world, &name(node), &reports);
            mesh.commit(plan).map(|(_, touched)| touched)
        }
        Step::Move(node, port) => {
            let public_key = PublicKey([*node; 32]);
            let moved = EndpointReport {
                network: shop(),
                public_key,
                port: *port,
                advertised: vec![],
                interfaces: vec![],
            };
            let plan = nodes::set_endpoints(&mesh.world, &name(node), &[moved], "192.0.2.1".parse().unwrap());
            touched(mesh.commit(plan))
        }
        Step::Policy(at) => {
            let plan = policies::apply(&mesh.world, POLICIES[*at]);
            mesh.commit(plan).map(|(_, touched)| touched)
        }
        Step::Quarantine(app, on) => {
            let selector = Some(format!("app={app}").parse().unwrap());
            let target = QuarantineTarget { network: None, selector, workload: None };
            let plan = if *on {
                quarantines::impose(&mesh.world, app, &target, "now")
            } else {
                quarantines::release(&mesh.world, &target)
            };
            mesh.commit(plan).map(|(_, touched)| touched)
        }
        Step::Isolate(node, id) => {
            let workload = format!("{}-{id}", name(node));
            let target =
                QuarantineTarget { network: None, selector: None, workload: Some(workload.parse().unwrap()) };
            let plan = quarantines::impose(&mesh.world, &workload, &target, "now");
            mesh.commit(plan).map(|(_, touched)| touched)
        }
    }
}

/// A node is told of identities, workloads and peers only where one of its own workloads has a link with them.
fn check_need_to_know(world: &World, node: &NodeName, view: &View) -> Result<(), TestCaseError> {
    let own: Vec<_> = world.networks[&shop()].workloads_on(node).map(|workload| workload.identity).collect();
    for (key, item) in &view.items {
        let linked = |identity| {
            own.contains(identity)
                || view.items.keys().any(|key| {
                    matches!(key, ItemKey::Link(_, a, b) if (a == identity && own.contains(b)) || (b == identity && own.contains(a)))
                })
        };
        match (key, item) {
            (ItemKey::Link(_, from, to), _) => prop_assert!(own.contains(from) || own.contains(to)),
            (ItemKey::Identity(_, identity), _) => prop_assert!(linked(identity)),
            (_, Item::Workload(spec)) => prop_assert!(spec.node == *node || linked(&spec.identity)),
            (ItemKey::Peer(_, peer), _) => {
                let mut theirs = world.networks[&shop()].workloads_on(peer);
                prop_assert!(peer != node && theirs.any(|workload| linked(&workload.identity)));
            }
            _ => {}
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_history_keeps_the_world_true(steps in prop::collection::vec(step(), 1..40)) {
        let mut mesh = Mesh::default();
        mesh.network("shop", &["10.42.0.0/24"]).unwrap();
        for step in &steps {
            let before = mesh.views();
            let Ok(touched) = take(&mut mesh, step) else { continue };
            let after = mesh.views();
            for (node, view) in &after {
                let same = before.get(node).is_some_and(|before| before.items == view.items);
                prop_assert!(same || touched.contains(node), "{node} was not woken by {step:?}");
                check_need_to_know(&mesh.world, node, view)?;
            }
            let again = World::load(mesh.world.revision, mesh.records.clone()).unwrap();
            for (node, view) in &after {
                prop_assert_eq!(&again.view_of(node), view);
            }
        }
    }
}

#[test]
fn a_token_admits_as_many_nodes_as_it_says_and_no_longer_than_it_says() {
    let mut mesh = Mesh::default();
    let (token, record) = tokens::make(Fingerprint([0; 32]), &any_token(), NOW).unwrap();
    let plan = tokens::create(&mesh.world, &record);
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
    assert!(join(&mesh, "a", &token.secret(), "k", NOW).unwrap().mutations.is_empty(), "asked again");
    let plan = tokens::revoke(&mesh.world, &record.id);
    mesh.commit(plan).unwrap();
    assert!(said(join(&mesh, "a", &token.secret(), "k", NOW)).contains("unknown"));
}

#[test]
fn a_name_is_taken_only_once() {
    let mut mesh = Mesh::default();
    mesh.join("a", &any_token()).unwrap();
    let (token, record) = tokens::make(Fingerprint([0; 32]), &any_token(), NOW).unwrap();
    let plan = tokens::create(&mesh.world, &record);
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
    let plan = workloads::start(&mesh.world, &a, std::slice::from_ref(&good));
    assert!(mesh.commit(plan).unwrap().0.is_empty());
    let refusal = |node: &NodeName, change: &dyn Fn(&mut WorkloadReport)| {
        let mut report = report(&mesh.world, node, 2, "web").unwrap();
        change(&mut report);
        let plan = workloads::start(&mesh.world, node, &[report]).unwrap();
        plan.outcome.first().map(|(_, reason)| reason.clone()).unwrap_or_default()
    };
    assert_eq!(refusal(&a, &|_| {}), "");
    assert!(refusal(&b, &|r| r.addresses = good.addresses.clone()).contains("not in a block"));
    assert!(refusal(&b, &|r| r.id = good.id.clone()).contains("another node"));
    assert!(refusal(&a, &|r| r.addresses = good.addresses.clone()).contains("belongs to workload"));
    assert!(refusal(&a, &|r| r.network = "lab".parse().unwrap()).contains("may not serve"));
    assert!(refusal(&a, &|r| r.labels = "meshward/site=aws".parse().unwrap()).contains("cannot be set"));
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
    let refused = policies::apply(&mesh.world, &source).err().unwrap().to_string();
    assert!(refused.contains("policy test 1 failed") && refused.contains("rule `a`"), "{refused}");
    let unknown = policies::apply(&mesh.world, "network: lab").err().unwrap().to_string();
    assert!(unknown.contains("no network `lab`"), "{unknown}");
}

#[test]
fn a_deleted_network_leaves_nothing_behind() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.join("a", &any_token()).unwrap();
    let a: NodeName = "a".parse().unwrap();
    let started = report(&mesh.world, &a, 1, "web").unwrap();
    let plan = workloads::start(&mesh.world, &a, std::slice::from_ref(&started));
    mesh.commit(plan).unwrap();
    assert!(networks::delete(&mesh.world, &shop()).err().unwrap().to_string().contains("1 workloads"));
    let plan = workloads::stop(&mesh.world, &a, &[started.id]);
    mesh.commit(plan).unwrap();
    let plan = networks::delete(&mesh.world, &shop());
    mesh.commit(plan).unwrap();
    let left = |record: &&Record| !matches!(record.key(), RecordKey::Node(_) | RecordKey::Token(_));
    assert_eq!(mesh.records.iter().find(left), None);
    assert!(mesh.world.view_of(&a).items.is_empty());
    assert_eq!(mesh.world.revision, Revision(6));
}
