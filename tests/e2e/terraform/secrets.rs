//! Join tokens and service accounts: their secrets, and how long they are good.

use super::{Terraform, mesh};
use meshward_api_types::{Credential, Token};
use meshward_lab::output;
use std::{fs, process::Command, thread, time::Duration};

#[test]
fn ephemeral_nodes_and_accounts_with_a_lifetime_are_made_renewed_and_read() {
    let mesh = mesh();
    let with = |account: &str, token: &str| {
        format!(
            r#"resource "meshward_service_account" "ci" {{
 name = "ci"
 role = "viewer"
{account}
}}
resource "meshward_join_token" "t" {{
{token}
}}
"#
        )
    };
    let terraform = Terraform::new(&mesh, &with("lifetime = \"2h\"", "forget_after = \"600s\""));
    terraform.apply();
    assert_eq!(terraform.plan(), Vec::<String>::new());
    let tokens: Vec<Token> = mesh.list("tokens").unwrap();
    assert_eq!(tokens[0].forget_after_seconds, Some(600));
    let expires = || {
        let mut all = mesh.list::<Credential>("credentials").unwrap().into_iter();
        all.find(|one| one.name == "ci").unwrap().expires
    };
    let first = expires().unwrap();

    // Ten minutes are the same time as 600 seconds, and another time is another token.
    terraform.write(&with("lifetime = \"2h\"", "forget_after = \"20m\""));
    assert_eq!(terraform.plan(), ["meshward_join_token.t replace"]);
    terraform.write(&with("lifetime = \"2h\"", "forget_after = \"600s\""));

    // Somebody shortens it, and the next plan renews it; without `renew_before` it would end.
    mesh.meshctl(&["credential", "change", "ci", "--lifetime", "50m"]).unwrap();
    assert_eq!(terraform.plan(), Vec::<String>::new());
    let renewed = with("lifetime = \"2h\"\nrenew_before = \"1h\"", "forget_after = \"600s\"");
    terraform.write(&renewed);
    terraform.ok(&["apply", "-auto-approve", "-no-color"]);
    assert_eq!(terraform.plan(), ["meshward_service_account.ci update"], "it is due");
    terraform.apply();
    assert!(expires().unwrap() >= first);
    assert_eq!(terraform.plan(), Vec::<String>::new());

    // It is taken away, given by somebody else, and taken away again.
    terraform.write(&with("", "forget_after = \"600s\""));
    assert_eq!(terraform.plan(), ["meshward_service_account.ci update"]);
    terraform.apply();
    assert_eq!((terraform.plan(), expires()), (vec![], None));
    mesh.meshctl(&["credential", "change", "ci", "--lifetime", "1h"]).unwrap();
    assert_eq!(terraform.plan(), ["meshward_service_account.ci update"]);
    terraform.apply();
    assert_eq!((terraform.plan(), expires()), (vec![], None));

    for (account, token, says, at) in [
        ("lifetime = \"4000d\"", "", "3650 days", "lifetime"),
        ("lifetime = \"soon\"", "", "is not a duration", "lifetime"),
        ("lifetime = \"1h\"\nrenew_before = \"1h\"", "", "shorter than `lifetime`", "renew_before"),
        ("renew_before = \"1h\"", "", "does not expire", "renew_before"),
        ("", "forget_after = \"9s\"", "10 seconds", "forget_after"),
        ("", "forget_after = \"1h\"\nrelay = true", "A relay stays", "forget_after"),
    ] {
        terraform.write(&with(account, token));
        terraform.errors(&["validate", "-json"])[0].is(says, at);
    }
}

#[test]
fn an_ephemeral_token_is_good_and_in_no_state() {
    let mesh = mesh();
    // Terraform's own way to use an ephemeral value in a run: another provider's configuration.
    let with = |revoked: bool| {
        format!(
            r#"ephemeral "meshward_join_token" "one" {{
  site            = "rack"
  revoke_on_close = {revoked}
}}
resource "meshward_network" "n" {{
  name     = "n"
  prefixes = ["10.42.0.0/16"]
}}
"#
        )
    };
    let terraform = Terraform::new(&mesh, &with(true));
    terraform.apply();
    assert_eq!(mesh.list::<Token>("tokens").unwrap().len(), 0);
    terraform.write(&with(false));
    terraform.ok(&["plan", "-no-color"]);
    let left: Vec<Token> = mesh.list("tokens").unwrap();
    assert_eq!((left.len(), left[0].site.as_deref()), (1, Some("rack")));
    let state = fs::read_to_string(terraform.folder.join("terraform.tfstate")).unwrap();
    assert!(!state.contains("join_token") && !state.contains(&left[0].id), "{state}");
}

