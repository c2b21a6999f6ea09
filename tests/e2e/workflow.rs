//! The daily work of operators with policy: write it, preview it, check it, and the roles that may.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, mesh, tcp_echoes};
use meshward_api_types::{Links, PolicyRevision};
use meshward_lab::Mesh;
use std::{fs, path::PathBuf};

fn folder(mesh: &Mesh, files: &[(&str, &str)]) -> PathBuf {
    let folder = mesh.folder().join("policies");
    let _ = fs::remove_dir_all(&folder);
    for (name, text) in files {
        let file = folder.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

fn refused(mesh: &Mesh, arguments: &[&str]) -> String {
    mesh.meshctl(arguments).unwrap_err().to_string()
}

#[test]
fn a_folder_of_files_is_applied_whole_and_what_it_does_not_name_is_pruned() {
    let shop = Shop::new(&allow("tcp/8080"));
    let mesh = &shop.mesh;
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.43.0.0/16"]).unwrap();
    mesh.apply("network: lab\nrules: [{ name: a, from: {}, to: {}, allow: [icmp] }]\n").unwrap();
    let sets =
        "network: shop\nports: { web: [tcp/80, tcp/443] }\nselectors: { front: { app: web } }\n";
    let rules =
        "network: shop\nrules: [{ name: web, from: front, to: { app: api }, allow: [web] }]\n";
    let place =
        folder(mesh, &[("sets.yaml", sets), ("teams/web.yml", rules), ("notes.txt", "no policy")]);
    let place = place.to_str().unwrap();
    let said = mesh.meshctl(&["policy", "apply", "-f", place, "--prune", "--dry-run"]).unwrap();
    assert!(said.contains("network lab would get 0 rules"), "{said}");
    let said = mesh.meshctl(&["policy", "apply", "-f", place, "--prune", "-m", "teams"]).unwrap();
    assert!(
        said.contains("network shop has 1 rule ") && said.contains("becomes tcp/80 tcp/443"),
        "{said}"
    );
    assert_eq!(mesh.meshctl(&["policy", "get", "lab"]).unwrap(), "");
    let whole = mesh.meshctl(&["policy", "get", "shop"]).unwrap();
    assert!(whole.contains("teams/web.yml") && whole.contains("front"), "{whole}");
    // One bad file, and nothing is applied.
    let bad = "network: shop\nrules: [{ name: x, from: frnt, to: {}, allow: [wep, tcp/80] }]\n";
    folder(mesh, &[("sets.yaml", sets), ("teams/web.yml", bad)]);
    let said = refused(mesh, &["policy", "apply", "-f", place]);
    assert!(
        said.contains("teams/web.yml:2:26: no selector is called `frnt`; did you mean `front`?"),
        "{said}"
    );
    assert!(said.contains("did you mean `web`?"), "{said}");
    assert_eq!(mesh.meshctl(&["policy", "get", "shop"]).unwrap(), whole);
}

#[test]
fn what_a_policy_would_do_is_known_before() {
    let shop = Shop::new(&allow("tcp/8080, tcp/9090"));
    let _echoes = [8080, 9090].map(|port| Echo::start(&shop.api.netns, port));
    let streams = [8080, 9090].map(|port| Stream::start(&shop.web.netns, shop.api.v4(), port));
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    let place = folder(&shop.mesh, &[("shop.yaml", &allow("tcp/9090"))]);
    let place = place.to_str().unwrap();
    for arguments in
        [&["policy", "diff", "-f", place][..], &["policy", "apply", place, "--dry-run"]]
    {
        let said = shop.mesh.meshctl(arguments).unwrap();
        assert!(said.contains("closes") && said.contains("becomes tcp/9090"), "{said}");
        assert!(
            said.contains(&format!("live flow of {} ({})", shop.web.id, shop.web.id)),
            "{said}"
        );
    }
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)), "nothing was cut");
    let suspicious = "network: shop
rules:
  - { name: wide, from: { app: web }, to: {}, allow: [tcp] }
  - { name: narrow, from: { app: web }, to: { ap: api }, allow: [tcp/8080] }
";
    let place = folder(&shop.mesh, &[("shop.yaml", suspicious)]);
    let file = place.join("shop.yaml");
    let check = |more: &[&str]| {
        let arguments = [&["policy", "check", file.to_str().unwrap(), "-o", "json"], more].concat();
        shop.mesh.meshctl(&arguments).unwrap()
    };
    let online = check(&[]);
    assert!(online.contains("unknown label key `ap`; did you mean `app`?"), "{online}");
    assert!(online.contains("rule `narrow` does nothing that `wide` does not do"), "{online}");
    let offline = check(&["--offline"]);
    assert!(
        offline.contains("does nothing that") && !offline.contains("unknown label"),
        "{offline}"
    );
    let strict = refused(&shop.mesh, &["policy", "check", file.to_str().unwrap(), "--strict"]);
    assert!(strict.contains("suspicious"), "{strict}");
}

