//! The real `terraform`, with providers that were built here.

use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// `terraform` that finds providers where they were built, and needs no `init` for them.
#[derive(Debug, Clone)]
pub struct Terraform {
    /// The configuration of its command line: where providers are.
    pub settings: PathBuf,
}

impl Terraform {
    /// Returns a `terraform` that finds providers, by their sources, in folders. `settings` is the
    /// file to write that into.
    ///
    /// # Errors
    /// Fails if that cannot be written.
    pub fn new(settings: PathBuf, providers: &[(&str, &Path)]) -> Result<Self> {
        let one = |(source, folder): &(&str, &Path)| {
            format!("    \"{source}\" = \"{}\"\n", folder.display())
        };
        let overrides: String = providers.iter().map(one).collect();
        let text = format!(
            "provider_installation {{\n  dev_overrides {{\n{overrides}  }}\n  direct {{}}\n}}\n"
        );
        fs::write(&settings, text)?;
        Ok(Self { settings })
    }

    /// The command, in a root module, that asks nobody but the providers.
    pub fn command(&self, root: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("terraform");
        command.args(arguments).current_dir(root);
        command.env("TF_CLI_CONFIG_FILE", &self.settings).env("CHECKPOINT_DISABLE", "1");
        command
    }
}
