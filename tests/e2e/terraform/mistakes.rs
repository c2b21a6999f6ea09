use super::{Terraform, mesh};
use meshward_api_types::Network;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, process::Stdio};

const NETWORK: &str = r#"resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
}
"#;

/// The type of a resource, its body, what is said, and the attribute that it is said at.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    (
        "meshward_network",
        "name = \"Shop\"\nprefixes = [\"10.42.0.0/16\"]",
        "is not a network name",
        "name",
    ),
    (
        "meshward_network",
        "name = \"shop\"\nprefixes = [\"10.42.0.0/33\"]",
        "is not a prefix; write one such as",
        "prefixes",
    ),
    (
        "meshward_network",
        "name = \"shop\"\nprefixes = [\"10.42.0.1/16\"]",
        "must be written as 10.42.0.0/16",
        "prefixes",
    ),
    (
        "meshward_network",
        "name = \"shop\"\nprefixes = [\"10.42.0.0/16\", \"10.43.0.0/16\"]",
        "one prefix of each address family",
        "prefixes",
    ),
    (
        "meshward_network",
        "name = \"shop\"\nprefixes = [\"10.42.0.0/16\"]\nmtu = 100",
        "from 1280 to 9000",
        "mtu",
    ),
    ("meshward_join_token", "ttl = \"soon\"", "is not a duration", "ttl"),
    ("meshward_join_token", "ttl = \"9000h\"", "365 days", "ttl"),
    (
        "meshward_join_token",
        "ttl = \"1h\"\nrenew_before = \"2h\"",
        "shorter than `ttl`",
        "renew_before",
    ),
    ("meshward_join_token", "uses = 0", "from 1 to 100000", "uses"),
    (
        "meshward_join_token",
        "relay = true\nnetworks = [\"shop\"]",
        "A relay serves all networks",
        "networks",
    ),
    (
        "meshward_node",
        "name = \"n\"\nlabels = { \"meshward/site\" = \"x\" }",
        "cannot be set by hand",
        "labels",
    ),
    (
        "meshward_service_account",
        "name = \"ci\"\nrole = \"king\"",
        "not one of viewer, operator, owner, admin",
        "role",
    ),
    (
        "meshward_service_account",
        "name = \"ci\"\nrole = \"admin\"\nnetworks = [\"shop\"]",
        "omit `networks`",
        "networks",
    ),
    (
        "meshward_route",
        "network = \"shop\"\nnode = \"n\"\nprefix = \"10.8.0.0\"",
        "is not a prefix",
        "prefix",
    ),
    (
        "meshward_device",
        "name = \"d\"\nnetwork = \"shop\"\npublic_key = \"abc\"",
        "key",
        "public_key",
    ),
    ("meshward_policy", "network = \"shop\"", "Set `files`", ""),
    (
        "meshward_policy",
        r#"network = "shop"
rule {
  name = "r"
  from = "app=("
  to = ""
  allow = ["any"]
}"#,
        "is not a selector",
        "from",
    ),
    (
        "meshward_policy",
        r#"network = "shop"
rule {
  name = "r"
  from = ""
  to = ""
  allow = ["tpc/1"]
}"#,
        "`tpc",
        "name",
    ),
    (
        "meshward_policy",
        "network = \"shop\"\nfiles = { \"a.yaml\" = \"network: lab\" }",
        "a.yaml:1:10: this document is for network lab",
        "files",
    ),
    (
        "meshward_policy",
        "network = \"shop\"\n\
         files = { \"a.yaml\" = \"network: shop\\nrules: [{ name: r, from: {}, to: {} }]\" }",
        "a.yaml:2",
        "files",
    ),
    (
        "meshward_admission",
        "network = \"shop\"\nrule {\n  name = \"r\"\n  signed_by = [\"nobody\"]\n}",
        "nobody",
        "name",
    ),
    ("meshward_admission", "network = \"shop\"", "At least 1 \"rule\" blocks", ""),
];

#[test]
fn a_mistake_is_said_at_its_attribute_before_anything_is_asked() {
    let mesh = mesh();
    let terraform = Terraform::new(&mesh, "");
    for (kind, body, says, at) in MISTAKES {
        terraform.write(&format!("resource \"{kind}\" \"x\" {{\n{body}\n}}\n"));
        let said = terraform.errors(&["validate", "-json"]);
        assert_eq!(said.len(), 1, "{kind} {body}: {said:?}");
        said[0].is(says, at);
    }
    assert!(
        mesh.meshctl(&["audit"]).unwrap().lines().count() <= 2,
        "nothing was asked of the coordinator"
    );
}

#[test]
fn a_policy_whose_test_fails_fails_the_plan_with_its_line() {
    let mesh = mesh();
    let policy = "network: shop
rules:
  - { name: all, from: {}, to: {}, allow: [any] }
tests:
  - { from: { app: web }, to: { app: db }, port: tcp/5432, expect: deny }
";
    let terraform = Terraform::new(&mesh, "");
    fs::write(terraform.folder.join("shop.yaml"), policy).unwrap();
    for user in [
        r#"data "meshward_policy_check" "shop" {
  files = { "shop.yaml" = file("shop.yaml") }
}
"#,
        r#"resource "meshward_policy" "shop" {
  network = meshward_network.shop.id
  files = { "shop.yaml" = file("shop.yaml") }
}
"#,
    ] {
        terraform.write(&format!("{NETWORK}{user}"));
        let said = terraform.errors(&["plan", "-json"]);
        said[0].is("shop.yaml:5", "files");
        assert!(said[0].text.contains("all"), "the rule that decides: {said:?}");
    }
    let strict = "data \"meshward_policy_check\" \"shop\" {\n  strict = true\n  files  = { \
        \"shop.yaml\" = \"network: shop\\nrules: [{ name: a, from: {}, to: {}, allow: [any] }, { \
        name: b, from: { app: web }, to: {}, allow: [tcp/1] }]\" }\n}\n";
    terraform.write(strict);
    terraform.errors(&["plan", "-json"])[0].is("shop.yaml:2", "files");
    assert_eq!(mesh.list::<Network>("networks").unwrap().len(), 0);
}

