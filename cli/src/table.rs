//! The layout of a table in the width of the terminal: columns that can be missed go first, then
//! cells are broken into lines.

use anstyle::Style;
use std::fmt::Write;

/// Spaces between two columns.
const GAP: usize = 2;
/// No column is made narrower than this.
const NARROWEST: usize = 8;

/// The table as text of lines that end with a newline. `room`: how many characters a line may have.
pub(crate) fn lay_out(columns: &[&str], rows: Vec<Vec<String>>, room: usize) -> String {
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    let names: Vec<&str> = columns.iter().map(|name| name.trim_end_matches('+')).collect();
    let natural: Vec<usize> = (0..columns.len())
        .map(|at| rows.iter().map(|row| seen(&row[at])).chain([names[at].len()]).max().unwrap_or(0))
        .collect();
    while total(&kept, &natural) > room {
        let Some(at) = kept.iter().rposition(|at| columns[*at].ends_with('+')) else { break };
        kept.remove(at);
    }
    let widths = shrink(&kept, &natural, &names, room);
    let bold = Style::new().bold();
    let mut text = String::new();
    let head: Vec<String> = kept.iter().map(|at| names[*at].to_owned()).collect();
    let mut put = |cells: &[String], style: Style| {
        for line in lines(cells, &widths) {
            // Writing to a string has no way to fail.
            let _ = writeln!(text, "{style}{line}{style:#}");
        }
    };
    put(&head, bold);
    for row in rows {
        let cells: Vec<String> = kept.iter().map(|at| row[*at].clone()).collect();
        put(&cells, Style::new());
    }
    text
}

fn total(kept: &[usize], widths: &[usize]) -> usize {
    kept.iter().map(|at| widths[*at]).sum::<usize>() + GAP * kept.len().saturating_sub(1)
}

/// The widths of the columns that are kept: the widest give way first.
fn shrink(kept: &[usize], natural: &[usize], names: &[&str], room: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = kept.iter().map(|at| natural[*at]).collect();
    let least: Vec<usize> =
        kept.iter().map(|at| natural[*at].min(names[*at].len().max(NARROWEST))).collect();
    let gaps = GAP * kept.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > room {
        let widest =
            (0..widths.len()).filter(|at| widths[*at] > least[*at]).max_by_key(|at| widths[*at]);
        let Some(widest) = widest else { break };
        widths[widest] -= 1;
    }
    widths
}

/// The lines of a row whose cells are broken to their columns' widths.
fn lines(cells: &[String], widths: &[usize]) -> Vec<String> {
    let broken: Vec<(&str, Vec<String>, &str)> =
        cells.iter().zip(widths).map(|(cell, width)| break_cell(cell, *width)).collect();
    let most = broken.iter().map(|(_, parts, _)| parts.len()).max().unwrap_or(0);
    let line = |number: usize| {
        let mut line = String::new();
        for ((on, parts, off), width) in broken.iter().zip(widths) {
            let part = parts.get(number).map_or("", String::as_str);
            let (on, off) = if part.is_empty() { ("", "") } else { (*on, *off) };
            let pad = width.saturating_sub(part.chars().count()) + GAP;
            let _ = write!(line, "{on}{part}{off}{:pad$}", "");
        }
        line.trim_end().to_owned()
    };
    (0..most).map(line).collect()
}

/// A cell in parts of at most `width` characters, and the codes that begin and end its colour.
fn break_cell(cell: &str, width: usize) -> (&str, Vec<String>, &str) {
    let (on, rest) =
        if cell.starts_with('\x1b') { cell.split_at(codes_at_start(cell)) } else { ("", cell) };
    let (text, off) = rest.find('\x1b').map_or((rest, ""), |at| rest.split_at(at));
    let mut parts = Vec::new();
    let mut line = String::new();
    for word in words(text) {
        let mut word = word;
        if line.chars().count() + word.trim_end().chars().count() > width && !line.is_empty() {
            parts.push(std::mem::take(&mut line).trim_end().to_owned());
        }
        while word.trim_end().chars().count() > width {
            let at = word.char_indices().nth(width.max(1)).map_or(word.len(), |(at, _)| at);
            let (head, tail) = word.split_at(at);
            parts.push(head.to_owned());
            word = tail;
        }
        line.push_str(word);
    }
    parts.push(line.trim_end().to_owned());
    (on, parts, off)
}

/// The length of the colour codes that a text begins with, in bytes.
fn codes_at_start(text: &str) -> usize {
    let mut at = 0;
    while text[at..].starts_with('\x1b') {
        let Some(end) = text[at..].find('m') else { break };
        at += end + 1;
    }
    at
}

/// The parts between which a line may be broken: behind spaces and commas.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive([' ', ','])
}

/// Returns the number of visible characters of a text.
fn seen(text: &str) -> usize {
    anstream::adapter::strip_str(text).to_string().chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::bad;

    fn rows() -> Vec<Vec<String>> {
        let labels = "app=web,env=prod,team=checkout,tier=front,version=2026-11-26";
        vec![
            vec!["w-0123456789ab".into(), labels.into(), "docker".into(), bad("refused")],
            vec!["w-1".into(), "-".into(), "-".into(), "open".into()],
        ]
    }

    const COLUMNS: [&str; 4] = ["ID", "LABELS", "RUNTIME+", "STATE"];

    #[test]
    fn a_table_fits_its_room_and_loses_nothing_but_what_can_be_missed() {
        for room in [36, 40, 60, 80, 90, 200] {
            let text = lay_out(&COLUMNS, rows(), room);
            let plain = anstream::adapter::strip_str(&text).to_string();
            assert!(plain.lines().all(|line| line.chars().count() <= room), "{room}:\n{plain}");
            let all: String = plain.split_whitespace().collect();
            for part in ["app=web,", "team=checkout,", "version=", "2026-11-26", "refused", "open"]
            {
                assert!(all.contains(part), "{room}: no {part} in\n{plain}");
            }
            assert_eq!(plain.contains("RUNTIME"), room >= 100, "{room}");
        }
    }

    #[test]
    fn without_a_terminal_every_row_is_one_line() {
        assert_eq!(lay_out(&COLUMNS, rows(), usize::MAX).lines().count(), 3);
    }

    #[test]
    fn a_colour_ends_on_the_line_where_it_began() {
        let text =
            lay_out(&["WHY"], vec![vec![bad("a reason that is longer than its column")]], 12);
        for line in text.lines().skip(1) {
            assert!(line.starts_with('\x1b') && line.ends_with("\x1b[0m"), "{line:?}");
        }
    }
}
