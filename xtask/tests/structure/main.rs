//! The shape of the project: modules and crates import one way, files and functions stay short,
//! links in documents lead somewhere.

mod documents;
mod lengths;
mod modules;
mod packages;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The project's folder.
fn root() -> &'static Path {
    xtask::cargo::project()
}

/// The files that git tracks whose names end with `ending`, relative to the project's folder.
fn tracked(ending: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    let names = String::from_utf8(output.stdout).expect("names are UTF-8");
    let names = names.split('\0').filter(|name| name.ends_with(ending)).map(PathBuf::from);
    names.filter(|name| root().join(name).exists()).collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).expect("a tracked file can be read")
}

/// Fails with one line for each finding.
fn assert_none(findings: &[String], mend: &str) {
    assert!(findings.is_empty(), "{mend}:\n  {}", findings.join("\n  "));
}
