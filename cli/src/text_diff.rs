//! The difference of policies' texts: a unified diff, file by file.

use crate::{
    out,
    output::{bad, good},
};
use meshward_types::PolicyFile;
use similar::TextDiff;
use std::collections::BTreeSet;

/// Lines around what has changed.
const CONTEXT: usize = 3;

/// The difference of two sets of files, in the form that patch(1) takes; empty if there is none.
pub(crate) fn unified(before: &[PolicyFile], after: &[PolicyFile], old: &str, new: &str) -> String {
    let names: BTreeSet<&str> = before.iter().chain(after).map(|file| file.name.as_str()).collect();
    let text = |files: &[PolicyFile], name: &str| {
        files
            .iter()
            .find(|file| file.name == name)
            .map(|file| file.text.clone())
            .unwrap_or_default()
    };
    let mut all = String::new();
    for name in names {
        let (before, after) = (text(before, name), text(after, name));
        if before != after {
            let diff = TextDiff::from_lines(&before, &after);
            let (old, new) = (format!("{name} ({old})"), format!("{name} ({new})"));
            all += &diff.unified_diff().context_radius(CONTEXT).header(&old, &new).to_string();
        }
    }
    all
}

/// Prints a difference, coloured.
pub(crate) fn show(text: &str) {
    for line in text.lines() {
        match line.as_bytes().first() {
            Some(b'+') => out!("{}", good(line)),
            Some(b'-') => out!("{}", bad(line)),
            _ => out!("{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> PolicyFile {
        PolicyFile { name: name.into(), text: text.into() }
    }

    #[test]
    fn files_that_come_go_or_change_are_shown_and_others_are_not() {
        let before =
            [file("a.yaml", "network: shop\nx: 1\n"), file("b.yaml", "b\n"), file("c.yaml", "c\n")];
        let after =
            [file("a.yaml", "network: shop\nx: 2\n"), file("c.yaml", "c\n"), file("d.yaml", "d\n")];
        let text = unified(&before, &after, "revision 1", "now");
        for line in ["--- a.yaml (revision 1)", "+++ a.yaml (now)", "-x: 1", "+x: 2", "-b", "+d"] {
            assert!(text.lines().any(|own| own == line), "no `{line}` in\n{text}");
        }
        assert!(!text.contains("c.yaml"));
        assert_eq!(unified(&before, &before, "a", "b"), "");
    }
}
