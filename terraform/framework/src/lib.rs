//! What a Terraform provider is made of: plugin protocol 6, its values and schemas, and how changes
//! are planned.
//!
//! A provider describes itself by [`Schema`]s and does the work behind [`Resource`], [`DataSource`]
//! and [`Ephemeral`]; [`serve`] is the process that Terraform starts. The protocol is that of
//! Terraform 1.11 (`docs/plugin-protocol/tfplugin6.8.proto` there), carried by gRPC as go-plugin
//! does it.
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
