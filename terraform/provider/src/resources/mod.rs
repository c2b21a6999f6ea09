//! The resources.

mod admission;
mod device;
mod join_token;
mod network;
mod node;
mod part;
mod policy;
mod route;
mod service_account;

pub use admission::Admission;
pub use device::DeviceResource;
pub use join_token::JoinToken;
pub use network::NetworkResource;
pub use node::NodeResource;
pub use policy::{PolicyResource, files, files_attribute};
pub use route::RouteResource;
pub use service_account::ServiceAccount;

use meshward_terraform::{Diagnostic, Diagnostics, Value};
use serde::de::DeserializeOwned;

/// Nothing set and an empty collection are one to the coordinator: what a state has stays.
fn keep_unset(state: &Value, now: &mut Value, attributes: &[&str]) {
    for name in attributes {
        let empty = match now.get(name) {
            Value::List(all) => all.is_empty(),
            Value::Map(all) => all.is_empty(),
            _ => false,
        };
        if empty && state.get(name).is_null() {
            now.set(name, Value::Null);
        }
    }
}

/// The body of a request: these attributes under their own names.
fn body<T: DeserializeOwned>(value: &Value, fields: &[&str]) -> Result<T, Diagnostics> {
    let mut wanted = Value::default();
    fields.iter().for_each(|name| wanted.set(name, value.get(name).clone()));
    Ok(wanted.to()?)
}

/// The state of something of which only its key is known.
fn keyed(parts: &[(&str, &str)]) -> Value {
    let mut state = Value::default();
    parts.iter().for_each(|(name, part)| state.set(name, *part));
    state
}

/// What is known of a state only if the key is whole.
fn text(state: &Value, name: &str) -> Result<String, Diagnostics> {
    let missing = || Diagnostic::error("The state is not whole", format!("It has no `{name}`."));
    Ok(state.get(name).text().ok_or_else(missing)?.to_owned())
}

/// An id that does not have the form of one.
fn bad_id(id: &str, form: &str) -> Diagnostics {
    Diagnostic::error("Invalid id", format!("`{id}` is no id of this; write {form}.")).into()
}
