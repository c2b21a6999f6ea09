//! Credentials with few rights: a viewer's, an operator's and an owner's of one network of two.

use crate::{
    curl::{Answer, Api},
    support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, resident, tcp_echoes},
};
use meshward_api_types::{AuditEntry, Node};
use meshward_lab::Workload;
use serde_json::{Value, json};
use std::{fmt::Write, time::Duration};

/// The limit of the growth of the coordinator's memory, in MiB.
const MOST_GROWN: u64 = 64;

/// A mesh with the networks `shop` and `vault`: what is in `vault` is no concern of the
/// credentials.
struct Scene {
    shop: Shop,
    /// A workload in `vault`, by a node that serves `vault` alone.
    elsewhere: Workload,
    far: meshward_lab::Node,
    memory: u64,
}

impl Scene {
    fn new(policy: &str) -> Self {
        let mut shop = Shop::new(policy);
        shop.mesh.meshctl(&["network", "create", "vault", "--cidr", "10.43.0.0/16"]).unwrap();
        let token = shop.mesh.token(&["--network", "vault"]).unwrap();
        let site = shop.mesh.internet.site("faroff").unwrap();
        let far = shop.mesh.node_at(site).token(&token).start().unwrap();
        let mut attached = far.attach("vault", "app=secret");
        let enough = std::time::Instant::now() + PATIENCE;
        while attached.is_err() && std::time::Instant::now() < enough {
            // It has not been told of the network yet.
            std::thread::sleep(Duration::from_millis(50));
            attached = far.attach("vault", "app=secret");
        }
        let memory = resident(shop.mesh.coordinator.pid());
        Self { shop, elsewhere: attached.unwrap(), far, memory }
    }

    /// The API with a credential of this role in `shop`.
    fn as_a(&self, role: &str) -> Api<'_> {
        self.named(role, role)
    }

    fn named(&self, name: &str, role: &str) -> Api<'_> {
        let make = ["credential", "create", name, "--role", role, "--network", "shop"];
        Api::with(&self.shop.mesh, &self.shop.mesh.meshctl(&make).unwrap())
    }

    /// Returns the state as admins see it: policies, quarantines, workloads, routes, credentials,
    /// tokens, networks, devices and nodes.
    fn state(&self) -> Vec<Value> {
        let admin = Api::of(&self.shop.mesh);
        let lists = [
            "policies",
            "quarantines",
            "workloads",
            "routes",
            "credentials",
            "tokens",
            "networks",
            "devices",
        ];
        let mut all: Vec<Value> =
            lists.iter().flat_map(|list| admin.list::<Value>(&format!("/v1/{list}"))).collect();
        let nodes: Vec<Node> = admin.list("/v1/nodes");
        all.extend(nodes.iter().map(|node| json!([node.name, node.state, node.labels])));
        all
    }

    /// Does something, and looks whether anything is other than before: traffic, sessions, what is
    /// stored, and the coordinator's memory.
    fn unnoticed(&self, what: &str, stream: &Stream, attack: impl FnOnce()) {
        let before = self.state();
        attack();
        assert_eq!(self.state(), before, "{what}");
        assert!(stream.flows(PATIENCE), "{what}: traffic goes on");
        assert!(
            self.shop.nodes.iter().chain([&self.far]).all(meshward_lab::Node::is_connected),
            "{what}"
        );
        let grown = resident(self.shop.mesh.coordinator.pid()).saturating_sub(self.memory);
        assert!(grown <= MOST_GROWN, "{what}: the coordinator has grown by {grown} MiB");
    }
}

/// Asks about what is elsewhere and about what is nowhere: the answers must not differ but in the
/// name that was asked for.
fn same_answer(
    who: &Api,
    method: &str,
    path: &str,
    body: impl Fn(&str) -> Option<Value>,
    names: [&str; 2],
) {
    let ask = |name: &str| {
        let answer: Answer =
            who.call(method, &path.replace("NAME", name), &[], body(name).as_ref());
        let mut problem = answer.read::<Value>();
        for field in ["instance", "request_id", "trace"] {
            problem.as_object_mut().unwrap().remove(field);
        }
        assert!(answer.status >= 400, "{method} {path} {name}: {answer:?}");
        (answer.status, problem.to_string().replace(name, "NAME"))
    };
    let [elsewhere, nowhere] = names.map(ask);
    assert_eq!(elsewhere, nowhere, "{method} {path}: it tells what is elsewhere");
}

fn policy_body(text: &str) -> Value {
    json!({ "files": [{ "name": "a.yaml", "text": text }] })
}

