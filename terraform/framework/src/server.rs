//! The responses to Terraform's requests.

use crate::{
    Diagnostic, Diagnostics, Provider, Resource, Schema, Value,
    diagnostic::to_wire,
    lifecycle,
    value::BadValue,
    wire::{
        AppliedChange, ApplyChange, Configure, Diagnosed, DynamicValue, ImportState, Imported,
        ImportedState, KnownEphemeral, Metadata, Named, OpenedEphemeral, PlanChange, PlannedChange,
        ProviderConfig, ProviderConfigValidity, ProviderSchema, ReadState, ServerCapabilities,
        StateAnswer, TypedConfig, UpgradeState,
    },
};
use std::collections::BTreeMap;

/// The service of plugin protocol 6, for a provider.
pub(crate) struct Server<P> {
    provider: P,
}

impl From<BadValue> for Diagnostics {
    fn from(error: BadValue) -> Self {
        Diagnostic::error("A value cannot be read", error.to_string()).into()
    }
}

const CAPABILITIES: ServerCapabilities =
    ServerCapabilities { plan_destroy: false, get_provider_schema_optional: true };

fn unknown_type(name: &str) -> Diagnostics {
    let text = format!("This version of the provider has no {name}.");
    Diagnostic::error("No such type", text).into()
}

fn find<'a, T: ?Sized>(
    all: &'a BTreeMap<String, Box<T>>,
    name: &str,
) -> Result<&'a T, Diagnostics> {
    all.get(name).map(|found| &**found).ok_or_else(|| unknown_type(name))
}

fn read(value: Option<&DynamicValue>) -> Result<Value, Diagnostics> {
    Ok(Value::from_wire(value)?)
}

fn schemas<T: ?Sized>(
    all: &BTreeMap<String, Box<T>>,
    schema: impl Fn(&T) -> Schema,
) -> std::collections::HashMap<String, crate::wire::Schema> {
    all.iter().map(|(name, own)| (name.clone(), schema(own).to_wire())).collect()
}

fn names<T: ?Sized>(all: &BTreeMap<String, Box<T>>) -> Vec<Named> {
    all.keys().map(|name| Named { type_name: name.clone() }).collect()
}

/// Validates a configuration: with the schema's checks, and if all of them pass, with `further`.
fn validated(
    schema: &Schema,
    request: &TypedConfig,
    further: impl Fn(&Value) -> Diagnostics,
) -> Result<Diagnostics, Diagnostics> {
    let config = read(request.config.as_ref())?;
    let said = lifecycle::validate(schema, &config);
    Ok(if said.is_empty() { further(&config) } else { said })
}

fn diagnosed(said: Result<Diagnostics, Diagnostics>) -> Diagnosed {
    Diagnosed { diagnostics: to_wire(said.unwrap_or_else(|said| said)) }
}

impl<P: Provider> Server<P> {
    pub(crate) fn new(provider: P) -> Self {
        Self { provider }
    }

    pub(crate) fn metadata(&self) -> Metadata {
        Metadata {
            server_capabilities: Some(CAPABILITIES),
            data_sources: names(&self.provider.offers().data_sources),
            resources: names(&self.provider.offers().resources),
            ephemeral_resources: names(&self.provider.offers().ephemerals),
        }
    }

    pub(crate) fn provider_schema(&self) -> ProviderSchema {
        ProviderSchema {
            provider: Some(self.provider.schema().to_wire()),
            resource_schemas: schemas(
                &self.provider.offers().resources,
                super::provider::Resource::schema,
            ),
            data_source_schemas: schemas(
                &self.provider.offers().data_sources,
                super::provider::DataSource::schema,
            ),
            server_capabilities: Some(CAPABILITIES),
            ephemeral_resource_schemas: schemas(&self.provider.offers().ephemerals, |own| {
                own.schema()
            }),
        }
    }

    pub(crate) fn validate_provider(&self, request: &ProviderConfig) -> ProviderConfigValidity {
        let said = read(request.config.as_ref())
            .map(|config| lifecycle::validate(&self.provider.schema(), &config));
        ProviderConfigValidity { diagnostics: diagnosed(said).diagnostics }
    }

    pub(crate) fn validate_resource(&self, request: &TypedConfig) -> Diagnosed {
        let found = find(&self.provider.offers().resources, &request.type_name);
        diagnosed(
            found.and_then(|own| validated(&own.schema(), request, |config| own.validate(config))),
        )
    }

    pub(crate) fn validate_data_source(&self, request: &TypedConfig) -> Diagnosed {
        let found = find(&self.provider.offers().data_sources, &request.type_name);
        diagnosed(
            found.and_then(|own| validated(&own.schema(), request, |config| own.validate(config))),
        )
    }

    pub(crate) fn validate_ephemeral(&self, request: &TypedConfig) -> Diagnosed {
        let found = find(&self.provider.offers().ephemerals, &request.type_name);
        diagnosed(found.and_then(|own| validated(&own.schema(), request, |_| vec![])))
    }

    /// Converts a state of another version of the provider. Schemas have no version number:
    /// attributes that are not in the schema are removed, missing ones are null.
    pub(crate) fn upgrade(&self, request: UpgradeState) -> StateAnswer {
        let state =
            find(&self.provider.offers().resources, &request.type_name).and_then(|resource| {
                let json = request.raw_state.map(|raw| raw.json).unwrap_or_default();
                let json = serde_json::from_slice(&json).map_err(|error| {
                    Diagnostic::error("The state cannot be read", error.to_string())
                })?;
                Ok(resource.schema().block.conform(Value::from_json(json)))
            });
        state_answer(state, vec![])
    }

