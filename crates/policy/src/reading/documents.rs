//! The documents of files, by the networks that they are about.

use super::{
    reader::{Document, Reader},
    tree::{At, documents},
};
use meshward_types::{NetworkName, PolicyFile};
use std::collections::{BTreeMap, BTreeSet};

/// The largest size of all files together, in bytes.
pub const MAX_SOURCE: usize = 4 << 20;

/// Documents before they are combined.
#[derive(Default)]
pub(super) struct ParsedDocuments<'a> {
    pub(super) reader: Reader,
    pub(super) by_network: BTreeMap<NetworkName, Vec<Document<'a>>>,
}

pub(super) fn parse(files: &[PolicyFile]) -> ParsedDocuments<'_> {
    let mut parsed = ParsedDocuments::default();
    let ParsedDocuments { reader, by_network } = &mut parsed;
    let total: usize = files.iter().map(|file| file.text.len()).sum();
    if total > MAX_SOURCE {
        let text = format!(
            "the policy has {total} bytes in all, and {MAX_SOURCE} are taken; make several \
            networks of it, or name sets of ports and selectors"
        );
        reader.problem(files.first().map_or("", |file| &file.name), At::START, text);
        return parsed;
    }
    let mut names = BTreeSet::new();
    for file in files {
        if !names.insert(&file.name) {
            reader.problem(&file.name, At::START, "two files have this name; give each its own");
        }
        let read = documents(&file.text);
        if read.roots.is_empty() && read.problems.is_empty() {
            reader.problem(
                &file.name,
                At::START,
                "the file holds no policy; begin with `network: NAME`",
            );
        }
        for (at, text) in read.problems {
            reader.problem(&file.name, at, text);
        }
        for root in read.roots {
            if let Some((network, document)) = reader.document(&file.name, root) {
                by_network.entry(network).or_default().push(document);
            }
        }
    }
    parsed
}
