//! The modules, with stand-ins for the clouds' own providers; with these themselves if
//! `MESHWARD_REAL_PROVIDERS=1`.

use super::{Terraform, mesh, modules};
use meshward_api_types::Token;
use serde_json::Value;
use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, process::Command};

/// The modules that make nodes, the sources of their providers, and what a root module says to
/// these.
const CLOUDS: [(&str, &str, &str); 5] = [
    ("aws", "hashicorp/aws", "provider \"aws\" {\n  region = \"eu-central-1\"\n}\n"),
    (
        "gcp",
        "hashicorp/google",
        "provider \"google\" {\n  project = \"shop\"\n  zone    = \"europe-west3-a\"\n}\n",
    ),
    (
        "azure",
        "hashicorp/azurerm",
        r#"provider "azurerm" {
  features {}
  subscription_id = "00000000-0000-0000-0000-000000000000"
}
"#,
    ),
    (
        "openstack",
        "terraform-provider-openstack/openstack",
        "provider \"openstack\" {\n  cloud = \"private\"\n}\n",
    ),
    ("on-prem", "dmacvicar/libvirt", "provider \"libvirt\" {\n  uri = \"qemu:///system\"\n}\n"),
];

fn real() -> bool {
    std::env::var_os("MESHWARD_REAL_PROVIDERS").is_some_and(|value| value == "1")
}

/// `terraform` that finds our provider, and stand-ins for all others.
fn with_stand_ins(mesh: &meshward_lab::Mesh) -> Terraform<'_> {
    let folder = mesh.folder().join("stand-ins");
    fs::create_dir_all(&folder).unwrap();
    let built = mesh.binaries.folder();
    let mut providers = vec![("meshward/meshward", built)];
    for (_, source, _) in CLOUDS {
        let name = source.split('/').next_back().unwrap();
        let _ = symlink(
            built.join("terraform-stand-in"),
            folder.join(format!("terraform-provider-{name}")),
        );
        if !real() {
            providers.push((source, &folder));
        }
    }
    let program =
        meshward_lab::Terraform::new(mesh.folder().join("stand-ins.rc"), &providers).unwrap();
    Terraform { program, ..Terraform::new(mesh, "") }
}

/// Gets the modules, and the providers if they are the real ones.
fn init(terraform: &Terraform) {
    terraform.ok(&[if real() { "init" } else { "get" }]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story of one configuration")]
fn every_module_makes_nodes_from_the_same_block() {
    let mesh = mesh();
    let terraform = with_stand_ins(&mesh);
    let mut shapes = BTreeSet::new();
    for (module, source, provider) in CLOUDS {
        let block = |count: u32| {
            let name = source.split('/').next_back().unwrap();
            format!(
                r#"terraform {{
  required_providers {{
    {name} = {{ source = "{source}" }}
  }}
}}
{provider}module "nodes" {{
  source      = "{}//{module}"
  name        = "shop"
  node_count  = {count}
  coordinator = "mesh.example.net"
  token       = "mwj1_token"
  package     = {{ url = "https://example.net/meshward.tar.gz", sha256 = "{}" }}
  labels      = {{ tier = "edge" }}
  tags        = {{ team = "shop" }}
}}
output "nodes" {{
  value = module.nodes.nodes
}}
output "all" {{
  value = [module.nodes.node_names, module.nodes.identity, module.nodes.ports]
}}
"#,
                modules().display(),
                "0".repeat(64),
            )
        };
        let _ = fs::remove_file(terraform.folder.join("terraform.tfstate"));
        let _ = fs::remove_dir_all(terraform.folder.join(".terraform"));
        fs::write(terraform.folder.join("main.tf"), block(2)).unwrap();
        init(&terraform);
        terraform.ok(&["validate", "-no-color"]);
        if real() {
            continue;
        }
        assert!(terraform.plan().iter().all(|change| change.ends_with(" create")));
        terraform.apply();
        assert_eq!(terraform.plan(), Vec::<String>::new(), "{module}");
        let all = terraform.output("all");
        assert_eq!(
            (&all[0], &all[2]),
            (&serde_json::json!(["shop-0", "shop-1"]), &serde_json::json!([51820, 51835]))
        );
        let nodes = terraform.output("nodes");
        for node in nodes.as_object().unwrap().values() {
            assert!(node["id"].is_string(), "{module}: {nodes}");
            shapes.insert(node.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" "));
        }
        // Another node leaves those that are there as they are, and a later token, too.
        fs::write(terraform.folder.join("main.tf"), block(3).replace("mwj1_token", "mwj1_another"))
            .unwrap();
        let plan = terraform.plan();
        assert!(
            !plan.is_empty() && plan.iter().all(|change| change.ends_with(" create")),
            "{module}: {plan:?}"
        );
        open_is_the_mesh_alone(&terraform, module);
        terraform.ok(&["destroy", "-auto-approve", "-no-color"]);
        fs::write(
            terraform.folder.join("main.tf"),
            block(2).replace("name        = \"shop\"", "name        = \"Shop\""),
        )
        .unwrap();
        terraform.errors(&["validate", "-json"])[0].is("The name must have 1 to 31", "name");
    }
    if !real() {
        assert_eq!(shapes.len(), 1, "{shapes:?}");
    }
}

