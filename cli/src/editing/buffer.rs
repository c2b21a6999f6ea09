//! The text that an editor gets: the files of a policy one below the other, and remarks that are
//! left out when it is read back.

use meshward_types::PolicyFile;
use std::fmt::Write;

/// The beginning of our lines, which are comments in YAML. It is made longer until no line of a
/// file begins so.
const MARK: &str = "#|";
/// The line between two documents of YAML (YAML 1.2.2 §9.1.2).
const SEPARATOR: &str = "---\n";
/// Columns that a remark has less of: its mark.
const MARGIN: usize = 3;

/// The conversion of files into one text and back.
#[derive(Debug)]
pub(super) struct Buffer {
    mark: String,
    before: Vec<PolicyFile>,
}

/// A remark about a line, or about the whole text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remark {
    /// The position; `None` if the remark is about the whole text.
    pub location: Option<Location>,
    pub text: String,
}

/// A position in a file of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1.
    pub column: usize,
}

impl Remark {
    /// Parses a line that may begin with `FILE:LINE:COLUMN: `, for one of these files.
    pub(super) fn parse(line: &str, files: &[PolicyFile]) -> Self {
        let located = |file: &PolicyFile| {
            let rest = line.strip_prefix(file.name.as_str())?.strip_prefix(':')?;
            let (line, rest) = rest.split_once(':')?;
            let (column, text) = rest.split_once(": ")?;
            let (line, column) = (line.parse().ok()?, column.parse().ok()?);
            let location = Location { file: file.name.clone(), line, column };
            Some(Self { location: Some(location), text: text.to_owned() })
        };
        files
            .iter()
            .find_map(located)
            .unwrap_or_else(|| Self { location: None, text: line.to_owned() })
    }
}

impl Buffer {
    /// Creates the buffer of these files.
    pub(super) fn of(files: Vec<PolicyFile>) -> Self {
        let mut mark = MARK.to_owned();
        while files.iter().any(|file| file.text.lines().any(|line| line.starts_with(&mark))) {
            mark.push('|');
        }
        Self { mark, before: files }
    }

    /// Returns the beginning of our lines.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// The files that it began with.
    pub(super) fn before(&self) -> &[PolicyFile] {
        &self.before
    }

    /// The text for an editor: remarks about all of it stand first, the others below their lines.
    pub(super) fn write(&self, files: &[PolicyFile], remarks: &[Remark]) -> String {
        let mut all = String::new();
        for remark in remarks.iter().filter(|remark| !has_line(files, remark)) {
            self.say(&mut all, "", &remark.text);
        }
        for (number, file) in files.iter().enumerate() {
            if number > 0 && !file.text.starts_with("---") {
                all += SEPARATOR;
            }
            let _ = writeln!(all, "{} file: {}", self.mark, written_name(&file.name));
            self.write_file(&mut all, file, remarks);
        }
        all
    }

    fn write_file(&self, all: &mut String, file: &PolicyFile, remarks: &[Remark]) {
        for (at, line) in file.text.split_inclusive('\n').enumerate() {
            all.push_str(line);
            if !line.ends_with('\n') {
                all.push('\n');
            }
            for Remark { location, text } in remarks {
                match location {
                    Some(place) if place.file == file.name && place.line == at + 1 => {
                        let room = " ".repeat(place.column.saturating_sub(MARGIN + 1));
                        self.say(all, &format!("{room}^ "), text);
                    }
                    _ => {}
                }
            }
        }
    }

    fn say(&self, all: &mut String, before: &str, text: &str) {
        for line in text.lines() {
            all.push_str(format!("{} {before}{line}", self.mark).trim_end());
            all.push('\n');
        }
    }

    /// The files in a text that somebody has edited; what has nothing in it is no file any more.
    pub(super) fn read(&self, text: &str) -> Vec<PolicyFile> {
        let first = self.before.first().map_or("policy.yaml", |file| &file.name).to_owned();
        let mut files = vec![PolicyFile { name: first, text: String::new() }];
        for line in text.split_inclusive('\n') {
            let Some(own) = line.strip_prefix(&self.mark) else {
                if let Some(last) = files.last_mut() {
                    last.text.push_str(line);
                }
                continue;
            };
            if let Some(name) = own.trim().strip_prefix("file:") {
                files.push(PolicyFile { name: read_name(name.trim()), text: String::new() });
            }
        }
        let dashed: Vec<bool> = files.iter().map(|file| file.text.starts_with("---")).collect();
        for (file, next) in files.iter_mut().zip(dashed.iter().skip(1)) {
            let rest = file
                .text
                .strip_suffix(SEPARATOR)
                .filter(|rest| rest.is_empty() || rest.ends_with('\n'));
            if let (Some(rest), false) = (rest, next) {
                file.text.truncate(rest.len());
            }
        }
        files.retain(|file| !file.text.trim().is_empty());
        for file in &mut files {
            self.without_added_end(file);
        }
        files
    }

