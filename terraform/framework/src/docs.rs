//! The reference documentation, in the layout of the Terraform registry.

use crate::{Attribute, Block, Nesting, OnChange, Presence, Provider, Schema, schema::Nested};
use std::{collections::BTreeMap, fmt::Write};

/// The kinds of pages: folder, title, and the path of their examples.
const KINDS: [(&str, &str); 3] = [
    ("resources", "Resource"),
    ("data-sources", "Data Source"),
    ("ephemeral-resources", "Ephemeral Resource"),
];

/// Returns the pages of a provider, by their paths below `docs/`. `example` returns the text of a
/// file below `examples/`: `provider/provider.tf`, `resources/NAME/resource.tf`,
/// `data-sources/NAME/data-source.tf` and so on.
pub fn pages(
    provider: &dyn Provider,
    name: &str,
    example: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    let own = example("provider/provider.tf");
    pages.insert(
        "index.md".into(),
        page(&format!("{name} Provider"), &provider.schema(), own, None),
    );
    let resources = provider.offers().resources.iter();
    let resources =
        resources.map(|(own, resource)| (0, own, resource.schema(), Some(resource.import_form())));
    let sources =
        provider.offers().data_sources.iter().map(|(own, source)| (1, own, source.schema(), None));
    let ephemerals =
        provider.offers().ephemerals.iter().map(|(own, one)| (2, own, one.schema(), None));
    for (kind, own, schema, import) in resources.chain(sources).chain(ephemerals) {
        let (folder, title) = KINDS[kind];
        let file = folder.trim_end_matches('s');
        let text = example(&format!("{folder}/{own}/{file}.tf"));
        let short = own.strip_prefix(name).and_then(|rest| rest.strip_prefix('_')).unwrap_or(own);
        let import = import.map(|form| format!("terraform import {own}.NAME {form}"));
        pages.insert(
            format!("{folder}/{short}.md"),
            page(&format!("{own} {title}"), &schema, text, import),
        );
    }
    pages
}

fn page(title: &str, schema: &Schema, example: Option<String>, import: Option<String>) -> String {
    let first = schema.description.split_inclusive('.').next().unwrap_or_default();
    let mut text =
        format!("---\npage_title: \"{title}\"\ndescription: |-\n  {first}\n---\n\n# {title}\n\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}\n", schema.description.trim());
    if let Some(example) = example {
        let _ = writeln!(text, "## Example Usage\n\n```terraform\n{}\n```\n", example.trim());
    }
    text.push_str("## Schema\n");
    describe(&mut text, &schema.block);
    for nested in &schema.block.blocks {
        nest(&mut text, nested);
    }
    if let Some(import) = import {
        let _ = write!(text, "\n## Import\n\n```shell\n{import}\n```\n");
    }
    text
}

fn nest(text: &mut String, nested: &Nested) {
    let many = match nested.nesting {
        Nesting::Single => "At most one block",
        Nesting::List | Nesting::Set => "Any number of blocks",
    };
    let _ = write!(text, "\n### Block `{}`\n\n{} {many}.\n", nested.name, nested.description);
    describe(text, &nested.block);
}

fn describe(text: &mut String, block: &Block) {
    let read_only = |own: &&Attribute| own.presence == Presence::Computed;
    let parts: [(&str, Vec<&Attribute>); 3] = [
        (
            "Required",
            block.attributes.iter().filter(|own| own.presence == Presence::Required).collect(),
        ),
        ("Optional", block.attributes.iter().filter(|own| own.presence.is_optional()).collect()),
        ("Read-Only", block.attributes.iter().filter(read_only).collect()),
    ];
    for (title, attributes) in parts {
        let blocks: Vec<&Nested> =
            if title == "Optional" { block.blocks.iter().collect() } else { vec![] };
        if attributes.is_empty() && blocks.is_empty() {
            continue;
        }
        let _ = write!(text, "\n**{title}**\n\n");
        for own in attributes {
            let sensitive = if own.sensitive { ", Sensitive" } else { "" };
            let _ = write!(
                text,
                "- `{}` ({}{sensitive}) {}",
                own.name,
                own.kind.in_words(),
                own.description
            );
            if let Some(default) = &own.default {
                let _ = write!(text, " Default: `{}`.", default.to_json());
            }
            text.push_str(if own.on_change == OnChange::Replace {
                " A change replaces the resource.\n"
            } else {
                "\n"
            });
        }
        for nested in blocks {
            let _ = writeln!(text, "- `{}` (Block, see below)", nested.name);
        }
    }
}