/// Whatever the state says of what a firewall lets in, it is UDP of the mesh's ports.
fn open_is_the_mesh_alone(terraform: &Terraform, module: &str) {
    let state: Value =
        serde_json::from_slice(&fs::read(terraform.folder.join("terraform.tfstate")).unwrap())
            .unwrap();
    let of = |kind: &str| -> Vec<Value> {
        let all = state["resources"].as_array().unwrap().iter();
        let own = all.filter(|one| one["mode"] == "managed" && one["type"] == kind);
        own.flat_map(|one| one["instances"].as_array().unwrap().clone())
            .map(|one| one["attributes"].clone())
            .collect()
    };
    match module {
        "aws" => {
            let rules = of("aws_vpc_security_group_ingress_rule");
            assert_eq!(rules.len(), 1);
            assert_eq!(
                (&rules[0]["ip_protocol"], &rules[0]["from_port"], &rules[0]["to_port"]),
                (&"udp".into(), &51820.into(), &51835.into())
            );
        }
        "gcp" => {
            let rules = of("google_compute_firewall");
            assert_eq!(rules.len(), 1);
            assert_eq!(
                rules[0]["allow"],
                serde_json::json!([{ "protocol": "udp", "ports": ["51820-51835"] }])
            );
        }
        "azure" => {
            let rules = of("azurerm_network_security_rule");
            let allowed: Vec<&Value> =
                rules.iter().filter(|rule| rule["access"] == "Allow").collect();
            assert_eq!((allowed.len(), rules.len()), (1, 2));
            assert_eq!(
                (&allowed[0]["protocol"], &allowed[0]["destination_port_range"]),
                (&"Udp".into(), &"51820-51835".into())
            );
        }
        "openstack" => {
            let rules = of("openstack_networking_secgroup_rule_v2");
            assert_eq!(rules.len(), 1);
            assert_eq!(
                (&rules[0]["protocol"], &rules[0]["port_range_max"]),
                (&"udp".into(), &51835.into())
            );
        }
        _ => {
            let seeds = of("libvirt_cloudinit_disk");
            assert!(seeds.iter().all(|seed| {
                seed["user_data"].as_str().unwrap().contains("udp dport 51820-51835 accept")
            }));
        }
    }
}

#[test]
fn every_module_has_the_same_variables_and_outputs_and_is_formatted() {
    let read =
        |module: &str, file: &str| fs::read_to_string(modules().join(module).join(file)).unwrap();
    for (module, ..) in CLOUDS {
        for file in ["variables.tf", "outputs.tf"] {
            assert_eq!(
                read(module, file),
                read("aws", file),
                "{module}/{file} is not as that of aws"
            );
        }
        let text = read(module, "README.md");
        assert!(text.contains("`location`") && text.contains("`uplink`"), "{module}");
    }
    let root = modules().parent().unwrap().parent().unwrap().to_owned();
    for folder in ["terraform", "examples"] {
        let mut fmt = Command::new("terraform");
        let out = fmt
            .args(["fmt", "-check", "-recursive", "-diff"])
            .arg(root.join(folder))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
}

#[test]
fn one_root_module_spans_three_clouds_with_the_policy_of_the_demo() {
    let mesh = mesh();
    let terraform = with_stand_ins(&mesh);
    let root = modules().parent().unwrap().parent().unwrap().to_owned();
    // As it is in the tree, modules and policy beside it.
    for part in ["examples/hybrid-shop", "examples/shop", "terraform/modules"] {
        copy(&root.join(part), &mesh.folder().join(part));
    }
    let terraform = Terraform { folder: mesh.folder().join("examples/hybrid-shop"), ..terraform };
    let variables = serde_json::json!({
        "context": mesh.context(),
        "coordinator": mesh.site.v4.to_string(),
        "package": { "url": "https://example.net/meshward.tar.gz", "sha256": "0".repeat(64) },
    });
    fs::write(terraform.folder.join("terraform.tfvars.json"), variables.to_string()).unwrap();
    init(&terraform);
    terraform.ok(&["validate", "-no-color"]);
    if real() {
        return;
    }
    terraform.apply();
    assert_eq!(terraform.plan(), Vec::<String>::new());
    let nodes = mesh.nodes().unwrap();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(
        names,
        ["shop-aws-0", "shop-aws-1", "shop-openstack-0", "shop-openstack-1", "shop-rack-0"]
    );
    assert_eq!(terraform.output("nodes").as_object().unwrap().len(), 5);
    let applied = mesh.meshctl(&["policy", "get", "shop"]).unwrap();
    let demo = fs::read_to_string(root.join("examples/shop/policy.yaml")).unwrap();
    assert!(applied.contains(demo.trim()), "{applied}");
    assert_eq!(mesh.list::<Token>("tokens").unwrap().len(), 3);
    terraform.ok(&["destroy", "-auto-approve", "-no-color"]);
    assert!(mesh.nodes().unwrap().is_empty());
}

#[test]
fn every_example_of_the_reference_is_valid() {
    let mesh = mesh();
    let terraform = with_stand_ins(&mesh);
    let examples = modules().parent().unwrap().join("provider/examples");
    let mut checked = 0;
    for kind in ["resources", "data-sources", "ephemeral-resources"] {
        for folder in fs::read_dir(examples.join(kind)).unwrap() {
            let file =
                fs::read_dir(folder.unwrap().path()).unwrap().next().unwrap().unwrap().path();
            let text = fs::read_to_string(&file).unwrap();
            // What it refers to beyond the provider is the user's.
            if text.contains("aws_") {
                continue;
            }
            fs::create_dir_all(terraform.folder.join("policy")).unwrap();
            fs::write(terraform.folder.join("policy/shop.yaml"), "network: shop\n").unwrap();
            terraform.write(&text);
            terraform.ok(&["validate", "-no-color"]);
            checked += 1;
        }
    }
    assert_eq!(checked, 19);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}
