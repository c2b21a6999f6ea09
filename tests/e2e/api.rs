//! The coordinator's HTTP API, as programs of others meet it.

use crate::{
    curl::{Api, Batch, EntryEvent, Event},
    support::{allow, mesh},
};
use meshward_api_types as api;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::{path::Path, process::Command};

fn said(name: &str, key: &str) -> EntryEvent {
    EntryEvent { name: name.to_owned(), key: key.to_owned() }
}

#[test]
fn the_document_is_valid_and_schemathesis_finds_nothing() {
    let mesh = mesh();
    mesh.apply(&allow("tcp/8080")).unwrap();
    let api = Api::of(&mesh);
    let test = std::env::current_exe().unwrap();
    let tools = test.ancestors().nth(3).unwrap().join("api-tools/bin");
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = |command: &mut Command| {
        let out = mesh.site.netns.run(|| command.output()).unwrap();
        let out = out.unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo xtask test` installs it", command.get_program().display())
        });
        let said = String::from_utf8_lossy(&out.stdout).into_owned()
            + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
    };
    run(Command::new(tools.join("openapi-spec-validator")).arg(own.join("../docs/openapi.json")));
    // The certificate is for another name than the address.
    let mut schemathesis = Command::new(tools.join("schemathesis"));
    schemathesis.env("PYTHONWARNINGS", "ignore").current_dir(mesh.folder()).arg("--config-file");
    schemathesis.arg(own.join("api/schemathesis.toml")).arg("run").args([
        "--tls-verify",
        "false",
        "--no-color",
    ]);
    schemathesis.args([
        "--max-examples",
        "8",
        "--seed",
        "7",
        "--request-timeout",
        "20",
        "--warnings",
        "off",
    ]);
    schemathesis.args(["--header", &api.authorization()]);
    schemathesis.arg(format!("https://{}/v1/openapi.json", api.server));
    run(schemathesis.env("SCHEMATHESIS_HOOKS", own.join("api/hooks.py")));
}

/// Asks for what is refused, and checks what is said to it.
fn refuses(api: &Api<'_>) {
    let good = json!({ "name": "two", "prefixes": ["10.9.0.0/16"] });
    for (method, path, body, status, says) in [
        ("GET", "/v1/nodes/A%2FB", None, 400, "is not a node name"),
        ("GET", "/v1/nodes/nope", None, 404, "there is no node `nope`"),
        ("GET", "/v1/nodes/%ff", None, 400, "path"),
        ("DELETE", "/v1/nodes", None, 405, "does not support DELETE"),
        ("GET", "/v1/nodes?labels=a", None, 400, "unknown parameter `labels`"),
        ("GET", "/v1/nodes?limit=0", None, 400, "from 1 to 5000"),
        ("GET", "/v1/nodes?limit=x", None, 400, "limit"),
        ("GET", "/v1/nodes?cursor=!", None, 404, "`next` of the page before"),
        ("GET", "/v1/nodes?dry_run=true", None, 400, "unknown parameter `dry_run`"),
        ("GET", "/v1/nodes?revision=1", None, 400, "goes with `watch=1`"),
        ("GET", "/v1/workloads?selector=a%3D(", None, 422, "is not a selector"),
        (
            "GET",
            "/v1/workloads?watch=1&revision=99999",
            None,
            410,
            "there is no revision 99999 yet",
        ),
        ("POST", "/v1/networks?dryrun=true", Some(&good), 400, "did you mean `dry_run`?"),
        (
            "POST",
            "/v1/networks",
            Some(&json!([])),
            400,
            "the body is an array, and must be an object",
        ),
        ("POST", "/v1/keys/rotate", Some(&json!([null, null])), 400, "must be an object"),
        ("POST", "/v1/keys/rotate", Some(&json!({ "node": null })), 400, "`node` is null"),
        ("POST", "/v1/keys/rotate", Some(&json!({})), 422, "name the keys"),
        (
            "POST",
            "/v1/quarantines",
            Some(&json!({ "selector": {} })),
            422,
            "would isolate everything",
        ),
        (
            "POST",
            "/v1/policies",
            Some(&json!({ "files": [], "prune": true })),
            422,
            "there are no files",
        ),
        ("POST", "/v1/tokens", Some(&json!({ "networks": [] })), 400, "`networks` is empty"),
    ] {
        let answer = api.call(method, path, &[], body);
        let detail = answer.problem();
        assert!(answer.status == status && detail.contains(says), "{method} {path}: {answer:?}");
    }
}

#[test]
fn every_refusal_is_a_problem_document() {
    let mesh = mesh();
    let api = Api::of(&mesh);
    let stranger = |path: &str, headers: &[&str]| api.as_stranger("GET", path, headers, None);
    for headers in [&[][..], &["authorization: Bearer wrong"], &["authorization: Basic YTpi"]] {
        let answer = stranger("/v1/nodes?nonsense=1", headers);
        assert!(
            answer.status == 401 && answer.headers["www-authenticate"].starts_with("Bearer"),
            "{answer:?}"
        );
        answer.problem();
    }
    assert!(stranger("/nothing", &[]).problem().contains("there is no /nothing"));
    refuses(&api);
    assert!(api.call("DELETE", "/v1/nodes", &[], None).headers["allow"].contains("GET"));
    let headers = [&*api.authorization(), "content-type: application/json"];
    let large = vec![b' '; 9 << 20];
    let answer = api.as_stranger("POST", "/v1/networks", &headers, Some(&large));
    assert_eq!((answer.status, answer.problem().is_empty()), (413, false));
    let answer = api.as_stranger("POST", "/v1/networks", &headers[..1], Some(b"{}"));
    assert_eq!((answer.status, answer.problem().contains("content-type")), (415, true));
    assert_eq!(api.list::<api::Network>("/v1/networks").len(), 1, "nothing of that was done");
}

#[test]
fn a_write_overwrites_the_state_that_was_read_and_no_other() {
    let mesh = mesh();
    let api = Api::of(&mesh);
    let submit = |ports: &str, tag: &str| {
        let files = json!({ "files": [{ "name": "a.yaml", "text": allow(ports) }] });
        api.call("POST", "/v1/policies", &[&format!("if-match: {tag}")], Some(&files))
    };
    let tag = |path: &str| api.call("GET", path, &[], None).headers["etag"].clone();
    let policy = "/v1/networks/shop/policy";
    let before = tag(policy);
    assert_eq!(submit("tcp/1", &before).status, 200);
    let answer = submit("tcp/2", &before);
    assert!(answer.status == 412 && answer.problem().contains(&tag(policy)), "{answer:?}");
    assert!(api.get::<api::Policy>(policy).files[0].text.contains("tcp/1"));
    assert_eq!(submit("tcp/3", &format!("\"other\", {}", tag(policy))).status, 200);
    let node = |labels: Value, tag: &str| {
        let wanted = json!({ "labels": labels });
        api.call("PUT", "/v1/nodes/new", &[&format!("if-match: {tag}")], Some(&wanted))
    };
    assert_eq!(node(json!({}), "*").status, 412, "what is not there has no state");
    assert_eq!(api.call("PUT", "/v1/nodes/new", &[], Some(&json!({}))).status, 200);
    let before = tag("/v1/nodes/new");
    let changed = node(json!({ "gpu": "yes" }), &before);
    assert_eq!((changed.status, &changed.headers["etag"]), (200, &tag("/v1/nodes/new")));
    assert_eq!(node(json!({}), &before).status, 412);
    let delete =
        |tag: &str| api.call("DELETE", "/v1/nodes/new", &[&format!("if-match: {tag}")], None);
    assert_eq!(delete(&before).status, 412);
    assert_eq!(delete(&tag("/v1/nodes/new")).status, 200);
}

#[test]
fn what_comes_again_under_one_key_is_done_once() {
    let mesh = mesh();
    let api = Api::of(&mesh);
    let make = |key: &str, uses: u32| {
        let header = format!("idempotency-key: {key}");
        api.call("POST", "/v1/tokens", &[&header], Some(&json!({ "uses": uses })))
    };
    let first = make("a", 1);
    let again = make("a", 1);
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    let other = make("a", 2);
    assert!(other.status == 409 && other.problem().contains("another request"), "{other:?}");
    assert_eq!(make("b", 1).status, 201);
    assert_eq!(api.list::<api::Token>("/v1/tokens").len(), 2);
    assert_eq!(make("c", 0).status, 422);
    assert_eq!(make("c", 1).status, 201, "a refusal leaves the key free");
    assert_eq!(make("spaces are none", 1).status, 400);
}

#[test]
fn lists_come_in_pages_with_filters_and_each_entry_by_itself() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let own: Vec<_> =
        ["web", "web", "api"].map(|app| node.attach("shop", &format!("app={app}")).unwrap()).into();
    let api = Api::of(&mesh);
    let (mut found, mut path) = (Vec::new(), "/v1/workloads?limit=2".to_owned());
    loop {
        let page: api::Page<api::Workload> = api.get(&path);
        assert!(page.items.len() <= 2);
        found.extend(page.items.into_iter().map(|workload| workload.id));
        let Some(next) = page.next else { break };
        path = format!("/v1/workloads?limit=2&cursor={next}");
    }
    assert_eq!(found.len(), own.len());
    assert!(found.is_sorted());
    let count = |path: &str| api.list::<IgnoredAny>(path).len();
    assert_eq!(count("/v1/workloads?selector=app%3Dweb"), 2);
    assert_eq!(count("/v1/workloads?selector=app%20in%20(web,api)&quarantined=true"), 0);
    assert_eq!(count("/v1/nodes?connected=true"), 1);
    assert_eq!(count("/v1/audit?actor=user:admin&limit=1"), 1);
    let log: api::Page<api::AuditEntry> = api.get("/v1/audit?limit=2");
    let older = api.list::<api::AuditEntry>(&format!("/v1/audit?cursor={}", log.next.unwrap()));
    assert!(older[0].revision < log.items[1].revision);
    let one: api::Workload = api.get(&format!("/v1/workloads/{}", found[0]));
    assert_eq!(one.id, found[0]);
    let dry = api.call("DELETE", "/v1/nodes/cloud?dry_run=true", &[], None);
    assert_eq!((dry.read::<api::Node>().name.as_str(), count("/v1/nodes")), ("cloud", 1));
}

#[test]
fn a_watch_tells_what_changes_and_goes_on_from_a_revision() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let web = node.attach("shop", "app=web").unwrap();
    let api = Api::of(&mesh);
    let watch = api.watch("/v1/workloads?watch=1&selector=app%3Dweb");
    let Batch { events, revision } = watch.synced();
    assert_eq!(events, [said("put", &web.id)]);
    let second = node.attach("shop", "app=web").unwrap();
    let _other = node.attach("shop", "app=api").unwrap();
    assert_eq!(watch.synced().events, [said("put", &second.id)]);
    let quarantine = json!({ "selector": { "app": "web" } });
    assert_eq!(api.post("/v1/quarantines", &quarantine).status, 200);
    let mut held = watch.synced().events;
    held.sort();
    let mut both = [said("put", &web.id), said("put", &second.id)];
    both.sort();
    assert_eq!(held, both, "what a quarantine changes is said, too");
    node.meshctl(&["detach", &web.id]).unwrap();
    assert_eq!(watch.synced().events, [said("gone", &web.id)]);
    // Who was away meanwhile is told what it has missed, once.
    let again = api.watch(&format!("/v1/workloads?watch=1&selector=app%3Dweb&revision={revision}"));
    let mut seen = again.synced().events;
    seen.retain(|event| event.key == web.id || event.key == second.id);
    seen.sort();
    assert_eq!(seen, [said("gone", &web.id), said("put", &second.id)]);
    // With the credential, what it watches ends.
    let made = api.post("/v1/credentials", &json!({ "name": "eyes", "role": "viewer" }));
    let eyes = Api::with_token(&mesh, made.read::<api::CreatedCredential>().token);
    let watch = eyes.watch("/v1/networks?watch=1");
    assert_eq!(watch.synced().events, [said("put", "shop")]);
    assert_eq!(api.call("DELETE", "/v1/credentials/eyes", &[], None).status, 200);
    assert_eq!(watch.next().name, "problem");
    assert!(watch.lines.iter().all(|line| line.is_empty()), "the watch ends");
}

#[test]
fn a_credential_of_one_network_is_told_nothing_of_another() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.77.0.0/16"]).unwrap();
    let web = node.attach("shop", "app=web").unwrap();
    let api = Api::of(&mesh);
    mesh.wait(|| api.get::<api::Node>("/v1/nodes/cloud").blocks.len() == 2).unwrap();
    let wanted = json!({ "name": "eyes", "role": "viewer", "networks": ["lab"] });
    let made = api.post("/v1/credentials", &wanted);
    let eyes = Api::with_token(&mesh, made.read::<api::CreatedCredential>().token);
    let narrow = |node: &api::Node| {
        assert_eq!(node.workloads, 0, "{node:?}");
        assert!(node.blocks.len() == 1 && node.blocks[0].network.as_str() == "lab", "{node:?}");
    };
    assert_eq!(api.get::<api::Node>("/v1/nodes/cloud").workloads, 1);
    narrow(&eyes.get("/v1/nodes/cloud"));
    narrow(&eyes.list("/v1/nodes")[0]);
    let change = eyes.watch("/v1/nodes?watch=1").next().data;
    narrow(&serde_json::from_value::<api::Change<_>>(change).unwrap().item.unwrap());
    let status: api::Status = eyes.get("/v1/status");
    assert_eq!((status.networks, status.workloads), (1, 0));
    let workload = eyes.call("GET", &format!("/v1/workloads/{}", web.id), &[], None);
    assert_eq!(workload.status, 404, "{workload:?}");
    // The names of what is gone elsewhere are told by no watch.
    let api::Page::<api::Network> { revision, .. } = api.get("/v1/networks");
    let path = format!("/v1/networks?watch=1&revision={revision}");
    mesh.meshctl(&["network", "create", "secret", "--cidr", "10.78.0.0/16"]).unwrap();
    mesh.meshctl(&["network", "delete", "secret"]).unwrap();
    assert_eq!(api.watch(&path).synced().events, [said("gone", "secret")]);
    let Event { name, data: problem } = eyes.watch(&path).next();
    assert!(!problem.to_string().contains("secret"), "{problem}");
    let problem: api::Problem = serde_json::from_value(problem).unwrap();
    assert!(name == "problem" && problem.status == 410, "{name}: {problem:?}");
}

#[test]
fn who_watches_over_the_coordinator_needs_no_credential() {
    let mesh = mesh();
    let api = Api::of(&mesh);
    for path in ["/healthz", "/readyz", "/version", "/v1/openapi.json"] {
        assert_eq!(api.as_stranger("GET", path, &[], None).status, 200, "{path}");
    }
}

#[test]
fn answers_are_compressed_for_those_who_ask() {
    let mesh = mesh();
    let api = Api::of(&mesh);
    let plain = api.as_stranger("GET", "/v1/openapi.json", &[], None);
    assert!(!plain.headers.contains_key("content-encoding"));
    let small = api.as_stranger("GET", "/v1/openapi.json", &["accept-encoding: gzip"], None);
    assert_eq!(small.headers["content-encoding"], "gzip");
}
