use super::{Terraform, mesh, revision};
use meshward_api_types::{Context, Credential, Network, NodeState, Token};
use meshward_lab::Mesh;
use serde::de::IgnoredAny;
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// One of everything that needs no node.
const ALL: &str = r#"
resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16", "fd42::/48"]
}

resource "meshward_policy" "shop" {
  network = meshward_network.shop.id
  files = {
    "shop.yaml" = <<-POLICY
      network: shop
      rules: [{ name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/8080] }]
    POLICY
  }
  service {
    name    = "api"
    for     = "app=api"
    ports   = ["tcp/80 to 8080"]
    prefer  = ["site"]
    weights = [{ selector = "version=2", weight = 5 }]
  }
  rule {
    name  = "api-to-db"
    from  = "app=api, env in (prod,stage)"
    to    = "app=db"
    allow = ["tcp/5432"]
  }
  test {
    from   = "app=web"
    to     = "app=db"
    port   = "tcp/5432"
    expect = "deny"
  }
}

resource "meshward_admission" "shop" {
  network = meshward_network.shop.id
  rule {
    name   = "web-is-ours"
    for    = "app=web"
    images = ["registry.example/shop/*"]
  }
}

resource "meshward_join_token" "rack" {
  site           = "rack"
  uses           = 3
  networks       = [meshward_network.shop.id]
  needs_approval = true
}

resource "meshward_node" "gw1" {
  name   = "gw1"
  labels = { tier = "edge" }
}

resource "meshward_route" "legacy" {
  network = meshward_network.shop.id
  node    = meshward_node.gw1.id
  prefix  = "10.8.0.0/24"
}

resource "meshward_route" "internet" {
  for_each = toset(["0.0.0.0/0", "::/0"])
  network  = meshward_network.shop.id
  node     = meshward_node.gw1.id
  prefix   = each.value
}

resource "meshward_service_account" "ci" {
  name     = "ci"
  role     = "owner"
  networks = [meshward_network.shop.id]
}
"#;

const ADDRESSES: [&str; 9] = [
    "meshward_admission.shop",
    "meshward_join_token.rack",
    "meshward_network.shop",
    "meshward_node.gw1",
    "meshward_policy.shop",
    "meshward_route.internet[\"0.0.0.0/0\"]",
    "meshward_route.internet[\"::/0\"]",
    "meshward_route.legacy",
    "meshward_service_account.ci",
];

fn each(action: &str) -> Vec<String> {
    ADDRESSES.iter().map(|address| format!("{address} {action}")).collect()
}

/// Returns the configuration with another value for every attribute that is updated in place.
fn changed() -> String {
    ALL.replace("tier = \"edge\"", "tier = \"core\"")
        .replace("allow = [\"tcp/5432\"]", "allow = [\"tcp/5432\", \"icmp\"]")
        .replace("registry.example/shop/*", "registry.example/*")
        .replace("role     = \"owner\"", "role     = \"operator\"")
}

#[test]
fn what_is_planned_is_made_changed_and_taken_away_by_one_call_each() {
    let mesh = mesh();
    let terraform = Terraform::new(&mesh, ALL);
    terraform.ok(&["validate", "-no-color"]);
    assert_eq!(terraform.plan(), each("create"));
    let before = revision(&mesh);
    terraform.apply();
    assert_eq!(revision(&mesh) - before, ADDRESSES.len() as u64);
    assert_eq!(terraform.plan(), Vec::<String>::new(), "the second plan is empty");
    assert_eq!(mesh.list::<Network>("networks").unwrap()[0].prefixes.len(), 2);
    let said = mesh
        .meshctl(&["explain", "--from", "app=web", "--to", "app=api", "--port", "tcp/8080"])
        .unwrap();
    assert!(said.contains("web-to-api"), "{said}");

    let changed = changed();
    terraform.write(&changed);
    let updated = ["admission.shop", "node.gw1", "policy.shop", "service_account.ci"];
    assert_eq!(terraform.plan(), updated.map(|address| format!("meshward_{address} update")));
    let before = revision(&mesh);
    terraform.apply();
    assert_eq!(revision(&mesh) - before, updated.len() as u64);
    assert_eq!(terraform.plan(), Vec::<String>::new());
    let nodes = mesh.nodes().unwrap();
    assert_eq!(nodes[0].labels.get("tier"), Some("core"));
    assert_eq!(nodes[0].state, NodeState::Expected);

    terraform.write(&changed.replace("uses           = 3", "uses           = 4"));
    assert_eq!(terraform.plan(), ["meshward_join_token.rack replace"]);

    terraform.ok(&["destroy", "-auto-approve", "-no-color"]);
    for noun in ["networks", "nodes", "tokens", "routes"] {
        assert_eq!(mesh.list::<IgnoredAny>(noun).unwrap().len(), 0, "{noun}");
    }
    assert_eq!(mesh.list::<Credential>("credentials").unwrap().len(), 1);
}

