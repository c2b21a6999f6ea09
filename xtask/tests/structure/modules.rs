//! Modules of a package import one way: no module leads back to itself.

use crate::{assert_none, read, tracked};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use syn::visit::Visit;

/// The path of a module in its crate, without `crate`.
type Name = Vec<String>;

/// The modules that a module uses.
type Graph = BTreeMap<Name, BTreeSet<Name>>;

/// The crates of the workspace: folders with a `src`.
fn sources() -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut crates: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for file in tracked(".rs") {
        let folder = file.ancestors().find(|folder| folder.ends_with("src")).map(Path::to_owned);
        if let Some(folder) = folder {
            crates.entry(folder).or_default().push(file);
        }
    }
    crates
}

/// The module that a file holds; none for the root of a crate, tests and fuzz targets.
fn module_of(folder: &Path, file: &Path) -> Option<Name> {
    let relative = file.strip_prefix(folder).ok()?.with_extension("");
    let mut name: Name = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    name.pop_if(|last| last == "mod");
    let is_apart = |part: &String| part.ends_with("tests") || part == "fuzzing";
    let is_root = matches!(&name[..], [only] if only == "lib" || only == "main");
    (!is_root && !name.iter().any(is_apart)).then_some(name)
}

/// Returns `true` if an item is compiled for tests or fuzzing only.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let text = list.tokens.to_string();
        text == "test" || text.contains("fuzzing")
    })
}

/// The paths that one file names.
#[derive(Default)]
struct Paths {
    found: Vec<Name>,
}

impl Paths {
    fn expand(&mut self, before: &Name, tree: &syn::UseTree) {
        let with = |part: &syn::Ident| [&before[..], &[part.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.expand(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.found.push(with(&name.ident)),
            syn::UseTree::Rename(name) => self.found.push(with(&name.ident)),
            syn::UseTree::Glob(_) => self.found.push(before.clone()),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.expand(before, item));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs[..],
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => &[],
        };
        if !is_for_tests(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.expand(&vec![], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // One segment is a variable, or was imported.
        if path.segments.len() > 1 {
            self.found.push(path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// The module in which a path that `own` names ends, if it is one of this crate's.
fn target(own: &Name, path: &Name, graph: &Graph) -> Option<Name> {
    let mut rest = &path[..];
    let mut base = own.clone();
    match rest.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        child => {
            base.push(child.to_owned());
            if !graph.contains_key(&base) {
                return None;
            }
            rest = &rest[1..];
        }
    }
    base.extend(rest.iter().cloned());
    while !base.is_empty() && !graph.contains_key(&base) {
        base.pop();
    }
    (!base.is_empty() && base != *own).then_some(base)
}

fn graph_of(folder: &Path, files: &[PathBuf]) -> Graph {
    let named: Vec<(Name, &PathBuf)> =
        files.iter().filter_map(|file| module_of(folder, file).map(|name| (name, file))).collect();
    let mut graph: Graph = named.iter().map(|(name, _)| (name.clone(), BTreeSet::new())).collect();
    for (name, file) in named {
        let tree = syn::parse_file(&read(file)).expect("rustc has read the file");
        let mut paths = Paths::default();
        paths.visit_file(&tree);
        let uses = paths.found.iter().filter_map(|path| target(&name, path, &graph)).collect();
        graph.insert(name, uses);
    }
    graph
}

/// The modules that each module leads to, by however many steps.
fn reached(graph: &Graph, from: &Name) -> BTreeSet<Name> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&Name> = graph[from].iter().collect();
    while let Some(name) = open.pop() {
        if seen.insert(name.clone()) {
            open.extend(&graph[name]);
        }
    }
    seen
}

#[test]
fn modules_import_one_way() {
    let mut findings = vec![];
    for (folder, files) in sources() {
        let graph = graph_of(&folder, &files);
        let circling: BTreeSet<&Name> =
            graph.keys().filter(|name| reached(&graph, name).contains(*name)).collect();
        for name in &circling {
            let back: Vec<String> = graph[*name]
                .iter()
                .filter(|other| circling.contains(other) && reached(&graph, other).contains(*name))
                .map(|other| other.join("::"))
                .collect();
            findings.push(format!(
                "{}: {} uses {}",
                folder.display(),
                name.join("::"),
                back.join(", ")
            ));
        }
    }
    assert_none(
        &findings,
        "these modules lead back to themselves: move what they share below them",
    );
}

#[test]
fn a_path_ends_in_the_module_that_it_names() {
    let name = |text: &str| -> Name { text.split("::").map(str::to_owned).collect() };
    let graph: Graph =
        ["a", "a::b", "c"].iter().map(|module| (name(module), BTreeSet::new())).collect();
    for (own, path, expected) in [
        ("a::b", "super::Thing", Some("a")),
        ("a::b", "crate::c::Thing", Some("c")),
        ("a", "b::Thing::new", Some("a::b")),
        ("a", "std::c::Thing", None),
        ("a", "self::Thing", None),
    ] {
        assert_eq!(target(&name(own), &name(path), &graph), expected.map(name), "{own}: {path}");
    }
}
