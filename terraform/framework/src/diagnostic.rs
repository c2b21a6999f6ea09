//! Diagnostics: the errors and warnings that Terraform shows, each with its attribute and how to
//! mend it.

use crate::wire;

/// The errors and warnings of one request; empty if there are none.
pub type Diagnostics = Vec<Diagnostic>;

/// An error or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Makes it a warning: Terraform shows it and goes on.
    pub warning: bool,
    /// The headline: a few words, without a full stop.
    pub summary: String,
    /// The explanation: sentences that say what is wrong and how to mend it.
    pub detail: String,
    /// The path of the attribute concerned; empty if it is the block as a whole.
    pub path: Path,
}

impl Diagnostic {
    /// Returns an error about the block as a whole.
    pub fn error(summary: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            warning: false,
            summary: summary.into(),
            detail: detail.into(),
            path: Path::default(),
        }
    }

    /// Sets the path of the attribute concerned.
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

/// A path from a block to a value in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

/// A step of a [`Path`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The attribute of an object or a block, by name.
    Attribute(String),
    /// The element of a map, by key.
    Key(String),
    /// The element of a list, by index from 0.
    Index(usize),
}

impl Path {
    /// Returns the path of an attribute of the block itself.
    pub fn of(attribute: &str) -> Self {
        Self::default().attribute(attribute)
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Self {
        self.then(Step::Attribute(name.to_owned()))
    }

    /// Appends the key of a map's element.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// Appends the index of a list's element.
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