#[test]
fn what_is_there_is_imported_and_read() {
    let mesh = mesh();
    let terraform = Terraform::new(&mesh, ALL);
    terraform.apply();
    let token = mesh.list::<Token>("tokens").unwrap().remove(0).id;
    let state = terraform.folder.join("terraform.tfstate");
    fs::remove_file(&state).unwrap();
    let refused = terraform.errors(&["apply", "-auto-approve", "-json"]);
    assert!(
        refused.iter().any(|said| said.text.contains("There is a network `shop` already")),
        "{refused:?}"
    );
    let _ = fs::remove_file(&state);

    let ids = [
        ("meshward_network.shop", "shop"),
        ("meshward_policy.shop", "shop"),
        ("meshward_admission.shop", "shop"),
        ("meshward_join_token.rack", &token),
        ("meshward_node.gw1", "gw1"),
        ("meshward_route.internet[\"0.0.0.0/0\"]", "shop/gw1/0.0.0.0/0"),
        ("meshward_route.internet[\"::/0\"]", "shop/gw1/::/0"),
        ("meshward_route.legacy", "shop/gw1/10.8.0.0/24"),
        ("meshward_service_account.ci", "ci"),
    ];
    for (address, id) in ids {
        terraform.ok(&["import", "-no-color", address, id]);
    }
    // What is said only when a token is made is taken from the configuration.
    assert_eq!(terraform.plan(), ["meshward_join_token.rack update"]);
    let before = revision(&mesh);
    terraform.apply();
    assert_eq!((terraform.plan(), revision(&mesh)), (vec![], before));
    for (address, id, says) in [
        ("meshward_route.other", "shop", "NETWORK/NODE/PREFIX"),
        ("meshward_node.other", "nobody", "non-existent"),
    ] {
        let more = r#"resource "meshward_route" "other" {
  network = "shop"
  node = "a"
  prefix = "10.9.0.0/24"
}
resource "meshward_node" "other" {
  name = "nobody"
}
"#;
        terraform.write(&format!("{ALL}{more}"));
        let out = terraform.run(&["import", "-no-color", address, id]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(says), "{said}");
    }

    terraform.write(&format!("{ALL}{}", SOURCES.replace("TOKEN", &token)));
    terraform.apply();
    let read = terraform.output("read");
    assert_eq!(read["mtu"], 1420);
    assert_eq!(read["files"], serde_json::json!(["shop.yaml"]));
    assert_eq!(
        (&read["rule"], &read["images"]),
        (&"api-to-db".into(), &"registry.example/shop/*".into())
    );
    assert_eq!((&read["site"], &read["tier"]), (&"rack".into(), &"edge".into()));
    assert_eq!((&read["role"], &read["state"]), (&"owner".into(), &"not-advertised".into()));
    assert_eq!(read["ports"], serde_json::json!(["tcp/80 to 8080"]));
    assert_eq!(read["at"], serde_json::json!(["10.42.255.1", "fd42:0:0:ffff::1"]));
    assert_eq!(read["ready"], 0);
    assert_eq!((&read["links"], &read["tests"]), (&0.into(), &1.into()));
}

