//! Virtual secure boot: what a container has to be before it may talk.

use crate::{
    docker::{Host, page},
    support::{Echo, PATIENCE, SILENCE, Stream},
};
use meshward_api_types::local::State;
use meshward_lab::{ImageKey, Registry};
use std::time::Duration;

/// Signatures are looked for again every ten seconds.
const LOOKED_AGAIN: Duration = Duration::from_secs(20);

const RULES: &str = "network: shop
rules:
  - { name: api-to-web, from: { app: api }, to: { app: web }, allow: [tcp/80] }
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/7000] }
";

/// The rules, and that `web` is signed by a key and comes from `shop`.
fn signed(key: &ImageKey) -> String {
    let pem = key.pem().unwrap().replace('\n', "\n    ");
    format!(
        "{RULES}keys:\n  release: |\n    {pem}\n\
         admission:\n  - {{ name: web-is-released, for: {{ app: web }}, images: \
         [localhost:5000/shop/*], signed_by: [release] }}\n"
    )
}

struct Shop {
    host: Host,
    registry: Registry,
    key: ImageKey,
}

impl Shop {
    fn new() -> Self {
        let key = ImageKey::new().unwrap();
        let host = Host::new(&signed(&key));
        let registry =
            Registry::start(&host.node.site, &host.mesh.folder().join("registry")).unwrap();
        Self { host, registry, key }
    }

    /// Pushes an image `shop/NAME`.
    fn push(&self, name: &str) -> String {
        self.registry.push(&self.host.docker, &format!("shop/{name}"), "1", name).unwrap()
    }

    fn audit(&self) -> String {
        self.host.mesh.meshctl(&["audit", "--limit", "100"]).unwrap()
    }
}

#[test]
fn only_an_image_that_the_right_key_has_signed_may_talk() {
    let shop = Shop::new();
    let (host, registry) = (&shop.host, &shop.registry);
    let right = shop.push("web");
    registry.sign("shop/web", "1", &shop.key).unwrap();
    let web = host.start("web", &["app=web"], &[&right]);
    assert_eq!(page(&host.api.netns, web.v4(), PATIENCE).as_deref(), Some("web\n"));
    let labels = host.workload("web").unwrap().labels;
    assert_eq!(labels.get("meshward/image.signed-by"), Some("release"));
    assert_eq!(labels.get("meshward/image.repo"), Some("localhost:5000/shop/web"));
    assert_eq!(labels.get("meshward/site"), Some("host"));

    let unsigned = shop.push("unsigned");
    let wrong = shop.push("wrong");
    registry.sign("shop/wrong", "1", &ImageKey::new().unwrap()).unwrap();
    // A good signature, but of another image.
    let tampered = shop.push("tampered");
    let (own, other) =
        (registry.digest("shop/tampered", "1").unwrap(), registry.digest("shop/web", "1").unwrap());
    registry.attach("shop/tampered", &own, &other, &shop.key).unwrap();
    for (name, image) in [("unsigned", &unsigned), ("wrong", &wrong), ("tampered", &tampered)] {
        let id = host.start_waiting(name, &["app=web"], &[image]).unwrap();
        let why = host.wait_refused(name);
        assert!(
            why.contains("web-is-released") && why.contains("no valid signature by release"),
            "{why}"
        );
        let container = host.container(name, id);
        assert!(page(&host.api.netns, container.v4(), SILENCE).is_none(), "{name}");
        assert!(shop.audit().contains(&format!("refused {name} (")), "{}", shop.audit());
        let shown = host.node.meshctl(&["attached"]).unwrap();
        assert!(shown.contains("no valid signature"), "{shown}");
    }
    // An image of elsewhere, and a process, are not what is wanted either.
    host.start_waiting("local", &["app=web"], &[]).unwrap();
    assert!(host.wait_refused("local").contains("comes from elsewhere"));
    let process = host.node.attach("shop", "app=web").err().unwrap().to_string();
    assert!(process.contains("no container runtime"), "{process}");
    // Whoever does not say that it is `web` may be what it likes.
    host.start("other", &["app=other"], &[]);
}

