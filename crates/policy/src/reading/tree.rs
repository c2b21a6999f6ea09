//! YAML as a tree in which every value has its position, so that all mistakes can be reported at
//! once.

use granit_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::{HashMap, HashSet};

/// The largest number of values in a file, counting those that anchors and aliases repeat: more
/// than 4 MiB of text can hold without them.
const MAX_NODES: usize = 5 << 19;
/// The largest depth of nested lists and maps.
const MAX_DEPTH: usize = 64;

/// A position, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    pub line: u32,
    pub column: u32,
}

impl At {
    pub const START: Self = Self { line: 1, column: 1 };

    fn of(span: &Span) -> Self {
        Self { line: span.start.line().max(1) as u32, column: span.start.col() as u32 + 1 }
    }
}

/// A value of the tree.
#[derive(Debug, Clone)]
pub struct Node {
    pub at: At,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    /// Text. `plain` is `true` without quotes, so that it may be a number or nothing.
    Scalar {
        text: Box<str>,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Returns `true` if the value is empty.
    pub fn is_nothing(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, plain } => {
                *plain && matches!(&**text, "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::List(_) | Kind::Map(_) => false,
        }
    }

    /// Returns the text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// Returns the description of its kind in messages.
    pub fn called(&self) -> String {
        match &self.kind {
            _ if self.is_nothing() => "nothing".into(),
            Kind::Scalar { text, .. } => format!("`{}`", text.chars().take(60).collect::<String>()),
            Kind::List(_) => "a list".into(),
            Kind::Map(_) => "a map".into(),
        }
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar { .. } => 0,
            Kind::List(items) => items.iter().map(Self::count).sum(),
            Kind::Map(entries) => {
                entries.iter().map(|(key, value)| key.count() + value.count()).sum::<usize>()
            }
        }
    }
}

/// The documents of a file as far as they can be read, and the mistakes.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub roots: Vec<Node>,
    pub problems: Vec<(At, String)>,
}

/// Reads a text.
pub(super) fn documents(text: &str) -> Documents {
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let taken = match event {
            Ok((event, span)) => reader.handle(event, &span),
            Err(error) => {
                let (line, column) = (error.marker().line().max(1), error.marker().col() + 1);
                let at = At { line: line as u32, column: column as u32 };
                Err((
                    at,
                    format!(
                        "this is not YAML: {}",
                        error.info().lines().next().unwrap_or_default()
                    ),
                ))
            }
        };
        if let Err(problem) = taken {
            reader.read.problems.push(problem);
            break;
        }
    }
    reader.read
}

/// A list or a map that is being read.
struct Open {
    at: At,
    anchor: usize,
    is_map: bool,
    items: Vec<Node>,
}

#[derive(Default)]
struct Reader {
    read: Documents,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl Reader {
    fn handle(&mut self, event: Event, span: &Span) -> Result<(), (At, String)> {
        let at = At::of(span);
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let node = Node { at, kind: Kind::Scalar { text: text.into(), plain } };
                self.put(node, anchor)
            }
            Event::Alias(anchor) => {
                let Some(known) = self.anchors.get(&anchor) else {
                    return Err((at, "this alias stands within what it names".into()));
                };
                // Its content is counted again.
                self.nodes += known.count();
                let node = Node { at, ..known.clone() };
                self.put(node, 0)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(at, anchor, false),
            Event::MappingStart(_, anchor, _) => self.begin(at, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, at: At, anchor: usize, is_map: bool) -> Result<(), (At, String)> {
        if self.open.len() >= MAX_DEPTH {
            return Err((
                at,
                format!("lists and maps stand in each other more than {MAX_DEPTH} deep"),
            ));
        }
        self.open.push(Open { at, anchor, is_map, items: Vec::new() });
        Ok(())
    }

    fn end(&mut self) -> Result<(), (At, String)> {
        let Some(Open { at, anchor, is_map, items }) = self.open.pop() else { return Ok(()) };
        let kind = if is_map { Kind::Map(self.pairs(items)) } else { Kind::List(items) };
        self.put(Node { at, kind }, anchor)
    }

    /// Turns alternating keys and values into pairs. Of two with the same key, the first counts.
    fn pairs(&mut self, items: Vec<Node>) -> Vec<(Node, Node)> {
        let (mut pairs, mut keys) = (Vec::with_capacity(items.len() / 2), HashSet::new());
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            match key.text().map(ToOwned::to_owned) {
                None => {
                    self.read.problems.push((key.at, format!("{} cannot be a key", key.called())));
                }
                Some(text) if keys.insert(text.clone()) => pairs.push((key, value)),
                Some(text) => {
                    let text = format!("`{text}` stands here twice; leave one of them out");
                    self.read.problems.push((key.at, text));
                }
            }
        }
        pairs
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), (At, String)> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err((
                node.at,
                format!("the file has more than {MAX_NODES} values, with what aliases repeat"),
            ));
        }
        if anchor != 0 {
            // It is stored twice.
            self.nodes += node.count();
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None if node.is_nothing() => {}
            None => self.read.roots.push(node),
        }
        Ok(())
    }
}