const SOURCES: &str = r#"
data "meshward_network" "shop" {
  name = "shop"
}
data "meshward_policy" "shop" {
  network = "shop"
}
data "meshward_admission" "shop" {
  network = "shop"
}
data "meshward_join_token" "rack" {
  id = "TOKEN"
}
data "meshward_node" "gw1" {
  name = "gw1"
}
data "meshward_service_account" "ci" {
  name = "ci"
}
data "meshward_route" "legacy" {
  network = "shop"
  node    = "gw1"
  prefix  = "10.8.0.0/24"
}
data "meshward_service" "api" {
  network = "shop"
  name    = "api"
}
data "meshward_links" "shop" {
  network = "shop"
}
data "meshward_policy_check" "shop" {
  live  = true
  files = {
    "p.yaml" = <<-POLICY
      network: shop
      tests: [{ from: { app: web }, to: { app: db }, port: tcp/1, expect: deny }]
    POLICY
  }
}
output "read" {
  value = {
    mtu    = data.meshward_network.shop.mtu
    files  = keys(data.meshward_policy.shop.files)
    rule   = data.meshward_policy.shop.rule[0].name
    images = data.meshward_admission.shop.rule[0].images[0]
    site   = data.meshward_join_token.rack.site
    tier   = data.meshward_node.gw1.labels.tier
    role   = data.meshward_service_account.ci.role
    state  = data.meshward_route.legacy.state
    ports  = data.meshward_service.api.ports
    at     = data.meshward_service.api.addresses
    ready  = data.meshward_service.api.ready
    links  = length(data.meshward_links.shop.links)
    tests  = data.meshward_policy_check.shop.tests_passed
  }
}
"#;

#[test]
fn what_somebody_else_changes_is_seen_and_mended() {
    let mesh = mesh();
    let terraform = Terraform::new(&mesh, ALL);
    terraform.apply();
    let drift = |change: &dyn Fn(&Mesh), wanted: &[&str]| {
        change(&mesh);
        assert_eq!(terraform.plan(), wanted);
        terraform.apply();
        assert_eq!(terraform.plan(), Vec::<String>::new());
    };
    let says = |arguments: &[&str]| drop(mesh.meshctl(arguments).unwrap());
    drift(
        &|_| says(&["nodes", "approve", "gw1", "-l", "tier=other"]),
        &["meshward_node.gw1 update"],
    );
    drift(
        &|_| says(&["credential", "change", "ci", "--role", "viewer"]),
        &["meshward_service_account.ci update"],
    );
    drift(
        &|_| says(&["route", "disapprove", "10.8.0.0/24", "--node", "gw1", "--network", "shop"]),
        &["meshward_route.legacy create"],
    );
    drift(&|_| says(&["credential", "revoke", "ci"]), &["meshward_service_account.ci create"]);
    let token = mesh.list::<Token>("tokens").unwrap().remove(0).id;
    drift(&|_| says(&["token", "revoke", &token]), &["meshward_join_token.rack create"]);
    // Somebody's own policy takes the place of all of ours, admission included.
    drift(
        &|mesh| {
            drop(
                mesh.apply("network: shop\nrules: [{ name: x, from: {}, to: {}, allow: [any] }]\n")
                    .unwrap(),
            );
        },
        &["meshward_admission.shop create", "meshward_policy.shop update"],
    );
    let said =
        mesh.meshctl(&["explain", "--from", "app=a", "--to", "app=b", "--port", "tcp/1"]).unwrap();
    assert!(said.contains("default"), "{said}");
    drift(
        &|_| says(&["nodes", "remove", "gw1"]),
        &[
            "meshward_node.gw1 create",
            "meshward_route.internet[\"0.0.0.0/0\"] create",
            "meshward_route.internet[\"::/0\"] create",
            "meshward_route.legacy create",
        ],
    );
}