    pub(crate) async fn configure(&self, request: Configure) -> Diagnosed {
        let said = async { self.provider.configure(read(request.config.as_ref())?).await };
        diagnosed(said.await.map(|()| vec![]))
    }

    pub(crate) async fn read_resource(&self, request: ReadState) -> StateAnswer {
        let state = async {
            let resource = find(&self.provider.offers().resources, &request.type_name)?;
            let state = read(request.current_state.as_ref())?;
            if state.is_null() {
                return Ok(Value::Null);
            }
            let now = resource.read(state).await?;
            Ok(now.map_or(Value::Null, |now| resource.schema().block.conform(now)))
        };
        state_answer(state.await, request.private)
    }

    pub(crate) fn plan(&self, request: PlanChange) -> PlannedChange {
        let planned =
            find(&self.provider.offers().resources, &request.type_name).and_then(|resource| {
                let (prior, mut proposed) = (
                    read(request.prior_state.as_ref())?,
                    read(request.proposed_new_state.as_ref())?,
                );
                if proposed.is_null() {
                    return Ok(PlannedChange {
                        planned_state: Some(proposed.to_wire()),
                        ..Default::default()
                    });
                }
                let schema = resource.schema();
                if !prior.is_null() {
                    resource.keep_meaning(&prior, &mut proposed);
                }
                let planned =
                    lifecycle::plan(&schema, &prior, proposed, &read(request.config.as_ref())?);
                Ok(PlannedChange {
                    planned_state: Some(planned.state.to_wire()),
                    requires_replace: planned
                        .replaces
                        .iter()
                        .map(super::diagnostic::Path::to_wire)
                        .collect(),
                    ..Default::default()
                })
            });
        let planned = planned.unwrap_or_else(|said| PlannedChange {
            diagnostics: to_wire(said),
            ..Default::default()
        });
        PlannedChange { planned_private: request.prior_private, ..planned }
    }

    /// Applies a planned change. A change that fails leaves the prior state: the provider makes no
    /// partial changes.
    pub(crate) async fn apply(&self, request: ApplyChange) -> AppliedChange {
        let prior = request.prior_state.clone();
        let done = async {
            let resource = find(&self.provider.offers().resources, &request.type_name)?;
            let (prior, planned) =
                (read(request.prior_state.as_ref())?, read(request.planned_state.as_ref())?);
            self.change(resource, prior, planned).await
        };
        let (new_state, diagnostics) = match done.await {
            Ok((state, said)) => (Some(state.to_wire()), to_wire(said)),
            Err(said) => (prior, to_wire(said)),
        };
        AppliedChange { new_state, private: request.planned_private, diagnostics }
    }

    async fn change(
        &self,
        resource: &dyn Resource,
        prior: Value,
        planned: Value,
    ) -> Result<(Value, Diagnostics), Diagnostics> {
        if planned.is_null() {
            resource.delete(prior).await?;
            return Ok((Value::Null, vec![]));
        }
        let work = if prior.is_null() {
            resource.create(planned.clone())
        } else {
            resource.update(prior, planned.clone())
        };
        let done = work.await?;
        Ok(match lifecycle::resolve_unknowns(&resource.schema(), &planned, done) {
            Ok(state) => (state, vec![]),
            Err((state, said)) => (state, said.into()),
        })
    }

    pub(crate) fn import(&self, request: ImportState) -> ImportedState {
        let state =
            find(&self.provider.offers().resources, &request.type_name).and_then(|resource| {
                let state = resource.import(&request.id)?;
                Ok(resource.schema().block.conform(state))
            });
        match state {
            Err(said) => ImportedState { imported_resources: vec![], diagnostics: to_wire(said) },
            Ok(state) => {
                let state = Some(state.to_wire());
                let imported = Imported { type_name: request.type_name, state, private: vec![] };
                ImportedState { imported_resources: vec![imported], diagnostics: vec![] }
            }
        }
    }

    pub(crate) async fn read_data_source(&self, request: TypedConfig) -> StateAnswer {
        let state = async {
            let source = find(&self.provider.offers().data_sources, &request.type_name)?;
            let state = source.read(read(request.config.as_ref())?).await?;
            Ok(source.schema().block.conform(state))
        };
        state_answer(state.await, vec![])
    }

    pub(crate) async fn open(&self, request: TypedConfig) -> OpenedEphemeral {
        let opened = async {
            let own = find(&self.provider.offers().ephemerals, &request.type_name)?;
            let opened = own.open(read(request.config.as_ref())?).await?;
            Ok((own.schema().block.conform(opened.result), opened.private))
        };
        match opened.await {
            Err(said) => OpenedEphemeral { diagnostics: to_wire(said), ..Default::default() },
            Ok((result, private)) => OpenedEphemeral {
                diagnostics: vec![],
                result: Some(result.to_wire()),
                private: Some(private.into_bytes()),
            },
        }
    }

    pub(crate) async fn close(&self, request: KnownEphemeral) -> Diagnosed {
        let closed = async {
            let own = find(&self.provider.offers().ephemerals, &request.type_name)?;
            let private = String::from_utf8(request.private.unwrap_or_default());
            let private = private.map_err(|error| {
                Diagnostic::error("What was opened is not known", error.to_string())
            })?;
            own.close(private).await
        };
        diagnosed(closed.await.map(|()| vec![]))
    }

    pub(crate) fn stop(&self) {
        self.provider.stop();
    }
}

fn state_answer(state: Result<Value, Diagnostics>, private: Vec<u8>) -> StateAnswer {
    match state {
        Ok(state) => StateAnswer { state: Some(state.to_wire()), diagnostics: vec![], private },
        Err(said) => StateAnswer { state: None, diagnostics: to_wire(said), private },
    }
}
