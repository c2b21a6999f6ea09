//! The store: records under one revision, written in transactions.

mod backup;
mod interface;
mod migrations;
mod reserve;
mod sqlite;

pub use backup::{Backup, restore};
pub use interface::{Contents, Copier, Note, Past, Store, StoreError};
pub use sqlite::Sqlite;
