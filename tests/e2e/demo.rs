//! The demo is a test, too.

use std::{path::Path, process::Command};

#[test]
fn the_demo_shows_the_main_job() {
    let test = std::env::current_exe().unwrap();
    let binaries: &Path = test.parent().and_then(Path::parent).unwrap();
    let out = Command::new(binaries.join("meshward-demo"))
        .arg("--binaries")
        .arg(binaries)
        .output()
        .unwrap();
    let (said, failed) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{failed}");
    for expected in [
        "The wire does what the policy says, on all 60 connections.",
        "behind two NATs",
        "private-cloud  -> rack           directly",
        "Gbit/s",
        "api-3 dies",
        "api-4 starts at rack",
        "when it returns, it is enforced",
    ] {
        assert!(said.contains(expected), "no `{expected}` in:\n{said}");
    }
}

#[test]
fn a_failed_demo_says_what_and_why() {
    let test = std::env::current_exe().unwrap();
    let binaries: &Path = test.parent().and_then(Path::parent).unwrap();
    let out = Command::new(binaries.join("meshward-demo"))
        .args(["--binaries", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("/nowhere/meshward-coordinator is missing")
    );
}
