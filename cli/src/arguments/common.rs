//! Arguments that several commands have in common.

use crate::{Mistake, completion};
use clap::{Args, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use meshward_api_types::local::DEFAULT_SOCKET;
use meshward_types::Selector;
use std::{path::PathBuf, time::Duration};

/// The heading of the options that every command takes.
const EVERYWHERE: &str = "Options of every command";

/// The options of every command.
#[derive(Args)]
pub(crate) struct Common {
    /// The output format
    #[arg(
        short,
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_enum,
        default_value_t = Output::Table,
    )]
    pub output: Output,
    /// The name of a context (`meshctl context list`), or a file with one, such as the
    /// coordinator's admin.json [env: MESHCTL_CONTEXT] [default: the one in use, then the
    /// coordinator's own file on this machine]
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "NAME|FILE",
        add = live(completion::contexts),
    )]
    pub context: Option<String>,
    /// The node daemon's socket [env: MESHCTL_SOCKET]
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "PATH",
        default_value_os_t = usual_socket(),
    )]
    pub socket: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub dry_run: bool,
}

/// The variable that names a context, and the one that names a socket.
pub(crate) const CONTEXT: &str = "MESHCTL_CONTEXT";
pub(crate) const SOCKET: &str = "MESHCTL_SOCKET";

/// Returns the value of an environment variable; an empty one counts as unset.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn usual_socket() -> PathBuf {
    variable(SOCKET).unwrap_or_else(|| DEFAULT_SOCKET.into()).into()
}

impl Common {
    /// Returns whether the output is a table, for people.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table that fits the terminal
    Table,
    /// A table with every column
    Wide,
    Json,
    Yaml,
}

/// The options of every list.
#[derive(Args, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Watching {
    /// Print the list again whenever it changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Returns the verb, or, where there is none, the list.
///
/// # Errors
/// [`Mistake`] if what is meant for the list stands in front of a verb: there it would do nothing.
pub(crate) fn verb_or_list<V, W: Default + PartialEq>(
    verb: Option<V>,
    which: W,
    list: impl FnOnce(W) -> V,
) -> Result<V, Mistake> {
    match verb {
        None => Ok(list(which)),
        Some(verb) if which == W::default() => Ok(verb),
        Some(_) => Err(Mistake(
            "say what to list behind the verb: `meshctl NOUN list ...`, or leave the verb out"
                .into(),
        )),
    }
}

/// The options of lists of things with labels.
#[derive(Args, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labelled {
    /// Only those with these labels, such as app=web,env!=prod
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<Selector>,
    #[command(flatten)]
    pub watching: Watching,
}

/// Returns a completer that looks up live names.
pub(super) fn live(look: fn() -> Vec<CompletionCandidate>) -> ArgValueCandidates {
    ArgValueCandidates::new(look)
}

/// Parses a time such as `10m`, `24h` or `7d`.
///
/// # Errors
/// The mistake, and how to write a time.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s, 10m, 24h or 7d"))
}

/// The patience of a command with a daemon that has just started.
#[derive(Args, Clone, Copy)]
pub(crate) struct Patience {
    /// The longest wait for the node daemon, the network and the admission of the workload
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub wait: Duration,
}
