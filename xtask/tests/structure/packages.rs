//! Packages import each other as the map in ARCHITECTURE.md draws it.

use crate::{assert_none, read, root};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path, process::Command};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    path: Option<String>,
    kind: Option<String>,
}

/// The folder of a package as the map names it: relative to the project, without `crates/`.
fn short(folder: &str) -> String {
    let relative = Path::new(folder).strip_prefix(root()).expect("it lies in the project");
    let name = relative.to_str().expect("names are UTF-8");
    name.strip_prefix("crates/").unwrap_or(name).to_owned()
}

/// The rows of the map: a folder, and what it may import.
fn drawn() -> BTreeMap<String, Vec<String>> {
    let text = read(Path::new("ARCHITECTURE.md"));
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [folder, _, imports] = cells[..] else { return None };
        let folder = folder.strip_prefix('`')?.strip_suffix("/`")?;
        let imports = imports.split(", ").filter(|import| !import.is_empty());
        let folder = folder.strip_prefix("crates/").unwrap_or(folder);
        Some((folder.to_owned(), imports.map(str::to_owned).collect()))
    });
    rows.collect()
}

#[test]
fn packages_import_each_other_as_the_map_draws_it() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo describes the workspace");
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let drawn = drawn();
    let mut findings = vec![];
    for package in &metadata.packages {
        let folder = Path::new(&package.manifest_path).parent().and_then(Path::to_str);
        let folder = short(folder.expect("a manifest lies in a folder"));
        let Some(allowed) = drawn.get(&folder) else {
            findings.push(format!("{} ({folder}) has no row", package.name));
            continue;
        };
        let mut imports: Vec<String> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
            .filter_map(|dependency| dependency.path.as_deref().map(short))
            .filter(|import| import != "fuzz")
            .collect();
        imports.sort();
        imports.dedup();
        for import in &imports {
            if !allowed.contains(import) {
                findings.push(format!("{folder} imports {import}"));
            }
        }
        for import in allowed {
            if !imports.contains(import) {
                findings.push(format!("{folder} does not import {import}, though drawn"));
            }
        }
    }
    assert_none(&findings, "the map of the code in ARCHITECTURE.md shows something else");
}

/// The packages that decide do no I/O, start no thread and know no runtime.
#[test]
fn pure_packages_know_no_runtime() {
    let pure =
        ["types", "control-proto", "api-types", "policy", "wireguard", "datapath", "control-state"];
    let effects = ["tokio", "quinn", "axum", "rusqlite", "nix", "rtnetlink", "reqwest", "hyper"];
    let mut findings = vec![];
    for name in pure {
        let manifest = read(&Path::new("crates").join(name).join("Cargo.toml"));
        let own = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for effect in effects {
            if own.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(effect)) {
                findings.push(format!("crates/{name} depends on {effect}"));
            }
        }
    }
    assert_none(&findings, "these packages decide, and leave effects to others");
}
