//! Printing: tables for people, JSON and YAML for programs.

use crate::arguments::{Common, Output};
use anstyle::{AnsiColor, Style};
use anyhow::Result;
use serde::Serialize;

/// Prints what was read: as a table with these columns, or whole.
///
/// # Errors
/// If it cannot be encoded.
pub fn show<T: Serialize, const N: usize>(
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
        anstream::eprintln!("{none}");
        return Ok(());
    }
    table(columns, all.iter().map(row));
    Ok(())
}

/// Prints a value whole if JSON or YAML is asked for.
///
/// # Errors
/// If it cannot be encoded.
pub fn whole(common: &Common, value: &impl Serialize) -> Result<bool> {
    match common.output {
        Output::Table => return Ok(false),
        Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(value)?),
    }
    Ok(true)
}

/// Prints a table: each column as wide as its widest cell, colours not counted.
pub fn table<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = rows.collect();
    let seen = |text: &str| anstream::adapter::strip_str(text).to_string().chars().count();
    let width =
        |at: usize| rows.iter().map(|row| seen(&row[at])).chain([columns[at].len()]).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell}{:1$}", "", width - seen(cell)));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    let bold = Style::new().bold();
    anstream::println!("{bold}{}{bold:#}", line(columns));
    rows.iter().for_each(|row| anstream::println!("{}", line(row.each_ref().map(String::as_str))));
}

/// Text in green.
pub fn good(text: impl std::fmt::Display) -> String {
    let style = AnsiColor::Green.on_default();
    format!("{style}{text}{style:#}")
}

/// Text in red.
pub fn bad(text: impl std::fmt::Display) -> String {
    let style = AnsiColor::Red.on_default().bold();
    format!("{style}{text}{style:#}")
}

/// Says that a write was only tried.
pub fn note_dry_run(common: &Common) {
    if common.dry_run {
        anstream::eprintln!("dry run: nothing was changed");
    }
}

/// A number of bytes in binary units.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit < units.len() - 1 {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Several things in one cell; a dash for none.
pub fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let text = all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}