#[test]
fn a_signature_that_comes_later_and_a_rule_that_changes_count() {
    let shop = Shop::new();
    let (host, registry) = (&shop.host, &shop.registry);
    let image = shop.push("web");
    let id = host.start_waiting("web", &["app=web"], &[&image]).unwrap();
    host.wait_refused("web");
    registry.sign("shop/web", "1", &shop.key).unwrap();
    let begun = std::time::Instant::now();
    while !host.workload("web").unwrap().refused.is_empty() {
        assert!(begun.elapsed() < LOOKED_AGAIN, "the signature is found");
        std::thread::sleep(Duration::from_millis(100));
    }
    let web = host.container("web", id);
    let _echo = Echo::start(&host.api.netns, 7000);
    let stream = Stream::start(&web.netns, host.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));

    // The key is another now: what runs is judged anew, and cut.
    let other = ImageKey::new().unwrap();
    let folder = host.mesh.folder().join("next.yaml");
    std::fs::write(&folder, signed(&other)).unwrap();
    let next = folder.to_string_lossy().into_owned();
    let said = host.mesh.meshctl(&["policy", "apply", &next, "--dry-run"]).unwrap();
    assert!(said.contains("refuses web ("), "{said}");
    assert!(stream.flows(PATIENCE), "a dry run does nothing");
    host.mesh.meshctl(&["policy", "apply", &next]).unwrap();
    host.wait_refused("web");
    assert!(!stream.flows(SILENCE), "an established connection is cut");
    let links = host.mesh.links().unwrap().items;
    assert!(links.iter().all(|link| link.acl.entries().is_empty()), "{links:?}");
    let back = host.mesh.apply(&signed(&shop.key)).unwrap();
    assert!(back.contains("lets in web ("), "{back}");
    assert!(stream.flows(PATIENCE), "and goes on when it is let in again");
}

#[test]
fn a_verdict_is_its_containers_own() {
    let shop = Shop::new();
    let host = &shop.host;
    let right = shop.push("web");
    shop.registry.sign("shop/web", "1", &shop.key).unwrap();
    let web = host.start("web", &["app=web"], &[&right]);
    host.docker.run(&["rm", "-f", "web"]).unwrap();
    host.mesh.wait(|| host.workload("web").is_none()).unwrap();
    // The same name, address and labels; but another image.
    let evil = shop.push("evil");
    host.docker.run(&["network", "rm", "shop"]).unwrap();
    let plugin = host.docker.plugin.as_str();
    let create = [
        "network",
        "create",
        "-d",
        plugin,
        "--ipam-driver",
        plugin,
        "--subnet",
        "10.42.0.0/16",
        "shop",
    ];
    host.docker.run(&create).unwrap();
    let address = web.v4().to_string();
    let id = host.start_waiting("web", &["app=web"], &["--ip", &address, &evil]).unwrap();
    assert!(host.wait_refused("web").contains("no valid signature"));
    let evil = host.container("web", id);
    assert_eq!(evil.v4(), web.v4());
    assert!(page(&host.api.netns, evil.v4(), SILENCE).is_none());
}

#[test]
fn privileges_and_set_up_are_judged() {
    let plain = format!("{RULES}admission: [{{ name: no-privileges }}]\n");
    let host = Host::new(&plain);
    for (name, flags, says) in [
        ("unconfined", vec!["--security-opt", "seccomp=unconfined"], "security seccomp=unconfined"),
        ("capable", vec!["--cap-add", "NET_ADMIN"], "capability NET_ADMIN"),
        ("host-pid", vec!["--pid", "host"], "host pid namespace"),
    ] {
        host.start_waiting(name, &["app=web"], &flags).unwrap();
        let why = host.wait_refused(name);
        assert!(why.contains("privileges that are not listed") && why.contains(says), "{why}");
    }
    host.start("web", &["app=web"], &[]);
    // Set up just like this, and in no other way.
    let config = host.workload("web").unwrap().measurement.unwrap().config;
    let fixed = format!(
        "{RULES}admission: [{{ name: fixed, for: {{ app: web }}, config: ['{config}'] }}]\n"
    );
    host.mesh.apply(&fixed).unwrap();
    host.wait_let_in("web");
    host.start("web2", &["app=web"], &[]);
    host.start_waiting("web3", &["app=web"], &["-e", "EXTRA=1"]).unwrap();
    assert!(host.wait_refused("web3").contains("set up in another way"));
}

#[test]
fn labels_can_change_while_a_workload_runs() {
    let host = Host::new(RULES);
    let web = host.start("web", &["app=web"], &[]);
    assert!(page(&host.api.netns, web.v4(), PATIENCE).is_some());
    let id = host.workload("web").unwrap().id.to_string();
    let said = host.node.meshctl(&["label", &id, "app=old", "tier=x"]).unwrap();
    assert!(said.contains("app=old,tier=x"), "{said}");
    let is = |app: &str| host.workload("web").unwrap().labels.get("app") == Some(app);
    host.mesh.wait(|| is("old")).unwrap();
    assert!(page(&host.api.netns, web.v4(), SILENCE).is_none());
    host.node.meshctl(&["label", &id, "app=web", "tier-"]).unwrap();
    host.mesh.wait(|| is("web")).unwrap();
    assert!(page(&host.api.netns, web.v4(), PATIENCE).is_some());
    let error = host.node.meshctl(&["label", &id, "meshward/site=aws"]).unwrap_err().to_string();
    assert!(error.contains("cannot be set by hand"), "{error}");
}

