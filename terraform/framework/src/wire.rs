//! The messages of plugin protocol 6 between Terraform 1.11 and a provider, with the field numbers
//! of `docs/plugin-protocol/tfplugin6.8.proto` in Terraform's source. They are written by hand,
//! because they are few and a generator would need `protoc` on every machine that builds; the tests
//! with the real `terraform` verify them.

use prost::Message;
use std::collections::HashMap;

pub(crate) const ERROR: i32 = 1;
pub(crate) const WARNING: i32 = 2;
/// `StringKind.MARKDOWN`.
pub(crate) const MARKDOWN: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DynamicValue {
    #[prost(bytes = "vec", tag = 1)]
    pub msgpack: Vec<u8>,
    #[prost(bytes = "vec", tag = 2)]
    pub json: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Diagnostic {
    #[prost(int32, tag = 1)]
    pub severity: i32,
    #[prost(string, tag = 2)]
    pub summary: String,
    #[prost(string, tag = 3)]
    pub detail: String,
    #[prost(message, optional, tag = 4)]
    pub attribute: Option<AttributePath>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AttributePath {
    #[prost(message, repeated, tag = 1)]
    pub steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Step {
    #[prost(oneof = "Selector", tags = "1, 2, 3")]
    pub selector: Option<Selector>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Selector {
    #[prost(string, tag = 1)]
    AttributeName(String),
    #[prost(string, tag = 2)]
    ElementKeyString(String),
    #[prost(int64, tag = 3)]
    ElementKeyInt(i64),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Schema {
    #[prost(int64, tag = 1)]
    pub version: i64,
    #[prost(message, optional, tag = 2)]
    pub block: Option<Block>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Block {
    #[prost(int64, tag = 1)]
    pub version: i64,
    #[prost(message, repeated, tag = 2)]
    pub attributes: Vec<Attribute>,
    #[prost(message, repeated, tag = 3)]
    pub nested: Vec<NestedBlock>,
    #[prost(string, tag = 4)]
    pub description: String,
    #[prost(int32, tag = 5)]
    pub description_kind: i32,
    #[prost(bool, tag = 6)]
    pub deprecated: bool,
}

#[derive(Clone, PartialEq, Message)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of Terraform's protocol")]
pub(crate) struct Attribute {
    #[prost(string, tag = 1)]
    pub name: String,
    /// The type, in go-cty's JSON form.
    #[prost(bytes = "vec", tag = 2)]
    pub r#type: Vec<u8>,
    #[prost(string, tag = 3)]
    pub description: String,
    #[prost(bool, tag = 4)]
    pub required: bool,
    #[prost(bool, tag = 5)]
    pub optional: bool,
    #[prost(bool, tag = 6)]
    pub computed: bool,
    #[prost(bool, tag = 7)]
    pub sensitive: bool,
    #[prost(int32, tag = 8)]
    pub description_kind: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NestedBlock {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(message, optional, tag = 2)]
    pub block: Option<Block>,
    #[prost(int32, tag = 3)]
    pub nesting: i32,
    #[prost(int64, tag = 4)]
    pub min_items: i64,
    #[prost(int64, tag = 5)]
    pub max_items: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ServerCapabilities {
    #[prost(bool, tag = 1)]
    pub plan_destroy: bool,
    #[prost(bool, tag = 2)]
    pub get_provider_schema_optional: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Named {
    #[prost(string, tag = 1)]
    pub type_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(message, optional, tag = 1)]
    pub server_capabilities: Option<ServerCapabilities>,
    #[prost(message, repeated, tag = 3)]
    pub data_sources: Vec<Named>,
    #[prost(message, repeated, tag = 4)]
    pub resources: Vec<Named>,
    #[prost(message, repeated, tag = 6)]
    pub ephemeral_resources: Vec<Named>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProviderSchema {
    #[prost(message, optional, tag = 1)]
    pub provider: Option<Schema>,
    #[prost(map = "string, message", tag = 2)]
    pub resource_schemas: HashMap<String, Schema>,
    #[prost(map = "string, message", tag = 3)]
    pub data_source_schemas: HashMap<String, Schema>,
    #[prost(message, optional, tag = 6)]
    pub server_capabilities: Option<ServerCapabilities>,
    #[prost(map = "string, message", tag = 8)]
    pub ephemeral_resource_schemas: HashMap<String, Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProviderConfig {
    #[prost(message, optional, tag = 1)]
    pub config: Option<DynamicValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProviderConfigValidity {
    #[prost(message, repeated, tag = 2)]
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Configure {
    #[prost(string, tag = 1)]
    pub terraform_version: String,
    #[prost(message, optional, tag = 2)]
    pub config: Option<DynamicValue>,
}

/// The response of requests that return only diagnostics, in field 1.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Diagnosed {
    #[prost(message, repeated, tag = 1)]
    pub diagnostics: Vec<Diagnostic>,
}

/// The request that carries a type's name and a configuration.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TypedConfig {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(message, optional, tag = 2)]
    pub config: Option<DynamicValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawState {
    #[prost(bytes = "vec", tag = 1)]
    pub json: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpgradeState {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(int64, tag = 2)]
    pub version: i64,
    #[prost(message, optional, tag = 3)]
    pub raw_state: Option<RawState>,
}

/// The response with a state and diagnostics.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StateAnswer {
    #[prost(message, optional, tag = 1)]
    pub state: Option<DynamicValue>,
    #[prost(message, repeated, tag = 2)]
    pub diagnostics: Vec<Diagnostic>,
    #[prost(bytes = "vec", tag = 3)]
    pub private: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadState {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(message, optional, tag = 2)]
    pub current_state: Option<DynamicValue>,
    #[prost(bytes = "vec", tag = 3)]
    pub private: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PlanChange {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(message, optional, tag = 2)]
    pub prior_state: Option<DynamicValue>,
    #[prost(message, optional, tag = 3)]
    pub proposed_new_state: Option<DynamicValue>,
    #[prost(message, optional, tag = 4)]
    pub config: Option<DynamicValue>,
    #[prost(bytes = "vec", tag = 5)]
    pub prior_private: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PlannedChange {
    #[prost(message, optional, tag = 1)]
    pub planned_state: Option<DynamicValue>,
    #[prost(message, repeated, tag = 2)]
    pub requires_replace: Vec<AttributePath>,
    #[prost(bytes = "vec", tag = 3)]
    pub planned_private: Vec<u8>,
    #[prost(message, repeated, tag = 4)]
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ApplyChange {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(message, optional, tag = 2)]
    pub prior_state: Option<DynamicValue>,
    #[prost(message, optional, tag = 3)]
    pub planned_state: Option<DynamicValue>,
    #[prost(message, optional, tag = 4)]
    pub config: Option<DynamicValue>,
    #[prost(bytes = "vec", tag = 5)]
    pub planned_private: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppliedChange {
    #[prost(message, optional, tag = 1)]
    pub new_state: Option<DynamicValue>,
    #[prost(bytes = "vec", tag = 2)]
    pub private: Vec<u8>,
    #[prost(message, repeated, tag = 3)]
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImportState {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(string, tag = 2)]
    pub id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Imported {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(message, optional, tag = 2)]
    pub state: Option<DynamicValue>,
    #[prost(bytes = "vec", tag = 3)]
    pub private: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImportedState {
    #[prost(message, repeated, tag = 1)]
    pub imported_resources: Vec<Imported>,
    #[prost(message, repeated, tag = 2)]
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OpenedEphemeral {
    #[prost(message, repeated, tag = 1)]
    pub diagnostics: Vec<Diagnostic>,
    #[prost(message, optional, tag = 3)]
    pub result: Option<DynamicValue>,
    #[prost(bytes = "vec", optional, tag = 4)]
    pub private: Option<Vec<u8>>,
}

/// The request to renew or close an ephemeral resource.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KnownEphemeral {
    #[prost(string, tag = 1)]
    pub type_name: String,
    #[prost(bytes = "vec", optional, tag = 2)]
    pub private: Option<Vec<u8>>,
}