/// Everything that a credential can write: methods, paths and bodies.
fn writes(web: &str) -> Vec<(&'static str, String, Option<Value>)> {
    vec![
        ("POST", "/v1/policies".into(), Some(policy_body(&allow("any")))),
        ("POST", "/v1/networks/shop/policy/rollback".into(), Some(json!({ "revision": 1 }))),
        (
            "POST",
            "/v1/quarantines".into(),
            Some(json!({ "network": "shop", "selector": { "app": "web" } })),
        ),
        ("POST", "/v1/quarantines".into(), Some(json!({ "workload": web }))),
        (
            "POST",
            "/v1/quarantines/release".into(),
            Some(json!({ "network": "shop", "selector": { "app": "web" } })),
        ),
        ("POST", "/v1/tokens".into(), Some(json!({ "uses": 1, "ttl_seconds": 3600 }))),
        ("POST", "/v1/credentials".into(), Some(json!({ "name": "more", "role": "admin" }))),
        (
            "POST",
            "/v1/credentials".into(),
            Some(json!({ "name": "same", "role": "viewer", "networks": ["shop"] })),
        ),
        (
            "PATCH",
            "/v1/credentials/viewer".into(),
            Some(json!({ "role": "admin", "all_networks": true })),
        ),
        ("DELETE", "/v1/credentials/admin".into(), None),
        (
            "POST",
            "/v1/networks".into(),
            Some(json!({ "name": "mine", "prefixes": ["10.44.0.0/16"], "mtu": 1420 })),
        ),
        ("DELETE", "/v1/networks/shop".into(), None),
        ("DELETE", "/v1/nodes/rack".into(), None),
        ("PUT", "/v1/nodes/rack".into(), Some(json!({ "labels": { "a": "b" } }))),
        ("POST", "/v1/keys/rotate".into(), Some(json!({ "all": true, "keep_old_seconds": 0 }))),
        (
            "POST",
            "/v1/devices".into(),
            Some(json!({ "name": "d", "network": "shop", "labels": {}, "public_key": "AAAA" })),
        ),
        (
            "POST",
            "/v1/routes/approve".into(),
            Some(json!({ "node": "rack", "network": "shop", "prefix": "10.9.0.0/24" })),
        ),
        ("POST", "/v1/egress/approve".into(), Some(json!({ "node": "rack", "network": "shop" }))),
        ("GET", "/v1/backup?ca=true".into(), None),
    ]
}

#[test]
fn a_viewer_changes_nothing_and_reads_of_no_other_network() {
    let scene = Scene::new(&allow("tcp/8080"));
    let _echo = Echo::start(&scene.shop.api.netns, 8080);
    let stream = Stream::start(&scene.shop.web.netns, scene.shop.api.v4(), 8080);
    let viewer = scene.as_a("viewer");
    let writes = writes(&scene.shop.web.id);
    scene.unnoticed("a viewer's writes", &stream, || {
        for (method, path, body) in &writes {
            for way in ["", "?dry_run=false"] {
                let path = if path.contains('?') { path.clone() } else { format!("{path}{way}") };
                let answer = viewer.call(method, &path, &["Idempotency-Key: once"], body.as_ref());
                assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
            }
        }
    });
    let audit: Vec<AuditEntry> = Api::of(&scene.shop.mesh).list("/v1/audit?limit=1000");
    let own = audit.iter().filter(|entry| entry.actor == "user:viewer");
    assert_eq!(own.count(), 0, "something was written");
    scene.unnoticed("a viewer's reads", &stream, || {
        assert!(
            viewer.call("GET", "/v1/audit", &[], None).status == 403,
            "that is about all networks"
        );
        for list in [
            "nodes",
            "workloads",
            "networks",
            "policies",
            "routes",
            "devices",
            "links",
            "quarantines",
            "credentials",
            "tokens",
            "images",
        ] {
            let answer = viewer.call("GET", &format!("/v1/{list}"), &[], None);
            for secret in
                ["10.43.", "secret", scene.elsewhere.id.as_str(), "\"faroff\"", "\"vault\""]
            {
                assert!(!answer.body().contains(secret), "{list} tells {secret}: {answer:?}");
            }
        }
    });
}

fn same_answers_about_networks(who: &Api<'_>, networks: [&str; 2]) {
    let whole = |network: &str| {
        Some(json!({
            "network": network,
            "selector": { "app": "secret" },
        }))
    };
    same_answer(who, "POST", "/v1/quarantines", whole, networks);
    same_answer(who, "POST", "/v1/quarantines/release", whole, networks);
    let explain = |network: &str| {
        Some(json!({
            "network": network,
            "from": { "app": "secret" },
            "to": { "app": "secret" },
            "port": "tcp/1",
        }))
    };
    same_answer(who, "POST", "/v1/explain", explain, networks);
    let policy = |network: &str| Some(policy_body(&format!("network: {network}\nrules: []\n")));
    same_answer(who, "POST", "/v1/policies?dry_run=true", policy, networks);
    let part = |network: &str| {
        Some(json!({
            "files": [],
            "scope": { "network": network, "only": ["a.yaml"], "only_new": true },
        }))
    };
    same_answer(who, "POST", "/v1/policies?dry_run=true", part, networks);
}

