//! Lists in pages, and refusals.

use meshward_types::names::Revision;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The maximum number of entries of a page.
pub const MAX_PAGE: u32 = 5000;
/// The default number of entries of a page.
pub const USUAL_PAGE: u32 = 1000;

/// A page of a list, ordered by key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// The value of `cursor` for the next page; null on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The revision of this list, from which a watch can continue.
    pub revision: Revision,
}

/// A page of a list.
pub trait Paged {
    /// Returns the cursor of the next page; `None` on the last page.
    fn next(&self) -> Option<&str>;

    /// Appends the next page.
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

/// An error (RFC 9457, Problem Details for HTTP APIs).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem, such as `urn:meshward:problem:conflict`.
    #[serde(rename = "type", default = "blank")]
    #[schema(format = "uri")]
    pub kind: String,
    /// The kind of problem, in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// The cause of this error, and how to fix it.
    #[serde(alias = "error")]
    pub detail: String,
    /// The field of the body, or the parameter, that is wrong, if it is a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

fn blank() -> String {
    "about:blank".into()
}

/// A changed entry of a list that is watched.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Change<T> {
    /// The revision of the change.
    pub revision: Revision,
    /// The key of the entry.
    pub key: String,
    /// The entry as it is now; left out if it is gone.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub item: Option<T>,
}

/// The health of the coordinator.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `ready`.
    pub status: String,
}

/// The versions of the coordinator and of its API.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The version.
    pub version: String,
    /// The version of its API, which is the first part of paths.
    pub api: String,
}
