//! Every test, with what it needs.

use crate::cargo;
use anyhow::{Context, Result, bail};
use meshward_lab::{Rights, become_root};
use nix::unistd::geteuid;
use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
};

#[derive(clap::Args)]
pub struct Options {
    /// Install nothing: fail if something is missing
    #[arg(long)]
    no_install: bool,
    /// Passed on to cargo nextest, such as the name of a test
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// A program that the tests run, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 14] = [
    ("wireguard-go", "wireguard-go"),
    ("wg", "wireguard-tools"),
    ("curl", "curl"),
    ("nft", "nftables"),
    ("tc", "iproute2"),
    ("miniupnpd", "miniupnpd-nftables"),
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("docker-compose", "docker-compose"),
    ("podman", "podman"),
    ("docker-registry", "docker-registry"),
    ("busybox", "busybox-static"),
    ("cloud-init", "cloud-init"),
    ("systemd-analyze", "systemd"),
];

pub fn run(options: &Options) -> Result<ExitCode> {
    install(options)?;
    // Before there are threads: tests run in it if they do not run as root.
    if become_root().context("the tests make network namespaces; run this command as root")?
        == Rights::UserNamespace
    {
        println!("Running in a user namespace: no root is needed.");
    }
    // End-to-end tests run the binaries, which building the tests alone does not build.
    cargo::run(&mut cargo::command(&["build", "--workspace", "--all-targets", "--locked"]))?;
    let mut nextest = cargo::command(&["nextest", "run", "--workspace", "--locked"]);
    let status = nextest.args(&options.nextest).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn install(options: &Options) -> Result<()> {
    let packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    let nextest =
        cargo::command(&["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let nextest_missing = !nextest.is_ok_and(|status| status.success());
    if options.no_install && (nextest_missing || !packages.is_empty()) {
        let mut missing = packages.clone();
        missing.extend(nextest_missing.then_some("cargo-nextest"));
        bail!("missing, and --no-install was given: {}", missing.join(", "));
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if nextest_missing {
        println!("Installing cargo-nextest ...");
        cargo::run(&mut cargo::command(&["install", "--locked", "cargo-nextest"]))?;
    }
    Ok(())
}

pub fn install_packages(packages: &[&str]) -> Result<()> {
    println!("Installing from the distribution: {}", packages.join(" "));
    if !is_there("apt-get") {
        bail!("this is no Debian; install by your package manager: {}", packages.join(" "));
    }
    let as_root = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(if geteuid().is_root() { program } else { "sudo" });
        if !geteuid().is_root() {
            command.arg(program);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).stdout(Stdio::null());
        cargo::run(&mut command)
    };
    if packages.contains(&"cloud-init") {
        // It is wanted for its schema, and is not to set this machine up when that starts again.
        as_root("install", &["-D", "-m", "0644", "/dev/null", "/etc/cloud/cloud-init.disabled"])?;
    }
    as_root("apt-get", &["update", "-q"])?;
    as_root("apt-get", &[&["install", "-q", "-y", "--no-install-recommends"], packages].concat())
}

pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin"].map(Path::new);
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
        || usual.iter().any(|folder| folder.join(program).exists())
}
