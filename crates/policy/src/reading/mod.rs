//! The reader of policies: from YAML documents, in one file or many, to one policy for each
//! network. It reports all mistakes at once.

mod documents;
mod merge;
mod outside;
mod own;
mod parsed;
mod problems;
mod reader;
mod rules;
mod services;
mod tree;
mod value;

pub use documents::MAX_SOURCE;
pub use own::own_documents;
pub use parsed::{NetworkPolicy, ParsedPolicy};
pub(crate) use problems::did_you_mean;
pub use problems::{BadPolicy, Problem, SourceSpan};

use crate::document::Policy;
use documents::{ParsedDocuments, parse};
use meshward_types::{NetworkName, PolicyFile};
use problems::span;

impl Policy {
    /// Reads a text that has exactly one policy.
    ///
    /// # Errors
    /// [`BadPolicy`], with line and column.
    pub fn parse(source: &str) -> Result<Self, BadPolicy> {
        let file = PolicyFile { name: "policy".into(), text: source.to_owned() };
        let mut all = read(&[file])?;
        match all.pop() {
            Some(only) if all.is_empty() => Ok(only.policy),
            _ => {
                let span = SourceSpan { file: "policy".into(), line: 1, column: 1 };
                let text = "one policy was expected here, with its `network:`".into();
                Err(BadPolicy(vec![Problem { span, text }]))
            }
        }
    }
}

/// Reads files. All documents of a network, in any file, are one policy and share their named sets.
///
/// # Errors
/// [`BadPolicy`] with everything that was found.
pub fn read(files: &[PolicyFile]) -> Result<Vec<ParsedPolicy>, BadPolicy> {
    let ParsedDocuments { mut reader, by_network } = parse(files);
    let parsed = by_network
        .into_iter()
        .map(|(network, documents)| reader.merge(network, &documents))
        .collect();
    reader.done(parsed)
}

/// Reads the policy of one network from files.
///
/// # Errors
/// [`BadPolicy`] with everything that was found, except for what other networks' documents mean.
pub fn read_own(files: &[PolicyFile], network: &NetworkName) -> Result<NetworkPolicy, BadPolicy> {
    let ParsedDocuments { mut reader, mut by_network } = parse(files);
    let own = by_network.remove(network);
    let parsed = own.map(|documents| reader.merge(network.clone(), &documents));
    let mut others = Vec::new();
    for (network, documents) in by_network {
        let spans = documents.iter().map(|document| span(document.file, document.begin));
        others.extend(spans.map(|span| (span, network.clone())));
    }
    reader.done(NetworkPolicy { parsed, others })
}

#[cfg(test)]
mod tests;
