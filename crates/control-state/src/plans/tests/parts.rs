//! Objects that are managed one by one: nodes by name, credentials, and policy by its files.

use super::*;
use crate::plans::routes;
use meshward_api_types::{
    ApproveEgress, ApproveNode, ApproveRoute, ChangeCredential, CreateCredential, PolicyScope,
    Role, RouteState,
};

#[test]
fn a_node_that_needs_approval_serves_nothing_before_it() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    let token = CreateToken { needs_approval: true, ..any_token() };
    let name: NodeName = "n1".parse().unwrap();

    mesh.join("n1", &token).unwrap();
    mesh.network("lab", &["10.43.0.0/16"]).unwrap();
    let waiting = &mesh.world.nodes[&name];
    assert!(waiting.waiting && waiting.blocks.is_empty(), "{waiting:?}");

    let wanted = ApproveNode { labels: "rack=r7".parse().unwrap() };
    mesh.commit(nodes::approve(&mesh.world, &name, &wanted)).unwrap();
    let node = &mesh.world.nodes[&name];
    assert_eq!((node.waiting, node.blocks.len()), (false, 2));
    assert_eq!(nodes::labels(&mesh.world, node).to_string(), "rack=r7");
    let again = nodes::approve(&mesh.world, &name, &wanted).unwrap();
    assert!(again.mutations.is_empty(), "an approval that stands was written again");

    let reserved = ApproveNode { labels: "meshward/site=x".parse().unwrap() };
    assert!(matches!(
        nodes::approve(&mesh.world, &name, &reserved),
        Err(Refusal::About { field: "labels", .. })
    ));

    mesh.commit(nodes::remove(&mesh.world, &name)).unwrap();
    assert!(mesh.world.approved_nodes.is_empty() && mesh.world.nodes.is_empty());
}

#[test]
fn a_node_and_its_routes_can_be_approved_before_it_joins() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    let name: NodeName = "n1".parse().unwrap();
    let route = ApproveRoute {
        network: Some(shop()),
        prefix: "10.8.0.0/24".parse().unwrap(),
        node: name.clone(),
    };
    assert!(matches!(
        routes::approve(&mesh.world, &route, &[]),
        Err(Refusal::About { field: "node", .. })
    ));

    mesh.commit(nodes::approve(
        &mesh.world,
        &name,
        &ApproveNode { labels: meshward_types::Labels::default() },
    ))
    .unwrap();
    let approved = mesh.commit(routes::approve(&mesh.world, &route, &[])).unwrap();
    assert_eq!(approved.state, RouteState::NotAdvertised);
    mesh.join("n1", &CreateToken { needs_approval: true, ..any_token() }).unwrap();
    assert!(!mesh.world.nodes[&name].waiting);

    mesh.commit(nodes::remove(&mesh.world, &name)).unwrap();
    assert!(mesh.world.approvals.is_empty());
    assert!(matches!(nodes::remove(&mesh.world, &name), Err(Refusal::Missing(_))));
}