#[test]
fn a_token_is_made_anew_before_it_ends_if_that_is_wanted() {
    let mesh = mesh();
    let wanted = r#"resource "meshward_join_token" "renewed" {
  ttl          = "10m"
  renew_before = "9m58s"
}
resource "meshward_join_token" "kept" {
  ttl = "1s"
}
"#;
    let terraform = Terraform::new(&mesh, wanted);
    terraform.apply();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(terraform.plan(), ["meshward_join_token.renewed create"]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story of one configuration")]
fn secrets_are_marked_and_a_token_lets_a_node_join() {
    let mut mesh = mesh();
    let configuration = r#"
resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
  timeouts {
    delete = "2s"
  }
}
resource "meshward_join_token" "t" {
  networks = [meshward_network.shop.id]
}
resource "meshward_service_account" "ci" {
  name = "ci"
  role = "viewer"
}
output "token" {
  value     = meshward_join_token.t.token
  sensitive = true
}
output "context" {
  value     = meshward_service_account.ci.context
  sensitive = true
}
"#;
    let terraform = Terraform::new(&mesh, configuration);
    let printed = terraform.apply();
    let token = terraform.output("token").as_str().unwrap().to_owned();
    let context = terraform.output("context").as_str().unwrap().to_owned();
    assert!(!printed.contains(&token) && printed.contains("(sensitive value)"), "{printed}");
    let file = mesh.folder().join("ci.json");
    fs::write(&file, &context).unwrap();
    let mut listing = Command::new(mesh.binaries.path("meshctl"));
    output(&mesh.site.netns, listing.arg("--context").arg(&file).args(["network", "list"]))
        .unwrap();

    let folder = terraform.folder.clone();
    let site = mesh.internet.site("n1").unwrap();
    let node = mesh.node_at(site).token(&token).start().unwrap();
    let with_node = format!(
        r#"{configuration}
resource "meshward_node" "n1" {{
  name          = "n1"
  wait_for_join = true
}}
resource "meshward_device" "db" {{
  name       = "db"
  network    = meshward_network.shop.id
  gateway    = meshward_node.n1.id
  labels     = {{ app = "db" }}
  public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
}}
output "device" {{
  value = meshward_device.db.configuration
}}
"#
    );
    let terraform = Terraform::new(&mesh, &with_node);
    assert_eq!(terraform.folder, folder);
    terraform.apply();
    let device = terraform.output("device").as_str().unwrap().to_owned();
    assert!(
        device.contains("AllowedIPs = 10.42.0.0/16") && device.contains("Address = 10.42."),
        "{device}"
    );
    assert_eq!(terraform.plan(), Vec::<String>::new());
    terraform.ok(&["state", "rm", "meshward_device.db"]);
    terraform.ok(&["import", "-no-color", "meshward_device.db", "shop/db"]);
    assert_eq!(terraform.plan(), Vec::<String>::new());
    mesh.meshctl(&["device", "remove", "db", "--network", "shop"]).unwrap();
    assert_eq!(terraform.plan(), ["meshward_device.db create"]);
    terraform.apply();
    let sources = "data \"meshward_device\" \"db\" {\n  network = \"shop\"\n  name    = \"db\"\n}\n\
        data \"meshward_node\" \"n1\" {\n  name = \"n1\"\n}\n\
        output \"read\" {\n  value = [data.meshward_device.db.gateway, \
        data.meshward_device.db.labels.app, data.meshward_node.n1.connected]\n}\n";
    terraform.write(&format!("{with_node}{sources}"));
    terraform.apply();
    assert_eq!(terraform.output("read"), serde_json::json!(["n1", "db", true]));

    terraform.write(&with_node);
    // A network is not taken away under its workloads' feet.
    let workload = node.attach("shop", "app=web").unwrap();
    let refused =
        terraform.errors(&["destroy", "-auto-approve", "-json", "-target=meshward_network.shop"]);
    assert!(refused[0].text.contains("has 1 workloads"), "{refused:?}");
    assert!(terraform.state().contains(&"meshward_network.shop".to_owned()));
    drop(workload);
    terraform.ok(&["destroy", "-auto-approve", "-no-color"]);
    assert_eq!(mesh.nodes().unwrap().len(), 0, "the node is revoked");
}
