//! Lists in pages, and refusals.

use meshward_types::names::Revision;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most entries of a page.
pub const MAX_PAGE: u32 = 5000;
/// The entries of a page for which nobody has said how many.
pub const USUAL_PAGE: u32 = 1000;

/// A part of a list, in the order of the entries' keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Where the next page begins: the parameter `cursor`. The last page has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The revision at which it was so; a watch goes on from there.
    pub revision: Revision,
}

/// What comes in pages.
pub trait Paged {
    /// Where the next page begins; the last has none.
    fn next(&self) -> Option<&str>;

    /// Adds the page that follows.
    fn append(&mut self, next: Self);
}

impl<T> Paged for Page<T> {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn append(&mut self, next: Self) {
        self.items.extend(next.items);
        self.next = next.next;
    }
}

/// A refusal (RFC 9457, Problem Details for HTTP APIs).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem it is, such as `urn:meshward:problem:conflict`.
    #[serde(rename = "type", default = "blank")]
    #[schema(format = "uri")]
    pub kind: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What is wrong here, and how to mend it.
    #[serde(alias = "error")]
    pub detail: String,
    /// The field of the body, or the parameter, that it is about, if it is one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

fn blank() -> String {
    "about:blank".into()
}

/// One thing that has changed in a list that is watched.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Change<T> {
    /// The revision that has it.
    pub revision: Revision,
    /// The key of the entry.
    pub key: String,
    /// The entry as it is now; nothing if it is gone.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub item: Option<T>,
}

/// How the coordinator is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `ready`.
    pub status: String,
}

/// Which coordinator it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Its version.
    pub version: String,
    /// The version of its API, as paths begin with it.
    pub api: String,
}
