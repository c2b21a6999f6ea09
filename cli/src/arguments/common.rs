//! Arguments that several commands have in common.

use crate::{Mistake, completion};
use clap::{Args, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use meshward_api_types::local::DEFAULT_SOCKET;
use meshward_types::Selector;
use std::{path::PathBuf, time::Duration};

/// Under what the help lists what every command takes.
const EVERYWHERE: &str = "Options of every command";

/// What every command takes.
#[derive(Args)]
pub(crate) struct Common {
    /// How to print what was read or done
    #[arg(
        short,
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_enum,
        default_value_t = Output::Table,
    )]
    pub output: Output,
    /// A context by its name (`meshctl context list`), or a file with one, such as the
    /// coordinator's admin.json [env: `MESHCTL_CONTEXT`] [default: the one in use, then the
    /// coordinator's own file on this machine]
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "NAME|FILE",
        add = live(completion::contexts),
    )]
    pub context: Option<String>,
    /// The node daemon's socket [env: `MESHCTL_SOCKET`]
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "PATH",
        default_value_os_t = usual_socket(),
    )]
    pub socket: PathBuf,
    /// Check and say what would be changed, by name, and change nothing
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub dry_run: bool,
}

/// The variable that names a context, and the one that names a socket.
pub(crate) const CONTEXT: &str = "MESHCTL_CONTEXT";
pub(crate) const SOCKET: &str = "MESHCTL_SOCKET";

/// The value of a variable of the environment; an empty one counts as unset.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn usual_socket() -> PathBuf {
    variable(SOCKET).unwrap_or_else(|| DEFAULT_SOCKET.into()).into()
}

impl Common {
    /// Whether people read what is printed.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people; on a terminal as wide as it is
    Table,
    /// For people, with every column, however wide
    Wide,
    Json,
    Yaml,
}

/// What every list takes.
#[derive(Args, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Watching {
    /// Go on, and print anew whenever something has changed
    #[arg(short, long)]
    pub watch: bool,
}

/// The verb, or, where there is none, the list that is meant.
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

/// What lists of things with labels take.
#[derive(Args, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labelled {
    /// Only those with these labels, such as app=web,env!=prod
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<Selector>,
    #[command(flatten)]
    pub watching: Watching,
}

/// Names that are looked up while a line is being written.
pub(super) fn live(look: fn() -> Vec<CompletionCandidate>) -> ArgValueCandidates {
    ArgValueCandidates::new(look)
}

/// A time such as `10m`, `24h` or `7d`.
///
/// # Errors
/// What is wrong with it, and how to write one.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s, 10m, 24h or 7d"))
}

/// For how long to wait for what only has to be waited for.
#[derive(Args, Clone, Copy)]
pub(crate) struct Patience {
    /// How long to wait for the node daemon, for the network to be served and for the workload to
    /// be let in
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub wait: Duration,
}
