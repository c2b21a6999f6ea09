//! The command-line arguments that all daemons have: the log's format, and the configuration file
//! beside the flags of each.

use crate::{LogFormat, config};
use anyhow::Result;
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

/// The flags of one daemon or one of its commands. Each flag overrides the key of the same name in
/// the configuration.
pub trait Flags: clap::Args + Serialize {
    /// The configuration file that is read if none is named, if it is there.
    const CONFIG_FILE: &'static str;
}

/// The format of the log.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct LogArguments {
    /// The form of the log
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub log_format: LogFormat,
}

/// The configuration file, and the flags that override it.
#[derive(Debug, clap::Args)]
pub struct ConfigArguments<F: Flags> {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        help = format!("Configuration file, in TOML [default: {}, if it is there]", F::CONFIG_FILE)
    )]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: F,
}

impl<F: Flags> ConfigArguments<F> {
    /// Loads the configuration: defaults, the file, environment variables, then the flags.
    ///
    /// # Errors
    /// The errors of [`config::load`].
    pub fn load<T: Serialize + DeserializeOwned + Default>(&self) -> Result<T> {
        let file = self.config.as_deref();
        Ok(config::load(file, Path::new(F::CONFIG_FILE), &self.flags)?)
    }
}