#[test]
fn nobody_learns_by_asking_what_there_is_outside_of_a_credentials_networks() {
    let scene = Scene::new(&allow("tcp/8080"));
    let _echo = Echo::start(&scene.shop.api.netns, 8080);
    let stream = Stream::start(&scene.shop.web.netns, scene.shop.api.v4(), 8080);
    let (operator, owner) = (scene.as_a("operator"), scene.as_a("owner"));
    let mesh = &scene.shop.mesh;
    mesh.meshctl(&["quarantine", "app=secret", "--network", "vault"]).unwrap();
    mesh.meshctl(&["route", "approve", "10.9.0.0/24", "--node", "faroff", "--network", "vault"])
        .unwrap();
    let elsewhere = scene.elsewhere.id.as_str();
    // An id of nobody's, of the same form.
    let mut nobody = elsewhere.to_owned();
    let last = if nobody.pop() == Some('a') { 'b' } else { 'a' };
    nobody.push(last);
    let none = |_: &str| None;
    scene.unnoticed("questions", &stream, || {
        for who in [&operator, &owner] {
            let ids = [elsewhere, nobody.as_str()];
            let (networks, nodes) = (["vault", "attic"], ["faroff", "nowhere"]);
            same_answer(who, "GET", "/v1/workloads/NAME", none, ids);
            same_answer(who, "GET", "/v1/nodes/NAME", none, nodes);
            same_answer(who, "GET", "/v1/networks/NAME", none, networks);
            same_answer(who, "GET", "/v1/networks/NAME/policy", none, networks);
            same_answer(who, "GET", "/v1/networks/NAME/policy/suggestion", none, networks);
            same_answer(who, "GET", "/v1/devices/NAME/phone", none, networks);
            same_answer(who, "GET", "/v1/routes/shop/NAME/10.9.0.0%2F24", none, nodes);
            let quarantine = |id: &str| Some(json!({ "workload": id }));
            same_answer(who, "POST", "/v1/quarantines", quarantine, ids);
            same_answer(who, "POST", "/v1/quarantines?dry_run=true", quarantine, ids);
            same_answer(who, "POST", "/v1/quarantines/release", quarantine, ids);
            same_answers_about_networks(who, networks);
        }
        let device = |node: &str| {
            Some(json!({ "name": "d", "network": "shop", "labels": {}, "gateway": node,
                "public_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=" }))
        };
        same_answer(&owner, "POST", "/v1/devices", device, ["faroff", "nowhere"]);
        for verb in ["approve", "disapprove"] {
            for network in [json!("shop"), json!("vault"), Value::Null] {
                let route = |node: &str| {
                    let mut body = json!({ "node": node, "prefix": "10.9.0.0/24" });
                    if !network.is_null() {
                        body["network"] = network.clone();
                    }
                    Some(body)
                };
                same_answer(
                    &owner,
                    "POST",
                    &format!("/v1/routes/{verb}"),
                    route,
                    ["faroff", "nowhere"],
                );
            }
        }
    });
    // What does not hold anybody of theirs is not told where it is asked for something like it.
    let near = operator.post(
        "/v1/quarantines/release",
        &json!({ "network": "shop", "selector": { "app": "nobody" } }),
    );
    assert!(near.status == 404 && !near.body().contains("vault"), "{near:?}");
}

