//! Every test, with what it needs.

use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    process::{Command, ExitCode, Stdio},
};
use xtask::{cargo, packages, python};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install nothing: fail if something is missing
    #[arg(long)]
    no_install: bool,
    /// Passed on to cargo nextest, such as the name of a test
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// A program that the tests run, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 22] = [
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
    ("/usr/lib/cni/loopback", "containernetworking-plugins"),
    ("docker-registry", "docker-registry"),
    ("busybox", "busybox-static"),
    ("faketime", "faketime"),
    ("prlimit", "util-linux"),
    ("cloud-init", "cloud-init"),
    ("systemd-analyze", "systemd"),
    ("dig", "bind9-dnsutils"),
    ("unbound", "unbound"),
    ("dnsmasq", "dnsmasq-base"),
    ("musl-gcc", "musl-tools"),
    ("openssl", "openssl"),
];

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install(options)?;
    let arguments: Vec<&str> = options.nextest.iter().map(String::as_str).collect();
    go(&arguments, &[])
}

/// Runs some tests, with variables that say how.
pub(crate) fn run_with(nextest: &[&str], variables: &[(&str, String)]) -> Result<ExitCode> {
    install(&Options { no_install: false, nextest: vec![] })?;
    go(nextest, variables)
}

fn go(arguments: &[&str], variables: &[(&str, String)]) -> Result<ExitCode> {
    let namespace =
        user_namespace().context("the tests make network namespaces; run this command as root")?;
    // End-to-end tests run the binaries, which building the tests alone does not build.
    cargo::run(&mut cargo::command(&["build", "--workspace", "--all-targets", "--locked"]))?;
    let nextest = cargo::command(&["nextest", "run", "--workspace", "--locked"]);
    let status = cargo::below(namespace, &nextest)
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (*name, value)))
        .status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that runs another as root of a user namespace.
const UNSHARE: [&str; 3] = ["unshare", "--user", "--map-root-user"];

/// Returns what has a command run as root of a user namespace; nothing for root itself.
fn user_namespace() -> Result<&'static [&'static str]> {
    if packages::is_root() {
        return Ok(&[]);
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("this machine does not let ordinary users open /dev/net/tun")?;
    let allowed = Command::new(UNSHARE[0]).args(&UNSHARE[1..]).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        bail!("this machine allows no user namespaces to ordinary users");
    }
    println!("Running in a user namespace: no root is needed.");
    Ok(&UNSHARE)
}

fn install(options: &Options) -> Result<()> {
    let needed: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !packages::is_there(program))
        .map(|(_, package)| *package)
        .collect();
    let nextest = cargo::command(&["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let nextest_missing = !nextest.is_ok_and(|status| status.success());
    let python_missing = !python::is_there();
    if options.no_install && (nextest_missing || python_missing || !needed.is_empty()) {
        let mut missing = needed.clone();
        missing.extend(
            python_missing.then_some("schemathesis, openapi-spec-validator and grpcio (PyPI)"),
        );
        missing.extend(nextest_missing.then_some("cargo-nextest"));
        bail!("missing, and --no-install was given: {}", missing.join(", "));
    }
    if !needed.is_empty() {
        packages::install(&needed)?;
    }
    if python_missing {
        python::install()?;
    }
    if nextest_missing {
        println!("Installing cargo-nextest ...");
        cargo::run(&mut cargo::command(&["install", "--locked", "cargo-nextest"]))?;
    }
    Ok(())
}
