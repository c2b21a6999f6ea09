//! Extraction of one network's documents from files that may have those of several.

use super::documents::parse;
use meshward_types::{NetworkName, PolicyFile};
use std::slice;

/// Returns a file without the documents of other networks, and otherwise unchanged.
///
/// No scalar contains a line that begins with `---` (YAML 1.2.2 §9.1.2), so documents are split
/// there.
pub fn own_documents(file: &PolicyFile, network: &NetworkName) -> PolicyFile {
    if !speaks_of_others(file, network) {
        return file.clone();
    }
    let mut own = PolicyFile { name: file.name.clone(), text: String::new() };
    for text in documents(&file.text) {
        let document = PolicyFile { name: file.name.clone(), text: text.to_owned() };
        if !speaks_of_others(&document, network) {
            own.text.push_str(text);
        }
    }
    own
}

fn speaks_of_others(file: &PolicyFile, network: &NetworkName) -> bool {
    parse(slice::from_ref(file)).by_network.keys().any(|name| name != network)
}

/// Returns the documents of a text, each with the line of dashes that it begins with.
fn documents(text: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let (mut begin, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        let begins =
            line.strip_prefix("---").is_some_and(|rest| rest.trim_start().len() < rest.len());
        if begins && at > begin {
            all.push(&text[begin..at]);
            begin = at;
        }
        at += line.len();
    }
    all.push(&text[begin..]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "# about\nnetwork: shop\nkeys:\n  ci: |\n    ---\n    x\n--- # the \
        other\nnetwork: office\nmode: observe\n---\nnetwork: shop\nmode: observe\n---\n# nothing\n";

    #[test]
    fn documents_of_other_networks_are_left_out_and_the_rest_stays_byte_by_byte() {
        let file = PolicyFile { name: "a.yaml".into(), text: BOTH.into() };
        let cut = |network: &str| own_documents(&file, &network.parse().unwrap()).text;
        let without = BOTH.replace("--- # the other\nnetwork: office\nmode: observe\n", "");
        assert_eq!(cut("shop"), without);
        assert_eq!(
            cut("office"),
            "--- # the other\nnetwork: office\nmode: observe\n---\n# nothing\n"
        );
        let alone = PolicyFile { name: "a.yaml".into(), text: without };
        assert_eq!(own_documents(&alone, &"shop".parse().unwrap()), alone);
    }
}