#[test]
fn every_revision_is_kept_and_can_be_explained_and_gone_back_to() {
    let shop = Shop::new(&allow("tcp/8080"));
    let mesh = &shop.mesh;
    let revision = || {
        let log: Vec<PolicyRevision> = mesh.read_as(&["policy", "log"]).unwrap();
        log[0].revision.to_string()
    };
    let first = revision();
    let file = mesh.folder().join("policy.yaml");
    fs::write(&file, allow("tcp/9090")).unwrap();
    mesh.meshctl(&["policy", "apply", file.to_str().unwrap(), "-m", "ticket 7"]).unwrap();
    let log = mesh.meshctl(&["policy", "log"]).unwrap();
    assert!(log.contains("ticket 7") && log.contains("user:admin"), "{log}");
    assert!(log.contains(&mesh.site.v4.to_string()), "from where: {log}");
    assert_eq!(mesh.meshctl(&["policy", "show", &first]).unwrap(), allow("tcp/8080"));
    let changed = mesh.meshctl(&["policy", "diff", &first, &revision()]).unwrap();
    assert!(changed.contains("tcp/8080 becomes tcp/9090"), "{changed}");
    let explain = |at: &[&str]| {
        let question = ["explain", "--from", "app=web", "--to", "app=api", "--port", "tcp/8080"];
        mesh.meshctl(&[&question, at].concat()).unwrap()
    };
    assert!(explain(&[]).contains("denied"));
    assert!(explain(&["--at", &first]).contains("allowed"));
    mesh.meshctl(&["quarantine", "app=api", "-m", "looks odd"]).unwrap();
    let quarantined = mesh.revision().unwrap().to_string();
    mesh.meshctl(&["release", "app=api"]).unwrap();
    assert!(
        explain(&["--at", &quarantined]).contains("quarantine"),
        "a quarantine of the past counts for the past"
    );
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    mesh.meshctl(&["policy", "rollback", &first]).unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let audit = mesh.meshctl(&["audit"]).unwrap();
    assert!(
        audit.contains("rolled the policy of shop back") && audit.contains("looks odd"),
        "{audit}"
    );
    let early = refused(mesh, &["policy", "show", "99999"]);
    assert!(early.contains("there is no revision 99999 yet"), "{early}");
}

#[test]
fn a_credential_reaches_as_far_as_its_role_and_its_networks() {
    let mesh = mesh();
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.43.0.0/16"]).unwrap();
    let file = |name: &str| mesh.folder().join(format!("{name}.json"));
    for (name, role) in [("look", "viewer"), ("guard", "operator"), ("own", "owner")] {
        let made = mesh
            .meshctl(&["credential", "create", name, "--role", role, "--network", "shop"])
            .unwrap();
        fs::write(file(name), made).unwrap();
    }
    let tries = |name: &str, arguments: &[&str]| -> String {
        let context = file(name);
        let mut command = std::process::Command::new(mesh.binaries.path("meshctl"));
        command.arg("--context").arg(context).args(arguments);
        let out = mesh.site.netns.run(|| command.output()).unwrap().unwrap();
        String::from_utf8([out.stdout, out.stderr].concat()).unwrap()
    };
    let policy = folder(&mesh, &[("a.yaml", "network: shop\n"), ("b/lab.yaml", "network: lab\n")]);
    let (shop, lab) = (policy.join("a.yaml"), policy.join("b"));
    let (shop, lab) = (shop.to_str().unwrap(), lab.to_str().unwrap());
    assert!(tries("look", &["network", "list"]).contains("shop"));
    assert!(!tries("look", &["network", "list"]).contains("lab"), "it sees its own");
    assert!(tries("look", &["policy", "apply", shop, "--dry-run"]).contains("would get"));
    assert!(
        tries("look", &["policy", "apply", lab, "--dry-run"]).contains("no say in network `lab`")
    );
    assert!(tries("look", &["policy", "apply", shop]).contains("needs that of an owner"));
    assert!(tries("look", &["quarantine", "app=x", "--network", "shop"]).contains("operator"));
    assert!(
        tries("guard", &["quarantine", "app=x", "--network", "shop", "--even-if-none"])
            .contains("0 workloads")
    );
    assert!(tries("guard", &["quarantine", "app=x"]).contains("name one with `--network`"));
    assert!(
        tries("guard", &["quarantine", "app=x", "--network", "lab"])
            .contains("no say in network `lab`")
    );
    assert!(tries("guard", &["policy", "apply", shop]).contains("owner"));
    assert!(tries("own", &["policy", "apply", shop]).contains("network shop has"));
    assert!(tries("own", &["policy", "apply", lab]).contains("no say in network `lab`"));
    assert!(tries("own", &["token", "create"]).contains("admin"));
    assert!(tries("own", &["network", "create", "x", "--cidr", "10.9.0.0/16"]).contains("admin"));
    let guarded = folder(
        &mesh,
        &[(
            "g.yaml",
            "network: shop\nguardrails: [{ name: g, from: {}, to: {}, deny: [tcp/22] }]\n",
        )],
    );
    assert!(
        tries("own", &["policy", "apply", guarded.to_str().unwrap()]).contains("belong to admins")
    );
    mesh.meshctl(&["credential", "revoke", "own"]).unwrap();
    assert!(tries("own", &["network", "list"]).contains("credential is unknown"));
    let listed = mesh.meshctl(&["credential", "list"]).unwrap();
    assert!(
        listed.contains("guard") && listed.contains("operator") && !listed.contains("own "),
        "{listed}"
    );
}