#[test]
fn an_egress_gateway_is_approved_for_both_families_in_one_change() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16", "fd42::/48"]).unwrap();
    let name: NodeName = "n1".parse().unwrap();
    mesh.join("n1", &any_token()).unwrap();
    let wanted = ApproveEgress { network: None, node: name.clone() };
    let early = routes::approve_egress(&mesh.world, &wanted, &[]);
    assert!(matches!(early, Err(Refusal::Missing(_))), "{early:?}");
    let mut gateway = report(&mesh.world, &name, 1, "out").unwrap();
    gateway.prefixes = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    mesh.start(&name, vec![gateway.clone()]).unwrap();
    let is_admitted = |mesh: &Mesh| {
        matches!(mesh.world.workload(&gateway.id), Some(crate::records::WorkloadRef::Admitted(_)))
    };
    assert!(!is_admitted(&mesh));

    // One of the two does not do, however it came about.
    let half = ApproveRoute { network: None, node: name.clone(), prefix: "::/0".parse().unwrap() };
    mesh.commit(routes::approve(&mesh.world, &half, &[])).unwrap();
    assert!(!is_admitted(&mesh));

    let plan = routes::approve_egress(&mesh.world, &wanted, &[]).unwrap();
    assert_eq!(plan.action, "approved 0.0.0.0/0, ::/0 behind node n1 in network shop");
    let approved = mesh.commit(Ok(plan)).unwrap();
    let states: Vec<RouteState> = approved.iter().map(|route| route.state).collect();
    assert_eq!(states, [RouteState::Open, RouteState::Open]);
    assert!(is_admitted(&mesh));
    let again = routes::approve_egress(&mesh.world, &wanted, &[]).unwrap();
    assert!(again.mutations.is_empty() && again.action.is_empty(), "nothing is left to do");

    // What was approved alone is withdrawn with the rest.
    let withdrawn = mesh.commit(routes::disapprove_egress(&mesh.world, &wanted, &[])).unwrap();
    assert!(withdrawn.iter().all(|route| route.state == RouteState::Waiting), "{withdrawn:?}");
    assert!(!is_admitted(&mesh) && mesh.world.approvals.is_empty());
    let again = routes::disapprove_egress(&mesh.world, &wanted, &[]);
    assert!(matches!(again, Err(Refusal::Missing(_))), "{again:?}");

    // Half of an approval is withdrawn as well.
    mesh.commit(routes::approve(&mesh.world, &half, &[])).unwrap();
    let withdrawn = mesh.commit(routes::disapprove_egress(&mesh.world, &wanted, &[])).unwrap();
    assert_eq!(withdrawn.len(), 1);

    let other = ApproveEgress { network: None, node: "n2".parse().unwrap() };
    let missing = routes::approve_egress(&mesh.world, &other, &[]);
    assert!(matches!(missing, Err(Refusal::About { field: "node", .. })), "{missing:?}");
    let elsewhere = routes::approve_egress(&mesh.world, &wanted, &["lab".parse().unwrap()]);
    assert!(elsewhere.is_err(), "{elsewhere:?}");
}

#[test]
fn a_token_that_expired_long_ago_is_forgotten_with_the_next_one() {
    let mut mesh = Mesh::default();
    let mut make = |now: i64| {
        let (_, record) =
            tokens::make(Fingerprint([0; 32]), &any_token(), token_seed(), now).unwrap();
        mesh.commit(tokens::create(&mesh.world, &record, now)).unwrap();
        mesh.world.tokens.len()
    };
    assert_eq!([make(NOW), make(NOW + 3600), make(NOW + 60 + 86_400)], [1, 2, 2]);
}

#[test]
fn what_a_credential_may_do_is_changed_without_another_token() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    let wanted = |name: &str, role| CreateCredential {
        name: name.into(),
        role,
        networks: vec![],
        lifetime_seconds: None,
    };
    for (name, role) in [("root", Role::Admin), ("ci", Role::Viewer)] {
        mesh.commit(credentials::create(&mesh.world, &wanted(name, role), name, NOW)).unwrap();
    }
    let change = |role, networks: Vec<NetworkName>| ChangeCredential {
        role: Some(role),
        all_networks: networks.is_empty(),
        networks,
        lifetime_seconds: None,
        no_expiry: false,
    };

    let hash = mesh.world.credentials["ci"].secret_hash.clone();
    mesh.commit(credentials::change(&mesh.world, "ci", &change(Role::Owner, vec![shop()]), NOW))
        .unwrap();
    let changed = &mesh.world.credentials["ci"];
    assert_eq!((changed.role, &changed.secret_hash), (Role::Owner, &hash));

    let field = |name, change| match credentials::change(&mesh.world, name, &change, NOW) {
        Err(Refusal::About { field, .. }) => field,
        Err(_) => "another refusal",
        Ok(_) => "nothing",
    };
    assert_eq!(field("root", change(Role::Viewer, vec![])), "role");
    assert_eq!(field("ci", change(Role::Owner, vec![])), "networks");
    assert_eq!(field("ci", change(Role::Viewer, vec!["nowhere".parse().unwrap()])), "networks");
}

