//! Mistakes in a policy, with their positions.

use super::tree::At;
use std::fmt;

/// A position, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    /// The file.
    pub file: String,
    /// The line.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

impl fmt::Display for SourceSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A mistake, its position, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The position.
    pub span: SourceSpan,
    /// The mistake, and how to fix it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.span, self.text)
    }
}

/// All mistakes in the files of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPolicy(pub Vec<Problem>);

impl std::error::Error for BadPolicy {}

impl fmt::Display for BadPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Returns the most similar of the known words, as a sentence.
pub(crate) fn did_you_mean<'a>(
    given: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let near = known.map(|word| (strsim::damerau_levenshtein(given, word), word)).min()?;
    let most = (given.chars().count() / 3).max(1);
    (near.0 <= most && near.0 > 0).then(|| format!("did you mean `{}`?", near.1))
}

pub(super) fn span(file: &str, at: At) -> SourceSpan {
    SourceSpan { file: file.to_owned(), line: at.line.into(), column: at.column.into() }
}
