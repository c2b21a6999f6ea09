//! The traits that a provider implements.

use crate::{Diagnostic, Diagnostics, Path, Schema, Value};
use futures::future::BoxFuture;
use std::{collections::BTreeMap, time::Duration};

/// The future of a request: a value, or the errors.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Diagnostics>>;

/// A provider.
pub trait Provider: Send + Sync + 'static {
    /// Returns the schema of the `provider` block.
    fn schema(&self) -> Schema;

    /// Returns the types that the provider offers.
    fn offers(&self) -> &Offers;

    /// Configures the provider; values of the configuration may be unknown. Terraform calls it
    /// once, before every request that is not a validation.
    fn configure(&self, config: Value) -> Answer<'_, ()>;

    /// Makes requests that wait fail soon, since the user has interrupted Terraform. Requests to
    /// the API that have begun are finished.
    fn stop(&self) {}
}

/// The types that a provider offers, by name.
#[derive(Default)]
pub struct Offers {
    /// The resource types.
    pub resources: BTreeMap<String, Box<dyn Resource>>,
    /// The data sources.
    pub data_sources: BTreeMap<String, Box<dyn DataSource>>,
    /// The ephemeral resources, which exist for one run of Terraform.
    pub ephemerals: BTreeMap<String, Box<dyn Ephemeral>>,
}

/// A managed resource.
pub trait Resource: Send + Sync {
    /// Returns the schema of the type.
    fn schema(&self) -> Schema;

    /// Validates what the schema cannot express, such as combinations of attributes. Values may be
    /// unknown.
    fn validate(&self, _config: &Value) -> Diagnostics {
        vec![]
    }

    /// Replaces proposed values by those of the prior state where both mean the same, so that no
    /// change is planned.
    fn keep_meaning(&self, _prior: &Value, _proposed: &mut Value) {}

    /// Reads the current state; `None` if the resource no longer exists.
    fn read(&self, state: Value) -> Answer<'_, Option<Value>>;

    /// Creates the resource. Returns the values of all attributes.
    fn create(&self, planned: Value) -> Answer<'_, Value>;

    /// Changes the resource in place. Returns the values of all attributes. Not called if every
    /// attribute has [`OnChange::Replace`](crate::OnChange::Replace).
    fn update(&self, prior: Value, planned: Value) -> Answer<'_, Value>;

    /// Deletes the resource. Succeeds if it no longer exists.
    fn delete(&self, state: Value) -> Answer<'_, ()>;

    /// Returns the attributes that [`Resource::read`] needs, from the id of a `terraform import`.
    ///
    /// # Errors
    /// Fails if the id does not have the form of [`Resource::import_form`].
    fn import(&self, id: &str) -> Result<Value, Diagnostics>;

    /// Returns the form of an id, such as `NETWORK/NAME`, for the documentation.
    fn import_form(&self) -> &'static str;
}

/// A data source: something that Terraform reads and does not manage.
pub trait DataSource: Send + Sync {
    /// Returns the schema of the type.
    fn schema(&self) -> Schema;

    /// Validates what the schema cannot express, such as combinations of attributes. Values may be
    /// unknown.
    fn validate(&self, _config: &Value) -> Diagnostics {
        vec![]
    }

    /// Reads all attributes of what the configuration names.
    fn read(&self, config: Value) -> Answer<'_, Value>;
}

/// An ephemeral resource: it exists for one run of Terraform, and is in no plan and no state.
pub trait Ephemeral: Send + Sync {
    /// Returns the schema of the type.
    fn schema(&self) -> Schema;

    /// Creates the resource at the beginning of a run.
    fn open(&self, config: Value) -> Answer<'_, Opened>;

    /// Ends the resource at the end of a run. `private` is that of [`Opened`].
    fn close(&self, private: String) -> Answer<'_, ()>;
}

/// An ephemeral resource that was created.
pub struct Opened {
    /// The values of all attributes.
    pub result: Value,
    /// The data that [`Ephemeral::close`] needs; Terraform keeps it until then.
    pub private: String,
}

/// Returns the timeout of an operation: that of the block `timeouts`, or the default.
///
/// # Errors
/// Fails if the text in the block is not a duration.
pub fn within(value: &Value, (operation, usual): (&str, &str)) -> Result<Duration, Diagnostic> {
    let text = value.get("timeouts").get(operation).text().unwrap_or(usual);
    crate::duration(text).map_err(|text| {
        Diagnostic::error("No duration", text).at(Path::of("timeouts").attribute(operation))
    })
}