#[test]
fn an_operator_lets_in_nobody_whom_a_guardrail_denies_and_ends_no_quarantine_of_others() {
    let policy = allow("tcp/8080")
        + "guardrails: [{ name: never, from: { app: spy }, to: { app: api }, deny: [any] }]
forensics: [{ name: doctors, from: { app: doctor }, to: { app: api } }]
";
    let scene = Scene::new(&policy);
    let spy = scene.shop.nodes[0].attach("shop", "app=spy").unwrap();
    let _echo = Echo::start(&scene.shop.api.netns, 8080);
    let stream = Stream::start(&scene.shop.web.netns, scene.shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    let operator = scene.as_a("operator");
    scene.shop.mesh.meshctl(&["quarantine", "app=secret", "--network", "vault"]).unwrap();
    scene.unnoticed("what an operator may not", &stream, || {
        for (path, body) in [
            ("/v1/policies", policy_body(&allow("any"))),
            ("/v1/quarantines", json!({ "network": "vault", "selector": { "app": "secret" } })),
            ("/v1/quarantines", json!({ "selector": { "app": "secret" } })),
            (
                "/v1/quarantines/release",
                json!({ "network": "vault", "selector": { "app": "secret" } }),
            ),
            ("/v1/quarantines/release", json!({ "network": "vault" })),
            (
                "/v1/credentials",
                json!({ "name": "more", "role": "operator", "networks": ["shop"] }),
            ),
            (
                "/v1/routes/approve",
                json!({ "node": "rack", "network": "shop", "prefix": "0.0.0.0/0" }),
            ),
            ("/v1/egress/approve", json!({ "node": "rack", "network": "shop" })),
        ] {
            let answer = operator.post(path, &body);
            assert!((400..500).contains(&answer.status), "{path} {body}: {answer:?}");
        }
    });
    // With words for everybody, for the spy, and for who is not named.
    let words = [
        json!({ "app": "spy" }),
        json!({ "app": ["spy", "doctor"] }),
        json!({ "nothing": { "exists": false } }),
        json!({ "app": "doctor" }),
    ];
    for allow_from in words {
        let body =
            json!({ "network": "shop", "selector": { "app": "api" }, "allow_from": allow_from });
        let _ = operator.post("/v1/quarantines", &body);
        assert!(
            !tcp_echoes(&spy.netns, scene.shop.api.v4(), 8080, 64, SILENCE),
            "{allow_from}: a guardrail holds"
        );
        let _ = operator.post(
            "/v1/quarantines/release",
            &json!({ "network": "shop", "selector": { "app": "api" } }),
        );
    }
    let done = operator
        .post("/v1/quarantines", &json!({ "network": "shop", "selector": { "app": "api" } }));
    assert_eq!(done.status, 200, "{done:?}");
    assert!(!stream.flows(SILENCE), "what it may, it does");
}

#[test]
fn a_viewers_largest_requests_cost_nobody_else_his_answers_or_a_quarantine() {
    let scene = Scene::new(&allow("tcp/8080"));
    let _echo = Echo::start(&scene.shop.api.netns, 8080);
    let stream = Stream::start(&scene.shop.web.netns, scene.shop.api.v4(), 8080);
    let (viewer, operator) = (scene.as_a("viewer"), scene.as_a("operator"));
    let quarantine =
        json!({ "network": "shop", "selector": { "app": "nobody" }, "even_if_none": true });
    let key = ["Idempotency-Key: mine"];
    let first = operator.call("POST", "/v1/quarantines", &key, Some(&quarantine));
    assert_eq!(first.status, 200, "{first:?}");
    // The viewer's answers under keys of its own, the same key among them.
    let explain = json!({
        "network": "shop",
        "from": { "app": "web" },
        "to": { "app": "api" },
        "port": "tcp/8080",
    });
    scene.unnoticed("a viewer's keys", &stream, || {
        for at in 0..200 {
            let key = format!(
                "Idempotency-Key: {}",
                if at == 0 { "mine".into() } else { format!("k{at}") }
            );
            let answer = viewer.call("POST", "/v1/explain", &[&key], Some(&explain));
            assert!(answer.status == 200 && !answer.body().contains("nobody"), "{answer:?}");
        }
    });
    let again = operator.call("POST", "/v1/quarantines", &key, Some(&quarantine));
    assert_eq!((again.status, again.body()), (200, first.body()), "it is still known");
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    // Policies with as many rules and tests as may be, from several clients of the viewer at once.
    let long = policy_body(&largest_policy());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..5).for_each(|_| drop(viewer.post("/v1/policies?dry_run=true", &long)));
            });
        }
        let done = operator.post("/v1/quarantines", &json!({ "workload": scene.shop.api.id }));
        assert_eq!(done.status, 200, "{done:?}");
        assert!(!stream.flows(SILENCE), "it is in force when it is answered");
    });
}

/// Returns a policy with as many rules and tests as one may have.
fn largest_policy() -> String {
    let mut text = "network: shop\nrules:\n".to_owned();
    for at in 0..400 {
        let allowed = at + 1;
        writeln!(
            text,
            "  - {{ name: r{at}, from: {{ app: a{at} }}, to: {{ app: web }}, \
             allow: [tcp/{allowed}] }}"
        )
        .unwrap();
    }
    text.push_str("tests:\n");
    for at in 0..100 {
        writeln!(
            text,
            "  - {{ from: {{ app: a{at} }}, to: {{ app: web }}, port: tcp/9999, expect: deny }}"
        )
        .unwrap();
    }
    text
}