#[test]
fn what_would_be_denied_is_counted_and_passes_while_it_is_observed() {
    let shop = Shop::new(&format!("mode: observe\n{}", allow("tcp/8080")));
    let _echoes = [8080, 9090].map(|port| Echo::start(&shop.api.netns, port));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 9090, 64, PATIENCE), "no rule allows it");
    let observed = |mesh: &Mesh| {
        let links: Links = mesh.read_as(&["links", "--observed"]).unwrap();
        links.items.iter().map(|link| link.observed).sum::<u64>()
    };
    let first = observed(&shop.mesh);
    assert!(first >= 4, "the packets of one connection: {first}");
    let explained = shop
        .mesh
        .meshctl(&["explain", "--from", "app=web", "--to", "app=api", "--port", "tcp/9090"])
        .unwrap();
    assert!(explained.contains("observed (it passes, and would be denied)"), "{explained}");
    let denying = "network: shop
rules:
  - { name: all, from: { app: web }, to: { app: api }, allow: [tcp] }
  - { name: not-9090, from: {}, to: {}, deny: [tcp/9090], observe: true }
";
    shop.mesh.apply(denying).unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 9090, 64, PATIENCE), "one rule is observed");
    assert!(observed(&shop.mesh) > first);
    shop.mesh.apply(&denying.replace(", observe: true", "")).unwrap();
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 9090, 64, SILENCE));
}

#[test]
fn a_suggestion_explains_what_was_seen_and_can_be_applied() {
    let shop = Shop::new("network: shop\nmode: observe\n");
    let _echoes = [8080, 9090].map(|port| Echo::start(&shop.api.netns, port));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v6(), 9090, 64, PATIENCE));
    let suggested = shop.mesh.meshctl(&["policy", "suggest", "--since", "10m"]).unwrap();
    assert!(suggested.contains("web-to-api"), "{suggested}");
    assert!(suggested.contains("tcp/8080") && suggested.contains("tcp/9090"), "{suggested}");
    shop.mesh.apply(&suggested).unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 22, 64, SILENCE));
    let links = shop.mesh.links().unwrap().items;
    assert_eq!(links.iter().filter(|link| !link.acl.entries().is_empty()).count(), 1);
}

#[test]
fn a_workload_declares_who_reaches_it_within_what_the_policy_lets_it() {
    let mut mesh = mesh();
    let nodes = [mesh.node("cloud").start().unwrap(), mesh.node("rack").start().unwrap()];
    let web = nodes[0].attach("shop", "app=web").unwrap();
    let narrow = nodes[1]
        .workload("shop", "app=api")
        .accept_from("app=web, port=tcp/8080")
        .attach()
        .unwrap();
    let other = nodes[1]
        .workload("shop", "app=own")
        .label("meshward.accept-from=app=web, port=tcp/8080")
        .attach()
        .unwrap();
    let _echoes = [(&narrow, 8080), (&narrow, 9090), (&other, 8080)]
        .map(|(at, port)| Echo::start(&at.netns, port));
    mesh.apply(&allow("tcp")).unwrap();
    assert!(tcp_echoes(&web.netns, narrow.v4(), 8080, 64, PATIENCE));
    assert!(
        !tcp_echoes(&web.netns, narrow.v4(), 9090, 64, SILENCE),
        "it narrows what policy allows"
    );
    assert!(
        !tcp_echoes(&web.netns, other.v4(), 8080, 64, SILENCE),
        "and cannot open what policy does not"
    );
    mesh.apply(&format!("declarations: open\n{}", allow("tcp"))).unwrap();
    assert!(tcp_echoes(&web.netns, other.v4(), 8080, 64, PATIENCE), "unless the policy lets it");
    let walled = format!(
        "declarations: open
{}guardrails: [{{ name: wall, from: {{}}, to: {{ app: own }}, deny: [any] }}]
",
        allow("tcp")
    );
    mesh.apply(&walled).unwrap();
    assert!(!tcp_echoes(&web.netns, other.v4(), 8080, 64, SILENCE), "a guardrail stands above it");
    let bad = nodes[1]
        .workload("shop", "app=own")
        .accept_from("app=web, port=tcp/x")
        .attach()
        .err()
        .unwrap()
        .to_string();
    assert!(bad.contains("is not a number"), "{bad}");
}

#[test]
fn the_schema_is_printed_for_editors() {
    let mesh = mesh();
    let schema: serde_json::Value =
        serde_json::from_str(&mesh.meshctl(&["policy", "schema"]).unwrap()).unwrap();
    assert_eq!(schema["properties"]["rules"]["items"]["$ref"], "#/$defs/rule");
}
