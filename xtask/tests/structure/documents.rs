//! Links in documents lead to files and headings that are there.

use crate::{assert_none, read, root, tracked};
use std::path::{Component, Path, PathBuf};

/// The targets of inline links, `[text](target)`, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = vec![];
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        // What stands between backticks is no link.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("");
        found.extend(
            plain
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split_once(')').map(|(target, _)| target.to_owned())),
        );
    }
    found
}

/// The anchors that GitHub gives to headings: lower case, blanks to hyphens, no other punctuation.
fn anchors(text: &str) -> Vec<String> {
    let headings = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut findings = vec![];
    for file in tracked(".md") {
        for link in links(&read(&file)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => file.clone(),
                path => normal(&file.parent().unwrap_or(Path::new("")).join(path)),
            };
            if !root().join(&target).exists() {
                findings.push(format!("{}: {link}: no such file", file.display()));
            } else if !anchor.is_empty() && !anchors(&read(&target)).contains(&anchor.to_owned()) {
                findings.push(format!("{}: {link}: no such heading", file.display()));
            }
        }
    }
    assert_none(&findings, "links lead nowhere");
}

/// Paths in backticks of the guided tours: a reader follows them.
#[test]
fn paths_in_the_architecture_are_there() {
    let text = read(Path::new("ARCHITECTURE.md"));
    let code = text.split('`').skip(1).step_by(2);
    let paths = code.filter(|code| {
        let known =
            ["crates/", "node/", "coordinator/", "relay/", "cli/", "cni/", "terraform/", "tests/"];
        known.iter().any(|folder| code.starts_with(folder)) && !code.contains(['*', ' ', '{'])
            // The name of a part of a policy, not of a file.
            && *code != "terraform/admission.yaml"
    });
    let missing: Vec<String> =
        paths.filter(|path| !root().join(path).exists()).map(str::to_owned).collect();
    assert_none(&missing, "ARCHITECTURE.md names what is not there");
}

/// The types beside the glossary's words are those of the code.
#[test]
fn types_of_the_glossary_are_there() {
    let text = read(Path::new("ARCHITECTURE.md"));
    let glossary = text.split("\n## ").find(|part| part.starts_with("Glossary"));
    let code: String = tracked(".rs").iter().map(|file| read(file)).collect();
    let rows = glossary.expect("there is a glossary").lines().filter(|line| line.starts_with('|'));
    let types = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    let types = types.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned));
    // These are defined by a macro.
    let names = read(Path::new("crates/types/src/names.rs"));
    let missing: Vec<String> = types
        .filter(|name| {
            let defined = ["struct ", "enum ", "type "];
            !defined.iter().any(|kind| code.contains(&format!("{kind}{name}")))
                && !names.contains(&format!("    {name},"))
        })
        .collect();
    assert_none(&missing, "the glossary names types that are not there");
}
