//! The long tests: many kills, hostile neighbours, transfers between all pairs of uplinks, and all
//! fuzz targets for some minutes.

use crate::{fuzz, test};
use anyhow::Result;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The number of times that a daemon is killed
    #[arg(long, value_name = "N", default_value_t = 1000)]
    kills: u32,
    /// How long to run each fuzz target, in seconds; 0 runs none
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    fuzz_seconds: u32,
    /// The seed of random choices, to repeat a run that printed it
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut variables =
        vec![("TEST_KILLS", options.kills.to_string()), ("TEST_EVERY_PAIR", "1".into())];
    variables.extend(options.seed.map(|seed| ("TEST_SEED", seed.to_string())));
    // No retries: a long run is for failures that happen once.
    let which = "test(/^(applications|faults|hostile)::/)";
    let nextest = ["--no-capture", "--retries", "0", "--profile", "soak", "-E", which];
    let code = test::run_with(&nextest, &variables)?;
    if options.fuzz_seconds == 0 || code != ExitCode::SUCCESS {
        return Ok(code);
    }
    fuzz::run(&fuzz::Options { target: None, seconds: options.fuzz_seconds, keep: None })
}