#[test]
fn an_ephemeral_node_is_forgotten_when_its_time_is_over_and_no_later_than_its_token_says() {
    let mut mesh = Mesh::default();
    for (name, by_token, own, is) in [
        ("stays", None, None, None),
        ("token", Some(60), None, Some(60)),
        ("own", None, Some(30), Some(30)),
        ("sooner", Some(60), Some(20), Some(20)),
        ("later", Some(60), Some(3600), Some(60)),
    ] {
        let wanted = CreateToken { forget_after_seconds: by_token, ..any_token() };
        let (token, record) =
            tokens::make(Fingerprint([0; 32]), &wanted, token_seed(), NOW).unwrap();
        mesh.commit(tokens::create(&mesh.world, &record, NOW)).unwrap();
        let request = JoinRequest { forget_after: own, ..request(name, &token.secret()) };
        mesh.commit(nodes::join(&mesh.world, &request, &format!("key-{name}"), NOW)).unwrap();
        assert_eq!(mesh.world.nodes[&request.name].forget_after, is, "{name}");
    }
    let unseen = |name: &NodeName| if name.as_str() == "own" { 29 } else { 60 };
    let plan = nodes::forget(&mesh.world, unseen);
    mesh.commit(Ok(plan)).unwrap();
    let left: Vec<&str> = mesh.world.nodes.keys().map(NodeName::as_str).collect();
    assert_eq!(left, ["own", "stays"]);
    assert!(nodes::forget(&mesh.world, |_| 0).mutations.is_empty());
    for seconds in [9, 31_536_001] {
        let wanted = CreateToken { forget_after_seconds: Some(seconds), ..any_token() };
        assert!(
            tokens::make(Fingerprint([0; 32]), &wanted, token_seed(), NOW).is_err(),
            "{seconds}"
        );
    }
}

#[test]
fn a_credential_with_a_lifetime_ends_and_its_name_is_free_again() {
    let mut mesh = Mesh::default();
    let wanted = |name: &str, role, lifetime_seconds| CreateCredential {
        name: name.into(),
        role,
        networks: vec![],
        lifetime_seconds,
    };
    let create = |mesh: &mut Mesh, name: &str, role, lifetime, secret: &str, now| {
        let plan = credentials::create(&mesh.world, &wanted(name, role, lifetime), secret, now);
        mesh.commit(plan).map_err(|refusal| refusal.to_string())
    };
    create(&mut mesh, "root", Role::Admin, None, "s", NOW).unwrap();
    create(&mut mesh, "ci", Role::Admin, Some(60), "t", NOW).unwrap();
    assert!(!mesh.world.credentials["ci"].is_expired(NOW + 59));
    assert!(mesh.world.credentials["ci"].is_expired(NOW + 60));
    // An admin whose time will be over does not keep the mesh managed.
    let error = credentials::revoke(&mesh.world, "root").err().unwrap().to_string();
    assert!(error.contains("last admin"), "{error}");
    let hour = ChangeCredential {
        role: None,
        networks: vec![],
        all_networks: false,
        lifetime_seconds: Some(3600),
        no_expiry: false,
    };
    let error = credentials::change(&mesh.world, "root", &hour, NOW).err().unwrap().to_string();
    assert!(error.contains("last admin"), "{error}");
    mesh.commit(credentials::change(&mesh.world, "ci", &hour, NOW)).unwrap();
    assert_eq!(mesh.world.credentials["ci"].expires, Some(NOW + 3600));
    let both = ChangeCredential { no_expiry: true, ..hour.clone() };
    assert!(credentials::change(&mesh.world, "ci", &both, NOW).is_err());
    let no_more = ChangeCredential { lifetime_seconds: None, ..both };
    mesh.commit(credentials::change(&mesh.world, "ci", &no_more, NOW)).unwrap();
    assert_eq!(mesh.world.credentials["ci"].expires, None);
    mesh.commit(credentials::change(&mesh.world, "ci", &hour, NOW)).unwrap();
    let error = create(&mut mesh, "ci", Role::Viewer, None, "u", NOW + 3599).err().unwrap();
    assert!(error.contains("already"), "{error}");
    create(&mut mesh, "ci", Role::Viewer, Some(5), "u", NOW + 3600).unwrap();
    assert_eq!(mesh.world.credentials["ci"].role, Role::Viewer);
    // What expired long ago is forgotten with the next one.
    create(&mut mesh, "other", Role::Viewer, None, "v", NOW + 40 * 86_400).unwrap();
    assert_eq!(mesh.world.credentials.keys().collect::<Vec<_>>(), ["other", "root"]);
    for seconds in [0, u64::MAX] {
        let refused = create(&mut mesh, "x", Role::Viewer, Some(seconds), "w", NOW).err().unwrap();
        assert!(refused.contains("3650 days"), "{refused}");
    }
}

