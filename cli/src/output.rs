//! Printing: tables for people, JSON and YAML for programs. A closed pipe ends no command: what it
//! does, it does.

use crate::arguments::{Common, Output};
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    fmt,
    io::{self, ErrorKind, IsTerminal, Write},
    sync::atomic::{AtomicU8, Ordering},
};

/// The state of standard output.
static STDOUT: AtomicU8 = AtomicU8::new(OPEN);
const OPEN: u8 = 0;
/// Nobody reads it any more, as after `| head`.
const CLOSED: u8 = 1;
/// It cannot be written to, as on a full disk.
const BROKEN: u8 = 2;

/// Prints a line on standard output.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line on standard error.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::output::print_note(format_args!($($text)*)) };
}

/// Prints on standard output, unless nobody reads it.
pub(crate) fn print(text: fmt::Arguments) {
    if STDOUT.load(Ordering::Relaxed) != OPEN {
        return;
    }
    let mut stdout = anstream::stdout().lock();
    if let Err(error) = stdout.write_fmt(text) {
        let how = if error.kind() == ErrorKind::BrokenPipe { CLOSED } else { BROKEN };
        STDOUT.store(how, Ordering::Relaxed);
    }
}

/// Prints a line on standard error. There is nowhere to say that this fails.
pub(crate) fn print_note(text: fmt::Arguments) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Returns `true` if nobody reads standard output any more.
pub(crate) fn is_closed() -> bool {
    STDOUT.load(Ordering::Relaxed) != OPEN
}

/// Writes out what was printed.
///
/// # Errors
/// Fails if it cannot be written, for another reason than that nobody reads it.
pub(crate) fn finish() -> Result<()> {
    let flushed = io::stdout().flush();
    let broken = flushed.is_err_and(|error| error.kind() != ErrorKind::BrokenPipe);
    if broken || STDOUT.load(Ordering::Relaxed) == BROKEN {
        Err(anyhow::anyhow!("standard output cannot be written to; is the disk full?"))
    } else {
        Ok(())
    }
}

/// Prints what was read: as a table with these columns, or whole.
///
/// A column whose name ends with `+` is left out where a terminal has no room for it, unless `-o
/// wide` asks for it.
///
/// # Errors
/// Fails if it cannot be encoded.
pub(crate) fn show<T: Serialize, const N: usize>(
    common: &Common,
    all: &[T],
    columns: [&str; N],
    row: impl Fn(&T) -> [String; N],
    none: &str,
) -> Result<()> {
    if whole(common, &all)? {
        return Ok(());
    }
    if all.is_empty() {
        note!("{none}");
        return Ok(());
    }
    table(common, columns, all.iter().map(row));
    Ok(())
}

/// Prints a value whole if JSON or YAML is asked for.
///
/// # Errors
/// Fails if it cannot be encoded.
pub(crate) fn whole(common: &Common, value: &impl Serialize) -> Result<bool> {
    match common.output {
        Output::Table | Output::Wide => return Ok(false),
        Output::Json => out!("{}", serde_json::to_string_pretty(value)?),
        Output::Yaml => print(format_args!("{}", serde_saphyr::to_string(value)?)),
    }
    Ok(true)
}

/// A side effect of a change.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Effect {
    /// The verb: `detach`, `remove`, `cut`.
    pub action: &'static str,
    /// The kind of object: `workload`, `route`, `policy`.
    pub kind: &'static str,
    /// The object's name or id.
    pub name: String,
    /// Further details by which people recognize the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.action, self.kind, self.name)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// A change, as it is told: made, or in a dry run only worked out.
pub(crate) struct Change<'a> {
    /// The change as a dry run prints it, such as `remove node cloud`.
    pub would: String,
    /// The change once it is made, such as `node cloud is removed`.
    pub done: String,
    /// The further effects.
    pub effects: Vec<Effect>,
    /// The answer of the API, for programs.
    pub result: Option<&'a dyn erased::Result>,
}

/// A value that can be turned into JSON, whatever its type.
pub(crate) mod erased {
    use serde::Serialize;

    pub(crate) trait Result {
        fn to_json(&self) -> serde_json::Result<serde_json::Value>;
    }

    impl<T: Serialize> Result for T {
        fn to_json(&self) -> serde_json::Result<serde_json::Value> {
            serde_json::to_value(self)
        }
    }
}

/// Prints a change, or in a dry run what it would be.
///
/// # Errors
/// Fails if it cannot be encoded.
pub(crate) fn tell(common: &Common, change: &Change) -> Result<()> {
    if common.is_table() {
        tell_people(common, change);
        return Ok(());
    }
    let result =
        change.result.map(erased::Result::to_json).transpose().context("cannot be encoded")?;
    whole(common, &as_json(common.dry_run, change, result)).map(drop)
}

fn as_json(dry_run: bool, change: &Change, result: Option<Value>) -> Value {
    let mut object = match result {
        Some(Value::Object(object)) => object,
        Some(other) => Map::from_iter([("result".to_owned(), other)]),
        None => Map::new(),
    };
    if dry_run {
        object.insert("dry_run".into(), true.into());
        object.insert("would".into(), change.would.clone().into());
        object.insert("effects".into(), json!(change.effects));
    } else if object.is_empty() {
        object.insert("done".into(), change.done.clone().into());
    }
    Value::Object(object)
}

fn tell_people(common: &Common, change: &Change) {
    if !common.dry_run {
        out!("{}", change.done);
        return;
    }
    out!("would {}", change.would);
    few(common, &change.effects, |effect| out!("would {effect}"));
    note_dry_run(common);
}

/// The number of items to print of a longer list.
const FEW: usize = 20;

/// Prints items one by one, of many only the first; `-o wide` prints all.
pub(crate) fn few<T>(common: &Common, all: &[T], tell: impl Fn(&T)) {
    let shown = match common.output {
        Output::Wide => all.len(),
        // One more is no longer than to say that there is one.
        _ if all.len() <= FEW + 1 => all.len(),
        _ => FEW,
    };
    all[..shown].iter().for_each(tell);
    if shown < all.len() {
        note!("and {} more; -o wide tells them all", all.len() - shown);
    }
}

/// Prints that a write was only a dry run.
pub(crate) fn note_dry_run(common: &Common) {
    if common.dry_run {
        note!("dry run: nothing was changed");
    }
}

/// Prints a table: each column as wide as its widest cell, colours not counted, as far as the
/// terminal has room.
pub(crate) fn table<const N: usize>(
    common: &Common,
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let room = match (common.output, io::stdout().is_terminal()) {
        (Output::Wide, _) | (_, false) => usize::MAX,
        (_, true) => terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0)),
    };
    let rows = rows.map(Vec::from).collect();
    print(format_args!("{}", super::table::lay_out(&columns, rows, room)));
}

/// Text in green.
pub(crate) fn good(text: impl fmt::Display) -> String {
    let style = AnsiColor::Green.on_default();
    format!("{style}{text}{style:#}")
}

/// Text in red.
pub(crate) fn bad(text: impl fmt::Display) -> String {
    let style: Style = AnsiColor::Red.on_default().bold();
    format!("{style}{text}{style:#}")
}

/// A number of bytes in binary units.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit < units.len() - 1 {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Several things in one cell; a dash for none.
pub(crate) fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let text = all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

/// The text, or a dash for none.
pub(crate) fn or_dash<T: ToString>(text: Option<T>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// A number of things: `1 node`, `2 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
