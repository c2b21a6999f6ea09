//! Programs from `PyPI`, in a virtual environment below the target folder.

use crate::{cargo, packages};
use anyhow::{Context, Result};
use std::{fs, path::PathBuf, process::Command};

/// The requirements, with versions.
const REQUIREMENTS: &str = "tests/api/requirements.txt";

/// Returns the folder of the virtual environment.
fn folder() -> PathBuf {
    cargo::binaries("api-tools")
}

/// Returns whether the requirements are installed.
pub fn is_there() -> bool {
    let installed = fs::read(folder().join("requirements.txt")).ok();
    installed.is_some() && installed == fs::read(cargo::project().join(REQUIREMENTS)).ok()
}

/// Installs the requirements.
///
/// # Errors
/// Fails if Python is missing, or `PyPI` cannot be reached.
pub fn install() -> Result<()> {
    let folder = folder();
    println!(
        "Installing from PyPI into {}: schemathesis, openapi-spec-validator, grpcio ...",
        folder.display()
    );
    if !make(&folder) {
        packages::install(&["python3", "python3-venv"])?;
        anyhow::ensure!(make(&folder), "python3 -m venv fails");
    }
    let requirements = cargo::project().join(REQUIREMENTS);
    let mut pip = Command::new(folder.join("bin/pip"));
    cargo::run(
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(&requirements),
    )?;
    fs::copy(&requirements, folder.join("requirements.txt"))
        .context("cannot note what is installed")?;
    Ok(())
}

fn make(folder: &std::path::Path) -> bool {
    let status = Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder).status();
    status.is_ok_and(|status| status.success())
}
