//! Services: their addresses, the nodes that they concern, the owners of names, and drains.

use super::*;
use crate::{plans::drains::DrainAuthor, records::WorkloadRecord};
use ipnet::IpNet;
use meshward_control_proto::view::ServiceSpec;
use meshward_types::{IdentityId, ServiceName, Serving, WorkloadName};

const SERVICES: &str = "network: shop
services:
  - { name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }] }
  - { name: db, for: { app: db }, ports: [{ port: 5432 }] }
rules: [{ name: a, from: { app: web }, to: { service: api } }]
";

fn node(number: u8) -> NodeName {
    format!("node-{number}").parse().unwrap()
}

/// A network with nodes that run a workload each, with these labels, under a policy.
fn mesh(apps: &[&str], policy: &str) -> Mesh {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16", "fd42::/48"]).unwrap();
    for (number, app) in (0u8..).zip(apps) {
        mesh.join(node(number).as_str(), &any_token()).unwrap();
        let reports = report(&mesh.world, &node(number), 1, app).into_iter().collect();
        mesh.start(&node(number), reports).unwrap();
    }
    let plan = apply(&mesh.world, policy);
    mesh.commit(plan).unwrap();
    mesh
}

fn services(mesh: &Mesh, number: u8) -> BTreeMap<ServiceName, ServiceSpec> {
    let held = &mesh.held[&node(number)];
    held.services(&shop()).map(|(name, spec)| (name.clone(), spec.clone())).collect()
}

fn names(mesh: &Mesh, number: u8) -> Vec<String> {
    services(mesh, number).keys().map(ToString::to_string).collect()
}

#[test]
fn a_service_concerns_its_clients_and_its_instances_alone() {
    let mut mesh = mesh(&["web", "api", "db", "cron"], SERVICES);
    let known: Vec<_> = (0..4).map(|number| names(&mesh, number)).collect();
    assert_eq!(known, [vec!["api"], vec!["api"], vec!["db"], vec![]]);
    let spec = &services(&mesh, 0)[&"api".parse().unwrap()];
    assert_eq!(spec.instances.to_string(), "app=api");
    assert_eq!(spec.addresses, services(&mesh, 1)[&"api".parse().unwrap()].addresses);
    let addresses: Vec<String> = spec.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.42.255.1", "fd42:0:0:ffff::1"]);
    let network = mesh.held[&node(0)].network(&shop()).unwrap().clone();
    let resolver: Vec<String> = network.resolver.iter().map(ToString::to_string).collect();
    assert_eq!(resolver, ["10.42.255.53", "fd42:0:0:ffff::53"]);
    assert!(network.service_blocks.iter().any(|block| block.contains(&network.resolver[0])));
    let plan = apply(&mesh.world, "network: shop\ndns: { zone: internal }");
    mesh.commit(plan).unwrap();
    assert_eq!((names(&mesh, 0), names(&mesh, 1)), (vec![], vec![]));
    assert_eq!(mesh.held[&node(0)].network(&shop()).unwrap().dns.zone.as_str(), "internal");
    assert!(!mesh.records.iter().any(|record| matches!(record, Record::Service(_))));
}

#[test]
fn a_service_keeps_its_addresses_while_it_exists() {
    let mut mesh = mesh(&["web", "api"], SERVICES);
    let before = services(&mesh, 0);
    let more = SERVICES.replace(
        "services:\n",
        "services:\n  - { name: aaa, for: { app: web }, ports: [{ port: 1 }] }\n",
    );
    let plan = apply(&mesh.world, &more);
    mesh.commit(plan).unwrap();
    let after = services(&mesh, 0);
    assert_eq!(after[&"api".parse().unwrap()], before[&"api".parse().unwrap()]);
    let new = after[&"aaa".parse().unwrap()].addresses[0].to_string();
    assert_eq!(new, "10.42.255.3", "two services come before");
    let wider = SERVICES.replace("to: 8080", "to: 9090");
    let plan = apply(&mesh.world, &wider);
    mesh.commit(plan).unwrap();
    assert_eq!(services(&mesh, 0)[&"api".parse().unwrap()].ports[0].target, 9090);
    assert_eq!(services(&mesh, 1), services(&mesh, 0), "every node has the change");
}