    /// A last line without an end, which got one for the editor, is as it was.
    fn without_added_end(&self, file: &mut PolicyFile) {
        let was = self.before.iter().find(|was| was.name == file.name);
        if was.is_some_and(|was| file.text.strip_suffix('\n') == Some(was.text.as_str())) {
            file.text.pop();
        }
    }
}

/// A name in one line.
fn written_name(name: &str) -> String {
    let plain = name.trim() == name && !name.starts_with('"') && !name.contains(char::is_control);
    if plain && !name.is_empty() {
        name.to_owned()
    } else {
        serde_json::Value::from(name).to_string()
    }
}

fn read_name(text: &str) -> String {
    serde_json::from_str(text)
        .ok()
        .filter(|_| text.starts_with('"'))
        .unwrap_or_else(|| text.to_owned())
}

fn has_line(files: &[PolicyFile], remark: &Remark) -> bool {
    remark.location.as_ref().is_some_and(|Location { file: name, line, .. }| {
        files
            .iter()
            .any(|file| file.name == *name && (1..=file.text.lines().count()).contains(line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeSet;

    fn file(name: &str, text: &str) -> PolicyFile {
        PolicyFile { name: name.into(), text: text.into() }
    }

    fn a_file() -> impl Strategy<Value = PolicyFile> {
        let line = prop_oneof![
            Just("---".to_owned()),
            Just("#| mine".to_owned()),
            Just("#| file: b".to_owned()),
            Just(String::new()),
            "[ -~é]{0,12}"
        ];
        let name = prop_oneof!["[a-c](/[a-c])?", Just("-".to_owned()), " ?\"?[a\n\"\\\\]{1,3}"];
        (name, vec(line, 1..6), any::<bool>()).prop_map(|(name, lines, ends)| {
            let end = if ends { "\n" } else { "" };
            PolicyFile { name, text: format!("x{}{end}", lines.join("\n")) }
        })
    }

    proptest! {
        #[test]
        fn what_is_not_edited_is_read_back_byte_by_byte_whatever_is_remarked(
            files in vec(a_file(), 0..4),
            remarks in vec((0..4_usize, 0..8_usize, 0..30_usize, "[ -~\n]{0,20}"), 0..4),
        ) {
            let mut names = BTreeSet::new();
            let files: Vec<_> =
                files.into_iter().filter(|file| names.insert(file.name.clone())).collect();
            let remarks: Vec<_> = remarks.into_iter().map(|(file, line, column, text)| {
                let location = files.get(file).map(|file| {
                    Location { file: file.name.clone(), line, column }
                });
                Remark { location, text }
            }).collect();
            let buffer = Buffer::of(files.clone());
            let text = buffer.write(&files, &remarks);
            prop_assert_eq!(buffer.read(&text), files, "{}", text);
        }
    }

    #[test]
    fn a_mistake_stands_below_its_column_and_others_stand_first() {
        let files = vec![
            file("a.yaml", "network: shop\nrules: [{ alow: [] }]\n"),
            file("b.yaml", "network: shop"),
        ];
        let buffer = Buffer::of(files.clone());
        let lines = [
            "a.yaml:2:11: `alow` is not known",
            "b.yaml:1:1: twice",
            "b.yaml:9:1: nowhere",
            "too much",
        ];
        let remarks: Vec<_> = lines.iter().map(|line| Remark::parse(line, &files)).collect();
        let text = buffer.write(&files, &remarks);
        assert_eq!(
            text,
            "#| nowhere\n#| too much\n#| file: a.yaml\nnetwork: shop\nrules: [{ alow: [] }]\n\
             #|        ^ `alow` is not known\n---\n#| file: b.yaml\nnetwork: shop\n#| ^ twice\n"
        );
    }

    #[test]
    fn files_come_go_and_are_found_without_their_marks() {
        let buffer = Buffer::of(vec![file("a.yaml", "a\n"), file("b.yaml", "b\n")]);
        assert_eq!(
            buffer.read("a\n#| file: c.yaml\nc\n"),
            [file("a.yaml", "a\n"), file("c.yaml", "c\n")]
        );
        assert_eq!(buffer.read("#| file: a.yaml\n\n#| file: b.yaml\nb\n"), [file("b.yaml", "b\n")]);
        assert_eq!(buffer.read("  \n#| file: a.yaml\n"), []);
        assert_eq!(
            Buffer::of(vec![]).read("network: shop\n"),
            [file("policy.yaml", "network: shop\n")]
        );
    }
}
