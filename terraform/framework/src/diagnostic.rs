//! What is said to the user: a sentence, how to mend it, and the attribute that it is about.

use crate::wire;

/// All that is said about one request; empty if all is well.
pub type Diagnostics = Vec<Diagnostic>;

/// Something wrong or suspicious.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it is only a warning.
    pub warning: bool,
    /// What, in a few words.
    pub summary: String,
    /// What exactly, and how to mend it.
    pub detail: String,
    /// The attribute that it is about; the whole block if it is empty.
    pub path: Path,
}

impl Diagnostic {
    /// An error.
    pub fn error(summary: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            warning: false,
            summary: summary.into(),
            detail: detail.into(),
            path: Path::default(),
        }
    }

    /// The same, about an attribute.
    #[must_use]
    pub fn at(self, path: Path) -> Self {
        Self { path, ..self }
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(one: Diagnostic) -> Self {
        vec![one]
    }
}

/// A way from a block to a value in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

/// One step of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Of an object.
    Attribute(String),
    /// Of a map.
    Key(String),
    /// Of a list.
    Index(usize),
}

impl Path {
    /// An attribute of the block itself.
    pub fn of(attribute: &str) -> Self {
        Self::default().attribute(attribute)
    }

    /// An attribute of what this leads to.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Self {
        self.then(Step::Attribute(name.to_owned()))
    }

    /// An element of the map that this leads to.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// An element of the list that this leads to.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    pub(crate) fn to_wire(&self) -> wire::AttributePath {
        let steps = self.0.iter().map(|step| wire::Step {
            selector: Some(match step {
                Step::Attribute(name) => wire::Selector::AttributeName(name.clone()),
                Step::Key(key) => wire::Selector::ElementKeyString(key.clone()),
                Step::Index(index) => wire::Selector::ElementKeyInt(*index as i64),
            }),
        });
        wire::AttributePath { steps: steps.collect() }
    }
}

pub(crate) fn to_wire(diagnostics: Diagnostics) -> Vec<wire::Diagnostic> {
    let one = |diagnostic: Diagnostic| wire::Diagnostic {
        severity: if diagnostic.warning { wire::WARNING } else { wire::ERROR },
        summary: diagnostic.summary,
        detail: diagnostic.detail,
        attribute: (diagnostic.path != Path::default()).then(|| diagnostic.path.to_wire()),
    };
    diagnostics.into_iter().map(one).collect()
}