#[test]
fn a_network_that_is_full_says_so_and_a_dry_run_as_well() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/28"]).unwrap();
    let many = |count: usize| {
        let one =
            |at| format!("  - {{ name: s{at}, for: {{ app: a }}, ports: [{{ port: 1 }}] }}\n");
        format!("network: shop\nservices:\n{}", (0..count).map(one).collect::<String>())
    };
    // Blocks of 4 addresses, 2 of them usable: 1 for the resolver, 1 for a service.
    for name in ["node-0", "node-1", "node-2"] {
        mesh.join(name, &any_token()).unwrap();
    }
    let plan = apply(&mesh.world, &many(1));
    mesh.commit(plan).unwrap();
    let refused = apply(&mesh.world, &many(2)).err().unwrap().to_string();
    assert!(
        refused.contains("no addresses left for services: every /30 of 10.42.0.0/28"),
        "{refused}"
    );
    let plan = nodes::remove(&mesh.world, &node(2));
    mesh.commit(plan).unwrap();
    let plan = apply(&mesh.world, &many(3));
    mesh.commit(plan).unwrap();
    let blocks = &mesh.world.networks[&shop()].record.service_blocks;
    assert_eq!(blocks.len(), 2, "a further block was free: {blocks:?}");
    mesh.join("node-3", &any_token()).unwrap();
    assert!(mesh.world.nodes[&node(3)].problems.contains_key(&shop()), "no node has it now");
}

#[test]
fn a_network_of_an_earlier_release_gets_its_blocks_with_its_first_service() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.join("node-0", &any_token()).unwrap();
    let mut old = mesh.world.networks[&shop()].record.clone();
    (old.service_blocks, old.resolver) = (vec![], vec![]);
    let plan = Plan::new("earlier", vec![Mutation::Put(Record::Network(old))], ());
    mesh.commit(Ok(plan)).unwrap();
    let plan = networks::reserve_blocks(&mesh.world);
    assert_eq!(plan.mutations.len(), 1, "at the start of the coordinator");
    let plan = apply(&mesh.world, SERVICES);
    mesh.commit(plan).unwrap();
    let record = &mesh.world.networks[&shop()].record;
    assert_eq!(record.resolver[0].to_string(), "10.42.255.53");
    assert_eq!(networks::reserve_blocks(&mesh.world).mutations, vec![]);
}

fn named(world: &World, number: u8, id: u8, name: &str, app: &str) -> WorkloadReport {
    let report = report(world, &node(number), id, app).unwrap();
    WorkloadReport { name: name.parse().unwrap(), ..report }
}

fn owners(mesh: &Mesh) -> Vec<String> {
    let network = &mesh.world.networks[&shop()];
    let mut owners: Vec<String> = network
        .workloads
        .values()
        .filter(|record| record.owns_name)
        .map(|record| record.id.to_string())
        .collect();
    owners.sort();
    owners
}

