//! Flows: conversations that have been let through.

pub(crate) mod key;
pub(crate) mod state;
pub(crate) mod table;

#[cfg(test)]
mod tests;
