//! A framework for Terraform providers: plugin protocol 6, its values and schemas, and the planning
//! of changes.
//!
//! A provider describes its types by [`Schema`]s and implements [`Resource`], [`DataSource`] and
//! [`Ephemeral`]; [`serve`] runs the process that Terraform starts. The protocol is that of
//! Terraform 1.11 (`docs/plugin-protocol/tfplugin6.8.proto` in its source), over gRPC as go-plugin
//! uses it.
#![forbid(unsafe_code)]

mod diagnostic;
mod docs;
mod lifecycle;
mod plugin;
mod provider;
mod rpc;
mod schema;
mod server;
mod value;
mod wire;

pub use diagnostic::{Diagnostic, Diagnostics, Path, Step};
pub use docs::pages;
pub use plugin::serve;
pub use provider::{Answer, DataSource, Ephemeral, Offers, Opened, Provider, Resource, within};
pub use schema::{
    Attribute, Block, Nested, Nesting, OnChange, Presence, Schema, Type, check_duration, duration,
    timeouts,
};
pub use value::Value;