#[test]
fn a_name_belongs_to_the_identity_that_took_it_first_and_passes_on() {
    let mut mesh = mesh(&[], "network: shop");
    for name in ["node-0", "node-1", "node-2"] {
        mesh.join(name, &any_token()).unwrap();
    }
    let start = |mesh: &mut Mesh, number: u8, app: &str| {
        let report = named(&mesh.world, number, 0, "db", app);
        mesh.start(&node(number), vec![report]).unwrap();
    };
    start(&mut mesh, 1, "web");
    start(&mut mesh, 0, "api");
    assert_eq!(owners(&mesh), ["node-1-0"], "another identity does not get the name");
    start(&mut mesh, 2, "web");
    assert_eq!(owners(&mesh), ["node-1-0", "node-2-0"], "another workload of the owner does");
    let name = |mesh: &Mesh, number: u8| {
        let id = format!("node-{number}-0").parse().unwrap();
        mesh.held[&node(number)].workload(&shop(), &id).unwrap().name.clone()
    };
    let db: WorkloadName = "db".parse().unwrap();
    assert_eq!((name(&mesh, 2), name(&mesh, 0)), (Some(db.clone()), None));
    let stop = |mesh: &mut Mesh, number: u8| {
        let stopped = Report::Stopped(format!("node-{number}-0").parse().unwrap());
        mesh.report(&[(node(number), vec![stopped])]).remove(0).unwrap();
    };
    stop(&mut mesh, 1);
    assert_eq!(owners(&mesh), ["node-2-0"]);
    // Its labels change: it keeps the name, which nobody else of its identity has.
    start(&mut mesh, 2, "cron");
    assert_eq!(owners(&mesh), ["node-2-0"]);
    stop(&mut mesh, 2);
    assert_eq!(owners(&mesh), ["node-0-0"], "the one that has waited has it now");
    assert_eq!(name(&mesh, 0), Some(db));
}

#[test]
fn a_removed_node_passes_its_names_on_to_others_alone() {
    let mut mesh = mesh(&["web", "api"], "network: shop");
    let more = named(&mesh.world, 0, 2, "w", "api");
    mesh.start(&node(0), vec![more]).unwrap();
    assert_eq!(owners(&mesh), ["node-0-1"]);
    let plan = nodes::remove(&mesh.world, &node(0));
    mesh.commit(plan).unwrap();
    assert_eq!(owners(&mesh), ["node-1-1"]);
    assert!(mesh.records.iter().all(|record| !format!("{record:?}").contains("node-0-")));
}

fn service_name(name: &str) -> ServiceName {
    name.parse().unwrap()
}

/// Returns the state of an instance of the service `api`, as a node has it.
fn serving(mesh: &Mesh, holder: u8, id: &str) -> Serving {
    serving_for(mesh, holder, id, "api")
}

fn serving_for(mesh: &Mesh, holder: u8, id: &str, service: &str) -> Serving {
    let spec = mesh.held[&node(holder)].workload(&shop(), &id.parse().unwrap()).unwrap();
    spec.states.serving(&service_name(service))
}

pub(super) fn author() -> DrainAuthor<'static> {
    DrainAuthor { by: "user:test", networks: &[], why: None, now: time(NOW) }
}

/// Two services with different checks of the same instances, and one without a check.
const CHECKED: &str = "network: shop
services:
  - { name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }], health: { tcp: 8080 } }
  - { name: admin, for: { app: api }, ports: [{ port: 81 }], health: { http: /admin } }
  - { name: plain, for: { app: api }, ports: [{ port: 82 }] }
  - { name: db, for: { app: db }, ports: [{ port: 5432 }], health: { tcp: 5432 } }
rules: [{ name: a, from: { app: web }, to: { service: api } }]
";

#[test]
fn the_health_of_an_instance_reaches_its_clients_and_cuts_nothing() {
    let mut mesh = mesh(&["web", "api"], CHECKED);
    assert_eq!(serving(&mesh, 0, "node-1-1"), Serving::Ready);
    let id: meshward_types::WorkloadId = "node-1-1".parse().unwrap();
    let reports = [Report::Health(id.clone(), service_name("api"), Health::Unhealthy)];
    let plan = workloads::plan_reports(&mesh.world, &[(&node(0), &reports)]);
    assert_eq!(plan.mutations, vec![], "a node has no say about another's workload");
    let plan = workloads::plan_reports(&mesh.world, &[(&node(1), &reports)]);
    let action = "found w (node-1-1) unhealthy for api";
    assert_eq!((plan.mutations.len(), plan.action.as_str()), (1, action));
    let deltas = mesh.world.apply(mesh.world.revision.next(), &plan.mutations, &plan.policies);
    assert_eq!(deltas.all.len(), 1);
    assert!(deltas.all[0].urgent && deltas.all[0].changes.len() == 1, "{:?}", deltas.all);
    mesh.deliver(&deltas);
    assert_eq!(serving(&mesh, 0, "node-1-1"), Serving::Unhealthy);
    assert_eq!(serving_for(&mesh, 0, "node-1-1", "admin"), Serving::Ready);
    let whole = report(&mesh.world, &node(1), 1, "api").unwrap();
    mesh.start(&node(1), vec![whole]).unwrap();
    assert_eq!(serving(&mesh, 0, "node-1-1"), Serving::Ready, "a report says that it is healthy");
}

