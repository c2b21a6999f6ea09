//! Dependencies have the licences, and as few versions, as deny.toml says.

use crate::{assert_none, read, root};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

#[derive(Deserialize)]
struct Rules {
    licenses: LicenseRules,
    bans: BanRules,
}

#[derive(Deserialize)]
struct LicenseRules {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct BanRules {
    skip: Vec<Skipped>,
}

#[derive(Deserialize)]
struct Skipped {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

fn rules() -> Rules {
    toml::from_str(&read(Path::new("deny.toml"))).expect("deny.toml has this form")
}

/// The packages from outside that are needed on Linux.
fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--all-features"])
        .arg("--filter-platform=x86_64-unknown-linux-gnu")
        .current_dir(root())
        .output()
        .expect("cargo describes the workspace");
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata.packages.into_iter().filter(|package| package.source.is_some()).collect()
}

#[test]
fn licences_are_those_that_are_allowed() {
    let rules = rules();
    let allowed: BTreeSet<&str> = rules.licenses.allow.iter().map(String::as_str).collect();
    let mut findings = vec![];
    for package in packages() {
        let text = package.license.unwrap_or_default();
        let fits = spdx::Expression::parse_mode(&text, spdx::ParseMode::LAX).is_ok_and(|wanted| {
            wanted.evaluate(|one| one.license.id().is_some_and(|id| allowed.contains(id.name)))
        });
        if !fits {
            findings.push(format!("{} {}: {text:?}", package.name, package.version));
        }
    }
    assert_none(&findings, "deny.toml allows none of these licences");
}

#[test]
fn no_dependency_stands_twice_without_a_reason() {
    let rules = rules();
    let skipped: BTreeSet<&str> = rules.bans.skip.iter().map(|skip| skip.name.as_str()).collect();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(package.name).or_default().push(package.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let mut findings: Vec<String> = versions
        .iter()
        .filter(|(name, _)| !skipped.contains(name.as_str()))
        .map(|(name, versions)| format!("{name}: {}", versions.join(", ")))
        .collect();
    let gone = skipped.iter().filter(|name| !versions.contains_key(**name));
    findings.extend(gone.map(|name| format!("{name} stands once: take it out of `skip`")));
    assert_none(&findings, "deny.toml gives no reason for these versions");
}