#[test]
fn what_the_coordinator_refuses_is_said_at_its_attribute_and_nothing_is_half_made() {
    let mesh = mesh();
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.42.0.0/24"]).unwrap();
    let terraform = Terraform::new(&mesh, NETWORK);
    let apply = ["apply", "-auto-approve", "-json"];
    terraform.errors(&apply)[0]
        .is("10.42.0.0/16 overlaps 10.42.0.0/24 of network `lab`", "prefixes");
    assert!(terraform.state().is_empty());

    terraform.write(
        r#"resource "meshward_route" "r" {
  network = "lab"
  node    = "nobody"
  prefix  = "10.8.0.0/24"
}
"#,
    );
    terraform.errors(&apply)[0].is("There is no node `nobody`", "node");
    terraform.write(
        r#"resource "meshward_device" "d" {
  name       = "d"
  network    = "lab"
  gateway    = "nobody"
  public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
}
"#,
    );
    terraform.errors(&apply)[0].is("There is no node `nobody`", "gateway");
    terraform.write(
        r#"resource "meshward_node" "n" {
  name          = "n"
  wait_for_join = true
  timeouts {
    create = "1s"
  }
}
"#,
    );
    terraform.errors(&apply)[0]
        .is("Node n is approved, and has not joined, not within 1s", "resource");
    assert!(mesh.nodes().unwrap().is_empty(), "the approval is taken back");

    mesh.apply("network: lab\n").unwrap();
    terraform.write(
        r#"resource "meshward_policy" "p" {
  network = "lab"
  files   = { "a.yaml" = "network: lab" }
}
"#,
    );
    terraform.errors(&apply)[0].is("import it", "network");
    assert!(terraform.state().is_empty());
}

#[test]
fn a_coordinator_that_is_down_and_a_token_without_rights_are_said_where_they_are_set() {
    let mut mesh = mesh();
    let viewer = mesh.folder().join("viewer.json");
    fs::write(
        &viewer,
        mesh.meshctl(&["credential", "create", "viewer", "--role", "viewer"]).unwrap(),
    )
    .unwrap();
    let context = mesh.read_context().unwrap();
    let explicit = |server: &str, token: &str| {
        let [ca, server, token] = [&context.ca, server, token].map(serde_json::Value::from);
        format!(
            r#"provider "meshward" {{
  server = {server}
  ca     = {ca}
  token  = {token}
}}
{NETWORK}"#
        )
    };
    let (server, token) = (&context.server, &context.token);
    let plan = ["plan", "-json"];
    {
        let terraform = Terraform::new(&mesh, NETWORK);
        terraform.write_as(&viewer, NETWORK);
        let said = terraform.errors(&["apply", "-auto-approve", "-json"]);
        said[0].is(
            "The token's role does not permit this: This credential has the role of a \
            viewer, and this needs that of an admin",
            "resource",
        );
        assert!(terraform.state().is_empty());

        terraform.write_whole(&explicit(server, token));
        assert_eq!(terraform.plan(), ["meshward_network.shop create"]);
        terraform.write_whole(&explicit(server, "mwa1_wrong"));
        terraform.errors(&plan)[0].is("does not know the token", "token");
        terraform.write_whole(&explicit("127.0.0.1:1", token));
        terraform.errors(&plan)[0].is("reach the coordinator at 127.0.0.1:1", "server");
        terraform.write_whole(&explicit(server, token).replacen(
            "ca     = ",
            "ca     = \"x\" #",
            1,
        ));
        terraform.errors(&plan)[0].is("The CA in the context is damaged", "ca");
        terraform.write_as(&mesh.folder().join("nothing.json"), NETWORK);
        terraform.errors(&plan)[0].is("There is no context file", "context");
        terraform.write_whole(NETWORK);
        terraform.errors(&plan)[0].is("does not know which coordinator to talk to", "");
        terraform.write(NETWORK);
        terraform.apply();
    }
    mesh.coordinator.kill();
    let terraform = Terraform::new(&mesh, &NETWORK.replace("10.42.0.0/16", "10.43.0.0/16"));
    let said = terraform.errors(&["apply", "-auto-approve", "-json"]);
    assert_eq!(said.len(), 1, "it is said once: {said:?}");
    said[0].is("does meshward-coordinator run there?", "context");
    assert_eq!(terraform.state(), ["meshward_network.shop"]);
    mesh.restart_coordinator().unwrap();
    let networks: Vec<Network> = mesh.list("networks").unwrap();
    assert_eq!(networks[0].prefixes[0].to_string(), "10.42.0.0/16");
}

#[test]
fn an_apply_that_is_interrupted_stops_waiting_and_leaves_nothing_half_made() {
    let mesh = mesh();
    let terraform = Terraform::new(
        &mesh,
        "resource \"meshward_node\" \"n\" {\n  name          = \"n\"\n  wait_for_join = true\n}\n",
    );
    let mut command = terraform.command(&["apply", "-auto-approve", "-no-color"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = mesh.site.netns.run(|| command.spawn()).unwrap().unwrap();
    let nodes = || mesh.nodes().unwrap().len();
    mesh.wait(|| nodes() == 1).unwrap();

    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();

    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("Terraform was interrupted"), "{said}");
    assert_eq!((nodes(), terraform.state()), (0, vec![]));
}