#[test]
fn each_service_has_a_finding_of_its_own_and_only_services_that_check_an_instance() {
    let mut mesh = mesh(&["web", "api"], CHECKED);
    let id: meshward_types::WorkloadId = "node-1-1".parse().unwrap();
    let find = |mesh: &mut Mesh, service: &str, health| {
        let report = Report::Health(id.clone(), service_name(service), health);
        mesh.report(&[(node(1), vec![report])]).remove(0).unwrap();
    };
    let ill = |mesh: &Mesh| -> Vec<String> {
        let states = &mesh.held[&node(0)].workload(&shop(), &id).unwrap().states;
        states.unhealthy.iter().map(ToString::to_string).collect()
    };
    for service in ["api", "admin", "plain", "db", "none"] {
        find(&mut mesh, service, Health::Unhealthy);
    }
    assert_eq!(ill(&mesh), ["admin", "api"], "the others do not check it");
    find(&mut mesh, "api", Health::Healthy);
    assert_eq!(ill(&mesh), ["admin"]);
    // A report of the workload has all of its findings.
    let whole = WorkloadReport {
        unhealthy: ["api", "plain", "none"].map(service_name).to_vec(),
        ..report(&mesh.world, &node(1), 1, "api").unwrap()
    };
    mesh.start(&node(1), vec![whole]).unwrap();
    assert_eq!(ill(&mesh), ["api"]);
    // The policy leaves the check out, and the node says later that the finding is gone.
    let plan = apply(&mesh.world, SERVICES);
    mesh.commit(plan).unwrap();
    find(&mut mesh, "api", Health::Healthy);
    assert_eq!(ill(&mesh), Vec::<String>::new());
}

#[test]
fn a_drain_takes_instances_out_of_the_choice_until_it_is_ended() {
    let mut mesh = mesh(&["web", "api"], SERVICES);
    let (one, all) =
        (DrainTarget::Workload("node-1-1".parse().unwrap()), DrainTarget::Node(node(1)));
    let plan = drains::drain(&mesh.world, &one, &author());
    mesh.commit(plan).unwrap();
    assert_eq!(serving(&mesh, 0, "node-1-1"), Serving::Draining);
    assert!(drains::drain(&mesh.world, &one, &author()).unwrap().mutations.is_empty());
    let plan = drains::drain(&mesh.world, &all, &author());
    mesh.commit(plan).unwrap();
    let plan = drains::undrain(&mesh.world, &one, &[]);
    mesh.commit(plan).unwrap();
    assert_eq!(serving(&mesh, 0, "node-1-1"), Serving::Draining, "its node is drained");
    let refused = drains::undrain(&mesh.world, &one, &[]).err().unwrap().to_string();
    assert!(refused.contains("meshctl undrain --node node-1"), "{refused}");
    let more = named(&mesh.world, 1, 0, "x", "api");
    mesh.start(&node(1), vec![more]).unwrap();
    let id = "node-1-0".parse().unwrap();
    assert!(mesh.held[&node(0)].workload(&shop(), &id).is_none(), "what starts there is drained");
    let again = World::load(mesh.world.revision, mesh.records.clone()).unwrap();
    check_restart(&mesh, again).unwrap();
    let plan = drains::undrain(&mesh.world, &all, &[]);
    mesh.commit(plan).unwrap();
    assert_eq!(serving(&mesh, 0, "node-1-1"), Serving::Ready);
    for wrong in [DrainTarget::Node(node(7)), DrainTarget::Workload("w-none".parse().unwrap())] {
        let refused = drains::drain(&mesh.world, &wrong, &author()).err().unwrap().to_string();
        assert!(refused.contains("there is no"), "{refused}");
    }
    let lab: NetworkName = "lab".parse().unwrap();
    let other = DrainAuthor { networks: std::slice::from_ref(&lab), ..author() };
    assert!(drains::drain(&mesh.world, &one, &other).is_err(), "it is of another network");
}

