//! What a provider does.

use crate::{Diagnostic, Diagnostics, Path, Schema, Value};
use futures::future::BoxFuture;
use std::{collections::BTreeMap, time::Duration};

/// What becomes of a request: a value, or what is wrong.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Diagnostics>>;

/// A provider.
pub trait Provider: Send + Sync + 'static {
    /// The provider's own configuration.
    fn schema(&self) -> Schema;

    /// What it offers.
    fn offers(&self) -> &Offers;

    /// Takes its configuration, values of which may be unknown. Said once, before all that is not
    /// checking.
    fn configure(&self, config: Value) -> Answer<'_, ()>;

    /// Ends what waits, with an error: the user wants Terraform to stop. What is under way is
    /// brought to its end.
    fn stop(&self) {}
}

/// What a provider offers, by type name.
#[derive(Default)]
pub struct Offers {
    /// The resources that it manages.
    pub resources: BTreeMap<String, Box<dyn Resource>>,
    /// What it reads.
    pub data_sources: BTreeMap<String, Box<dyn DataSource>>,
    /// What it gives for the time of one run.
    pub ephemerals: BTreeMap<String, Box<dyn Ephemeral>>,
}

/// A managed resource.
pub trait Resource: Send + Sync {
    /// Its attributes.
    fn schema(&self) -> Schema;

    /// What the schema does not say about a configuration. Values may be unknown.
    fn validate(&self, _config: &Value) -> Diagnostics {
        vec![]
    }

    /// Puts what the state says into the place of what is proposed, where both mean the same, so
    /// that nothing is planned.
    fn keep_meaning(&self, _prior: &Value, _proposed: &mut Value) {}

    /// The state as it is now; none if it is gone.
    fn read(&self, state: Value) -> Answer<'_, Option<Value>>;

    /// Makes it, and gives all of its attributes.
    fn create(&self, planned: Value) -> Answer<'_, Value>;

    /// Changes it, and gives all of its attributes. Never called if all attributes replace.
    fn update(&self, prior: Value, planned: Value) -> Answer<'_, Value>;

    /// Takes it away. It is well if it is gone already.
    fn delete(&self, state: Value) -> Answer<'_, ()>;

    /// What [`Resource::read`] needs, from the id that a user gives.
    ///
    /// # Errors
    /// If the id does not have the form of one.
    fn import(&self, id: &str) -> Result<Value, Diagnostics>;

    /// How an id is written, for the documentation.
    fn import_form(&self) -> &'static str;
}

/// Something that is only read.
pub trait DataSource: Send + Sync {
    /// Its attributes.
    fn schema(&self) -> Schema;

    /// What the schema does not say about a configuration. Values may be unknown.
    fn validate(&self, _config: &Value) -> Diagnostics {
        vec![]
    }

    /// All attributes, by those that are set.
    fn read(&self, config: Value) -> Answer<'_, Value>;
}

/// Something that exists for the time of one run of Terraform, and is in no plan and no state.
pub trait Ephemeral: Send + Sync {
    /// Its attributes.
    fn schema(&self) -> Schema;

    /// Makes it.
    fn open(&self, config: Value) -> Answer<'_, Opened>;

    /// Ends it.
    fn close(&self, private: String) -> Answer<'_, ()>;
}

/// An ephemeral resource that was made.
pub struct Opened {
    /// All attributes.
    pub result: Value,
    /// What [`Ephemeral::close`] needs.
    pub private: String,
}

/// How long something may take: what the block `timeouts` says of an operation, or else as usual.
///
/// # Errors
/// If what is written there is no duration.
pub fn within(value: &Value, (operation, usual): (&str, &str)) -> Result<Duration, Diagnostic> {
    let text = value.get("timeouts").get(operation).text().unwrap_or(usual);
    crate::duration(text).map_err(|text| {
        Diagnostic::error("No duration", text).at(Path::of("timeouts").attribute(operation))
    })
}
