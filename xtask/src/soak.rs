//! The long runs: many kills, every hostile neighbour, transfers between all pairs of uplinks, and
//! all fuzz targets for some minutes.

use crate::{fuzz, test};
use anyhow::Result;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often a daemon is killed
    #[arg(long, value_name = "N", default_value_t = 1000)]
    kills: u32,
    /// For how long each fuzz target runs, in seconds; 0 leaves them out
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    fuzz_seconds: u32,
    /// Has random choices come again as in a run that printed it
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut variables =
        vec![("TEST_KILLS", options.kills.to_string()), ("TEST_EVERY_PAIR", "1".into())];
    variables.extend(options.seed.map(|seed| ("TEST_SEED", seed.to_string())));
    // Nothing is tried a second time: what fails once in a long run is what it is for.
    let which = "test(/^(applications|faults|hostile)::/)";
    let nextest = ["--no-capture", "--retries", "0", "--profile", "soak", "-E", which];
    let code = test::run_with(&nextest, &variables)?;
    if options.fuzz_seconds == 0 || code != ExitCode::SUCCESS {
        return Ok(code);
    }
    fuzz::run(&fuzz::Options { target: None, seconds: options.fuzz_seconds, keep: None })
}
