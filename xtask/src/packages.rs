//! Packages of the distribution.

use crate::cargo;
use anyhow::{Result, bail};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

/// Installs Debian packages, with sudo if this is not root.
///
/// # Errors
/// Fails if this is not Debian, or apt fails. The error names the packages to install.
pub fn install(packages: &[&str]) -> Result<()> {
    println!("Installing from the distribution: {}", packages.join(" "));
    if !is_there("apt-get") {
        bail!(
            "this is not Debian; install these with your package manager: {}",
            packages.join(" ")
        );
    }
    let as_root = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(if is_root() { program } else { "sudo" });
        if !is_root() {
            command.arg(program);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).stdout(Stdio::null());
        cargo::run(&mut command)
    };
    if packages.contains(&"cloud-init") {
        // The tests need its schema; it must not set up this machine at the next boot.
        as_root("install", &["-D", "-m", "0644", "/dev/null", "/etc/cloud/cloud-init.disabled"])?;
    }
    as_root("apt-get", &["update", "-q"])?;
    as_root("apt-get", &[&["install", "-q", "-y", "--no-install-recommends"], packages].concat())
}

/// Returns whether a program is on the path, or in a usual folder of root's programs.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin"].map(Path::new);
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
        || usual.iter().any(|folder| folder.join(program).exists())
}

/// Returns whether this process has root's rights: the files of a process in `/proc` belong to its
/// effective user (proc(5)).
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