#[test]
fn while_the_coordinator_is_away_a_node_lets_in_what_is_like_what_was_let_in() {
    let mut shop = Shop::new();
    let right = shop.push("web");
    shop.registry.sign("shop/web", "1", &shop.key).unwrap();
    let unsigned = shop.push("unsigned");
    shop.host.start("web", &["app=web"], &[&right]);
    shop.host.mesh.coordinator.kill();
    let host = &shop.host;
    let state = |name: &str| {
        let all = host.node.attached().unwrap();
        let own = all.into_iter().find(|workload| workload.name.as_str() == name);
        own.map(|own| (own.state, own.addresses[0]))
    };
    let is = |name: &str, wanted: &State| state(name).is_some_and(|(state, _)| state == *wanted);
    host.start_waiting("again", &["app=web"], &[&right]).unwrap();
    host.mesh.wait(|| is("again", &State::Vouched)).unwrap();
    let address = state("again").unwrap().1;
    assert!(page(&host.api.netns, address, PATIENCE).is_some());
    host.start_waiting("unsigned", &["app=web"], &[&unsigned]).unwrap();
    host.mesh.wait(|| is("unsigned", &State::Waiting)).unwrap();
    let address = state("unsigned").unwrap().1;
    assert!(page(&host.api.netns, address, SILENCE).is_none());
    shop.host.mesh.restart_coordinator().unwrap();
    assert!(shop.host.wait_refused("unsigned").contains("no valid signature"));
    shop.host.wait_let_in("again");
}