#[test]
fn a_drain_goes_with_its_workload_and_its_node() {
    let mut mesh = mesh(&["web", "api"], SERVICES);
    for target in [DrainTarget::Workload("node-1-1".parse().unwrap()), DrainTarget::Node(node(1))] {
        let plan = drains::drain(&mesh.world, &target, &author());
        mesh.commit(plan).unwrap();
    }
    let stopped = Report::Stopped("node-1-1".parse().unwrap());
    mesh.report(&[(node(1), vec![stopped])]).remove(0).unwrap();
    assert_eq!(mesh.world.drains.all().count(), 1);
    let plan = nodes::remove(&mesh.world, &node(1));
    mesh.commit(plan).unwrap();
    assert_eq!(mesh.world.drains.all().count(), 0);
}

/// A node is told of a service only if it runs an instance, or one of its identities has a link to
/// one.
pub(super) fn check_service(
    world: &World,
    own: &[IdentityId],
    spec: &ServiceSpec,
) -> Result<(), TestCaseError> {
    let network = &world.networks[&shop()];
    let instances = network.links.select(&spec.instances);
    let concerns = instances.iter().any(|instance| {
        own.iter().any(|own| own == instance || network.links.acl(*own, *instance).is_some())
    });
    prop_assert!(concerns, "{:?} is no concern of {:?}", spec, own);
    Ok(())
}

/// Every address has one owner: a workload, a service, or the resolver; nodes' blocks and those of
/// services are apart.
pub(super) fn check_addresses(world: &World) -> Result<(), TestCaseError> {
    for network in world.networks.values() {
        let record = &network.record;
        let services = network.services.records().flat_map(|own| &own.addresses);
        let mut seen = BTreeSet::new();
        for address in services.chain(&record.resolver) {
            prop_assert!(seen.insert(*address), "{} has two owners", address);
            prop_assert!(record.service_blocks.iter().any(|block| block.contains(address)));
            prop_assert!(!network.by_address.contains_key(address));
        }
        let nodes = world.nodes.values().filter_map(|node| node.blocks.get(&record.name));
        let nodes: Vec<IpNet> = nodes.flatten().copied().collect();
        for block in &record.service_blocks {
            prop_assert!(!nodes.iter().any(|own| own.contains(block) || block.contains(own)));
        }
        for service in &network.links.policy().services {
            prop_assert!(network.services.record(&service.name).is_some());
        }
        prop_assert_eq!(network.services.records().count(), network.links.policy().services.len());
    }
    Ok(())
}

/// A name that workloads have belongs to one of their identities, and to all workloads of that.
pub(super) fn check_names(world: &World) -> Result<(), TestCaseError> {
    for network in world.networks.values() {
        let mut by_name: BTreeMap<&WorkloadName, Vec<&WorkloadRecord>> = BTreeMap::new();
        for record in network.workloads.values() {
            by_name.entry(&record.name).or_default().push(record);
        }
        for (name, records) in by_name {
            let owners: BTreeSet<IdentityId> = records
                .iter()
                .filter(|record| record.owns_name)
                .map(|record| record.identity)
                .collect();
            prop_assert_eq!(owners.len(), 1, "{} belongs to {:?}", name, owners);
            let all = records.iter().filter(|record| owners.contains(&record.identity));
            prop_assert!(all.clone().all(|record| record.owns_name), "{}", name);
            let known = network.names.owner(name).unwrap();
            prop_assert_eq!(
                (known.identity, known.workloads),
                (*owners.first().unwrap(), all.count())
            );
        }
    }
    Ok(())
}