#[test]
fn what_somebody_else_has_changed_since_the_plan_is_not_overwritten() {
    let mesh = mesh();
    let terraform = Terraform::new(&mesh, ALL);
    terraform.apply();
    let changed = changed();
    terraform.write(&changed);
    terraform.ok(&["plan", "-out=plan", "-no-color"]);
    let says = |arguments: &[&str]| drop(mesh.meshctl(arguments).unwrap());
    says(&["nodes", "approve", "gw1", "-l", "tier=theirs"]);
    says(&["credential", "change", "ci", "--role", "viewer"]);
    let theirs =
        "network: shop\nadmission: [{ name: theirs, images: [registry.example/theirs] }]\n";
    mesh.apply(theirs).unwrap();
    let before = revision(&mesh);
    let refused = terraform.errors(&["apply", "-json", "plan"]);
    let kept = refused.iter().filter(|said| said.text.contains("Changed since the plan")).count();
    assert_eq!((kept, refused.len()), (4, 4), "{refused:?}");
    assert_eq!(revision(&mesh), before, "nothing of theirs was overwritten");
    assert_eq!(mesh.meshctl(&["policy", "get", "shop"]).unwrap(), theirs);
    terraform.apply();
    assert_eq!(terraform.plan(), Vec::<String>::new());
    assert_eq!(mesh.nodes().unwrap()[0].labels.get("tier"), Some("core"));
}

#[test]
fn hundreds_of_resources_are_read_by_a_few_calls_and_each_is_made_by_one() {
    let mesh = mesh();
    let many = r#"
resource "meshward_network" "n" {
  count    = 60
  name     = "n${count.index}"
  prefixes = ["10.${count.index + 100}.0.0/24"]
}
resource "meshward_policy" "p" {
  count   = 60
  network = meshward_network.n[count.index].id
  rule {
    name  = "all"
    from  = ""
    to    = ""
    allow = ["any"]
  }
}
resource "meshward_node" "n" {
  count = 60
  name  = "node-${count.index}"
}
"#;
    let (context, calls) = counted(&mesh);
    let terraform = Terraform::new(&mesh, "");
    terraform.write_as(&context, many);
    terraform.apply();
    // The provider begins twice, to plan and to apply, and asks each time whether the coordinator
    // is there and the token good.
    assert_eq!(calls.swap(0, Relaxed), 180 + 2);
    assert_eq!(terraform.plan(), Vec::<String>::new());
    let reading = calls.swap(0, Relaxed);
    assert!((4..=30).contains(&reading), "{reading} calls to read 180 resources");
    terraform.ok(&["destroy", "-auto-approve", "-refresh=false", "-no-color"]);
    assert_eq!(calls.swap(0, Relaxed), 180 + 2);
}

/// A context in which every request is counted on its way to the coordinator: each is a connection.
fn counted(mesh: &Mesh) -> (PathBuf, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let listener = mesh.site.netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let context = mesh.read_context().unwrap();
    let server = context.server.clone();
    let context = Context { server: listener.local_addr().unwrap().to_string(), ..context };
    let file = mesh.folder().join("counted.json");
    fs::write(&file, serde_json::to_vec(&context).unwrap()).unwrap();
    let (seen, netns) = (calls.clone(), mesh.site.netns.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            seen.fetch_add(1, Relaxed);
            let far = netns.run(|| TcpStream::connect(&server)).unwrap().unwrap();
            for (mut from, mut to) in
                [(stream.try_clone().unwrap(), far.try_clone().unwrap()), (far, stream)]
            {
                thread::spawn(move || copy(&mut from, &mut to));
            }
        }
    });
    (file, calls)
}

fn copy(from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn the_provider_is_installed_from_a_mirror_as_from_a_registry() {
    let mesh = mesh();
    let mut terraform = Terraform::new(&mesh, ALL);
    let mirror = mesh.folder().join("mirror");
    let version = env!("CARGO_PKG_VERSION");
    let place =
        mirror.join(format!("registry.terraform.io/meshward/meshward/{version}/linux_amd64"));
    fs::create_dir_all(&place).unwrap();
    symlink(
        mesh.binaries.path("terraform-provider-meshward"),
        place.join(format!("terraform-provider-meshward_v{version}")),
    )
    .unwrap();
    terraform.program.settings = mesh.folder().join("mirror.rc");
    let text = format!(
        "provider_installation {{\n  filesystem_mirror {{ path = \"{}\" }}\n}}\n",
        mirror.display()
    );
    fs::write(&terraform.program.settings, text).unwrap();
    terraform.ok(&["init", "-no-color"]);
    let lock = fs::read_to_string(terraform.folder.join(".terraform.lock.hcl")).unwrap();
    assert!(lock.contains(&format!("version = \"{version}\"")) && lock.contains("h1:"), "{lock}");
    assert_eq!(terraform.plan().len(), ADDRESSES.len());
}
