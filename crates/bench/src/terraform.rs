//! The time that Terraform needs for 500 resources, with the real `terraform`, the provider that
//! users run and a live coordinator.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
};
use anyhow::{Context, Result, ensure};
use meshward_lab::{Mesh, Terraform, output};
use std::{fs, time::Instant};

/// The number of resources of each of five kinds.
const EACH: usize = 100;

/// Plans, applies, plans again and destroys. `quick` does so once.
///
/// # Errors
/// Fails if a program is missing or fails.
pub fn terraform(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let rounds = if quick { 1 } else { 7 };
    let mesh = Mesh::start(tools.ours.clone())?;
    let root = mesh.folder().join("root");
    fs::create_dir(&root)?;
    let terraform = Terraform::new(
        mesh.folder().join("terraform.rc"),
        &[("meshward/meshward", mesh.binaries.folder())],
    )?;
    fs::write(root.join("main.tf"), configuration(&mesh))?;
    let run = |arguments: &[&str]| -> Result<f64> {
        let mut command = terraform.command(&root, arguments);
        command.arg("-no-color");
        let begun = Instant::now();
        output(&mesh.site.netns, &mut command)
            .context("terraform 1.11 or newer is needed on the PATH")?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let (mut first, mut apply, mut again, mut destroy) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        first.push(run(&["plan"])?);
        apply.push(run(&["apply", "-auto-approve"])?);
        let changes = mesh.read(&["status"])?["mesh"]["revision"].clone();
        again.push(run(&["plan", "-detailed-exitcode"])?);
        ensure!(
            mesh.read(&["status"])?["mesh"]["revision"] == changes,
            "a plan has changed something"
        );
        destroy.push(run(&["destroy", "-auto-approve"])?);
    }
    let case = format!("{} resources, {rounds} times", EACH * 5);
    let row = |metric, ours: &[f64], target| {
        Figures { bench: "terraform", case: case.clone(), metric, unit: "s", ours }.absolute(target)
    };
    Ok(vec![
        row("plan, nothing is there", &first, Target::AtMost(5.0)),
        row("plan, all is there and read", &again, Target::AtMost(5.0)),
        row("apply", &apply, Target::None),
        row("destroy", &destroy, Target::None),
    ])
}

fn configuration(mesh: &Mesh) -> String {
    let kinds = [
        (
            "network",
            "name = \"n${count.index}\"\n  prefixes = [\"10.${count.index + 100}.0.0/24\"]",
        ),
        (
            "policy",
            r#"network = meshward_network.all[count.index].id
  rule {
    name = "web-to-api"
    from = "app=web"
    to = "app=api"
    allow = ["tcp/80"]
  }"#,
        ),
        ("node", "name = \"node-${count.index}\""),
        ("join_token", "site = \"s${count.index}\""),
        ("service_account", "name = \"a-${count.index}\"\n  role = \"viewer\""),
    ];
    let resources = kinds.map(|(kind, body)| {
        format!("resource \"meshward_{kind}\" \"all\" {{\n  count = {EACH}\n  {body}\n}}\n")
    });
    format!(
        r#"terraform {{
  required_providers {{
    meshward = {{ source = "meshward/meshward" }}
  }}
}}
provider "meshward" {{
  context = "{}"
}}
{}"#,
        mesh.context().display(),
        resources.concat()
    )
}
