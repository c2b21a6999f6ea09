//! Calling cargo, in the project's folder.

use anyhow::{Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A cargo command in the project's folder.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(project()).args(arguments);
    command
}

/// Wraps a command in a runner that takes a program and its arguments, such as `unshare`; an empty
/// runner changes nothing.
pub fn below(runner: &[&str], command: &Command) -> Command {
    let Some((first, rest)) = runner.split_first() else {
        let mut own = Command::new(command.get_program());
        own.args(command.get_args()).current_dir(project());
        return own;
    };
    let mut own = Command::new(first);
    own.args(rest).arg(command.get_program()).args(command.get_args()).current_dir(project());
    own
}

/// The packages of the programs that users run, and of the example.
pub const PROGRAMS: [&str; 6] =
    ["meshward-coordinator", "meshward-relay", "meshward-node", "meshward-cni", "meshctl", "shop"];

/// Builds packages in a profile.
///
/// # Errors
/// Fails if the build fails; cargo has printed why.
pub fn build(profile: &str, packages: &[&str]) -> Result<()> {
    let named = packages.iter().flat_map(|package| ["-p", package]);
    run(command(&["build", "--locked", "--profile", profile]).args(named))
}

/// Runs a command to its end.
///
/// # Errors
/// Fails if the command cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("{} failed", command.get_program().to_string_lossy());
    }
    Ok(())
}

/// Returns the project's folder.
///
/// # Panics
/// Never: this crate lies in it.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the project's folder")
}

/// Returns the folder of a profile's binaries.
pub fn binaries(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| project().join("target"), PathBuf::from);
    target.join(if profile == "dev" { "debug" } else { profile })
}