#[test]
fn what_shares_the_namespace_of_a_container_has_to_be_what_that_has_to_be() {
    let shop = Shop::new();
    let (host, registry) = (&shop.host, &shop.registry);
    let right = shop.push("web");
    registry.sign("shop/web", "1", &shop.key).unwrap();
    let web = host.start("web", &["app=web"], &[&right]);
    let _echo = Echo::start(&host.api.netns, 7000);
    let stream = Stream::start(&web.netns, host.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    let join = |name: &str, image: &str| {
        let shared =
            ["run", "-d", "--name", name, "--network", "container:web", image, "sleep", "1000"];
        host.docker.run(&shared).unwrap();
    };
    let gone = |name: &str| host.docker.run(&["rm", "-f", name]).unwrap();

    // Signed like the workload itself: nothing changes.
    join("twin", &right);
    let names = || -> Vec<String> {
        let measured = host.workload("web").unwrap().measurement.unwrap();
        measured.sharing.into_iter().map(|other| other.name).collect()
    };
    host.mesh.wait(|| names() == ["twin"]).unwrap();
    assert!(stream.flows(PATIENCE));

    // Not signed: it closes the workload for all, and opens it again when it goes.
    join("debug", "box");
    let why = host.wait_refused("web");
    assert!(
        why.contains("web-is-released: container debug (")
            && why.contains("shares its network namespace"),
        "{why}"
    );
    assert!(!stream.flows(SILENCE), "an established connection is cut");
    assert!(page(&host.api.netns, web.v4(), SILENCE).is_none());
    let shown = host.mesh.meshctl(&["workloads"]).unwrap();
    assert!(shown.contains("refused"), "{shown}");
    gone("debug");
    host.wait_let_in("web");
    let stream = Stream::start(&web.netns, host.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    assert_eq!(names(), ["twin"]);

    // The rule may allow it.
    let file = host.mesh.folder().join("shared.yaml");
    let allowing = signed(&shop.key)
        .replace("signed_by: [release] }", "signed_by: [release], shared: allow }");
    std::fs::write(&file, &allowing).unwrap();
    host.mesh.meshctl(&["policy", "apply", &file.to_string_lossy()]).unwrap();
    join("debug", "box");
    host.mesh.wait(|| names() == ["debug", "twin"]).unwrap();
    assert!(stream.flows(PATIENCE));
    let said = host.mesh.apply(&signed(&shop.key)).unwrap();
    assert!(said.contains("refuses web ("), "{said}");
    assert!(!stream.flows(SILENCE));
    gone("debug");
    host.wait_let_in("web");

    // One that is of the namespace of before shares nothing.
    host.docker.run(&["restart", "-t", "0", "web"]).unwrap();
    host.wait_let_in("web");
    host.mesh.wait(|| names().is_empty()).unwrap();
}

#[test]
fn what_shared_a_namespace_before_that_came_to_the_mesh_is_measured_with_it() {
    let shop = Shop::new();
    let (host, right) = (&shop.host, shop.push("web"));
    shop.registry.sign("shop/web", "1", &shop.key).unwrap();
    host.docker.run(&["network", "create", "plain"]).unwrap();
    let begin = ["run", "-d", "--name", "web", "--network", "plain", "--label", "app=web", &right];
    host.docker.run(&begin).unwrap();
    let shared =
        ["run", "-d", "--name", "debug", "--network", "container:web", "box", "sleep", "1000"];
    host.docker.run(&shared).unwrap();
    // And one that shares it by the name of the other.
    let over =
        ["run", "-d", "--name", "over", "--network", "container:debug", &right, "sleep", "1000"];
    host.docker.run(&over).unwrap();
    host.docker.run(&["network", "connect", "shop", "web"]).unwrap();
    let why = host.wait_refused("web");
    assert!(
        why.contains("container debug (") && why.contains("shares its network namespace"),
        "{why}"
    );
    host.docker.run(&["rm", "-f", "debug"]).unwrap();
    host.wait_let_in("web");
    // Taken off the mesh and on it again, with another guest meanwhile.
    host.docker.run(&["network", "disconnect", "shop", "web"]).unwrap();
    host.mesh.wait(|| host.workload("web").is_none()).unwrap();
    host.docker.run(&shared).unwrap();
    host.docker.run(&["network", "connect", "shop", "web"]).unwrap();
    assert!(host.wait_refused("web").contains("container debug ("));
}

#[test]
fn what_comes_into_a_namespace_while_nobody_can_judge_it_closes_it() {
    let mut shop = Shop::new();
    let right = shop.push("web");
    shop.registry.sign("shop/web", "1", &shop.key).unwrap();
    let web = shop.host.start("web", &["app=web"], &[&right]);
    assert_eq!(page(&shop.host.api.netns, web.v4(), PATIENCE).as_deref(), Some("web\n"));
    shop.host.mesh.coordinator.kill();
    let host = &shop.host;
    host.mesh.wait(|| !host.node.is_connected()).unwrap();
    assert_eq!(
        page(&host.api.netns, web.v4(), PATIENCE).as_deref(),
        Some("web\n"),
        "nothing changes by itself"
    );
    let shared =
        ["run", "-d", "--name", "debug", "--network", "container:web", "box", "sleep", "1000"];
    host.docker.run(&shared).unwrap();
    let attached = || host.node.meshctl(&["attached"]).unwrap();
    host.mesh.wait(|| attached().contains("the coordinator is away")).unwrap();
    assert!(page(&host.api.netns, web.v4(), SILENCE).is_none());
    host.docker.run(&["rm", "-f", "debug"]).unwrap();
    host.mesh.wait(|| !attached().contains("the coordinator is away")).unwrap();
    assert_eq!(page(&host.api.netns, web.v4(), PATIENCE).as_deref(), Some("web\n"));

    // It stays closed over a restart of the daemon, and the coordinator decides when it is back.
    host.docker.run(&shared).unwrap();
    host.mesh.wait(|| attached().contains("the coordinator is away")).unwrap();
    shop.host.node.kill();
    shop.host.node.start().unwrap();
    assert!(page(&shop.host.api.netns, web.v4(), SILENCE).is_none());
    shop.host.mesh.restart_coordinator().unwrap();
    let why = shop.host.wait_refused("web");
    assert!(why.contains("container debug"), "{why}");
    shop.host.docker.run(&["rm", "-f", "debug"]).unwrap();
    shop.host.wait_let_in("web");
    assert_eq!(page(&shop.host.api.netns, web.v4(), PATIENCE).as_deref(), Some("web\n"));
}

#[test]
fn a_container_with_many_labels_is_let_in_by_those_that_policy_names() {
    let shop = Shop::new();
    let (host, right) = (&shop.host, shop.push("web"));
    shop.registry.sign("shop/web", "1", &shop.key).unwrap();
    let notes: Vec<String> =
        (0..300).map(|number| format!("example.com/note-{number}=x")).collect();
    let labels: Vec<&str> = notes.iter().map(String::as_str).chain(["app=web"]).collect();
    let web = host.start("web", &labels, &[&right]);
    assert_eq!(page(&host.api.netns, web.v4(), PATIENCE).as_deref(), Some("web\n"));
    assert!(host.node.printed().contains("of its labels were left out"));
}
