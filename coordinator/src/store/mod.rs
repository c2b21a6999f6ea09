//! The store: records under one revision, written in transactions.

mod backup;
mod interface;
mod migrations;
mod reserve;
mod retention;
mod sqlite;

pub use backup::{Backup, restore};
pub use interface::{AuditLine, Contents, Copier, Note, Past, Store, StoreError};
pub use sqlite::Sqlite;