#[test]
fn a_part_of_a_policy_is_replaced_and_the_rest_stays() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.network("lab", &["10.43.0.0/16"]).unwrap();
    let rule = |name: &str| {
        format!(
            "network: shop\nrules: [{{ name: {name}, from: {{}}, to: {{}}, allow: [tcp/80] }}]\n"
        )
    };
    let names = |mesh: &Mesh| {
        let network = &mesh.world.networks[&shop()];
        let rules =
            network.links.policy().rules.iter().map(|rule| rule.name.clone()).collect::<Vec<_>>();
        (
            network.policy_files.iter().map(|file| file.name.clone()).collect::<Vec<_>>().join(" "),
            rules.join(" "),
        )
    };

    submit(&mut mesh, &[("a.yaml", &rule("a"))], &["a.yaml"], &[]).unwrap();
    submit(&mut mesh, &[("b.yaml", &rule("b"))], &[], &["a.yaml"]).unwrap();
    assert_eq!(names(&mesh), ("a.yaml b.yaml".into(), "a b".into()));
    submit(&mut mesh, &[("c.yaml", &rule("c"))], &[], &["a.yaml"]).unwrap();
    assert_eq!(names(&mesh), ("a.yaml c.yaml".into(), "a c".into()));

    let refused = |mesh: &mut Mesh, files: &[(&str, &str)], only: &[&str]| {
        submit(mesh, files, only, &[]).unwrap_err().to_string()
    };
    let twice = refused(&mut mesh, &[("a.yaml", &rule("c"))], &["a.yaml"]);
    assert!(twice.contains("a.yaml:2") && twice.contains("`c`"), "{twice}");
    let elsewhere = refused(&mut mesh, &[("a.yaml", "network: lab\n")], &["a.yaml"]);
    assert!(elsewhere.starts_with("a.yaml:1:10: this is about network lab"), "{elsewhere}");
    let outside = refused(&mut mesh, &[("c.yaml", &rule("x"))], &["a.yaml"]);
    assert!(outside.contains("c.yaml is not in the scope"), "{outside}");
    assert_eq!(names(&mesh), ("a.yaml c.yaml".into(), "a c".into()));

    let only_new = PolicyScope {
        network: shop(),
        only: vec!["a.yaml".into()],
        except: vec![],
        only_new: true,
    };
    let wanted =
        Submission { scope: Some(only_new.clone()), guardrails: true, ..Submission::default() };
    let refused = policies::apply(&mesh.world, &wanted).err().unwrap();
    assert!(refused.to_string().contains("already, in a.yaml"), "{refused}");

    submit(&mut mesh, &[], &["a.yaml"], &[]).unwrap();
    assert_eq!(names(&mesh), ("c.yaml".into(), "c".into()));
    assert!(policies::apply(&mesh.world, &wanted).unwrap().mutations.is_empty());
    submit(&mut mesh, &[], &[], &[]).unwrap();
    assert_eq!(names(&mesh), (String::new(), String::new()));
}

#[test]
fn a_file_about_two_networks_is_read_for_one_of_them_without_the_rest_of_the_other() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/16"]).unwrap();
    mesh.network("lab", &["10.43.0.0/16"]).unwrap();
    let both = "network: shop\nrules: [{ name: s, from: {}, to: {}, allow: [tcp/80] }]\n---\n\
        network: lab\nrules: [{ name: l, from: {}, to: {}, allow: [web] }]\n";
    let files = [("both.yaml", both), ("sets.yaml", "network: lab\nports: { web: [tcp/443] }\n")];
    let files = files.map(|(name, text)| PolicyFile { name: name.into(), text: text.into() });
    let wanted =
        Submission { files: files.to_vec().into(), guardrails: true, ..Submission::default() };
    mesh.commit(policies::apply(&mesh.world, &wanted)).unwrap();

    let read = World::load(mesh.world.revision, mesh.records.clone()).unwrap();
    assert_eq!(read.networks[&shop()].links.policy().rules.len(), 1);
    submit(&mut mesh, &[("a.yaml", "network: shop\nrules: []\n")], &["a.yaml"], &[]).unwrap();
    assert_eq!(mesh.world.networks[&shop()].policy_files.len(), 2);
    assert_eq!(mesh.world.networks[&"lab".parse().unwrap()].policy_files.len(), 2);
}

fn submit(
    mesh: &mut Mesh,
    files: &[(&str, &str)],
    only: &[&str],
    except: &[&str],
) -> Result<(), Refusal> {
    let file =
        |(name, text): &(&str, &str)| PolicyFile { name: (*name).into(), text: (*text).into() };
    let files: Vec<PolicyFile> = files.iter().map(file).collect();
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let scope =
        PolicyScope { network: shop(), only: own(only), except: own(except), only_new: false };
    let wanted = Submission {
        files: Arc::new(files.clone()),
        scope: Some(scope.clone()),
        guardrails: true,
        ..Submission::default()
    };
    mesh.commit(policies::apply(&mesh.world, &wanted)).map(drop)
}
