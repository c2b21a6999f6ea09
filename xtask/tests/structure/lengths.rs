//! Files and functions stay short enough to be read at once.

use crate::{assert_none, read, tracked};
use std::path::Path;

const MAX_FILE_LINES: usize = 500;
/// Functions that may be longer than clippy.toml says, each with its reason in an attribute.
const MAX_LONG_FUNCTIONS: usize = 3;

/// Tests, and tables of data, may be as long as it takes.
fn is_apart(file: &Path) -> bool {
    let text = file.to_str().expect("names are UTF-8");
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    text.starts_with("tests/")
        || text.contains("/tests/")
        || stem == "tests"
        || stem.ends_with("_tests")
        || stem == "samples"
}

#[test]
fn files_have_500_lines_at_most() {
    let files = tracked(".rs").into_iter().filter(|file| !is_apart(file));
    let findings = files.filter_map(|file| {
        let lines = read(&file).lines().count();
        (lines > MAX_FILE_LINES)
            .then(|| format!("{}: {lines} lines: it holds more than one idea", file.display()))
    });
    assert_none(&findings.collect::<Vec<_>>(), "files are to have 500 lines at most");
}

#[test]
fn at_most_three_functions_are_long() {
    let marked = tracked(".rs").into_iter().filter(|file| !is_apart(file)).flat_map(|file| {
        let text = read(&file);
        let lines = text.lines().filter(|line| line.contains("clippy::too_many_lines"));
        lines.map(|line| format!("{}: {}", file.display(), line.trim())).collect::<Vec<_>>()
    });
    let marked: Vec<String> = marked.collect();
    assert!(marked.len() <= MAX_LONG_FUNCTIONS, "too many:\n  {}", marked.join("\n  "));
}
