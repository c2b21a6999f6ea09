//! `meshward_service_account`.

use super::{body, keep_unset, keyed, text};
use crate::{
    checks,
    mesh::{Mesh, told},
};
use meshward_model::api::{ChangeCredential, Context, CreateCredential, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostic, Diagnostics, Path, Resource, Schema, Type, Value,
};
use std::sync::Arc;

pub struct ServiceAccount(pub Arc<Mesh>);

impl ServiceAccount {
    async fn make(&self, planned: Value) -> Result<Value, Diagnostics> {
        let wanted: CreateCredential = body(&planned, &["name", "role", "networks"])?;
        let made = self.0.write(&operations::CREATE_CREDENTIAL, &[], &wanted).await.map_err(told)?;
        let context = Context { token: made.token.clone(), ..self.0.context()?.clone() };
        let context = serde_json::to_string(&context)
            .map_err(|error| Diagnostic::error("The context has no form", error.to_string()))?;
        let mut now = planned;
        now.set("id", made.kept.name);
        now.set("token", made.token);
        now.set("context", context);
        Ok(now)
    }

    async fn change(&self, prior: Value, planned: Value) -> Result<Value, Diagnostics> {
        let wanted: ChangeCredential = body(&planned, &["role", "networks"])?;
        let wanted = ChangeCredential { all_networks: wanted.networks.is_empty(), ..wanted };
        let name = text(&prior, "name")?;
        self.0.write(&operations::CHANGE_CREDENTIAL, &[&name], &wanted).await.map_err(told)?;
        Ok(planned)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let name = text(&state, "name")?;
        let all = self.0.list(&operations::CREDENTIALS).await?;
        let Some(found) = all.iter().find(|credential| credential.name == name) else { return Ok(None) };
        let mut now = Value::of(found)?;
        now.set("id", found.name.as_str());
        for own in ["token", "context", "rotation"] {
            now.set(own, state.get(own).clone());
        }
        keep_unset(&state, &mut now, &["networks"]);
        Ok(Some(now))
    }
}

impl Resource for ServiceAccount {
    fn schema(&self) -> Schema {
        Schema::new(
            "A credential of a program, and what it may do with the coordinator's API. Its token is in the state, as a secret. The role and the networks can be changed without another token.",
            Block::of(vec![
                Attribute::id("The name."),
                Attribute::required("name", Type::String, "Its name, for the audit log.").replaces(),
                Attribute::required(
                    "role",
                    Type::String,
                    "What it may do: `viewer` reads; `operator` also quarantines; `owner` also applies policy to its networks, but for guardrails; `admin` everything.",
                )
                .checked(checks::role),
                Attribute::optional("networks", Type::set(), "The networks in which it holds. All, if it is left out; an owner has at least one, an admin none.")
                    .checked(checks::network),
                Attribute::optional("rotation", Type::String, "Any text: another one makes another token.").replaces(),
                Attribute::computed("token", Type::String, "The bearer token. Not known of what was imported.").sensitive(),
                Attribute::computed("context", Type::String, "A context file for `meshctl --context` and for `context` of this provider. Not known of what was imported.")
                    .sensitive(),
            ]),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        let networks = config.get("networks");
        let none = networks.is_null() || matches!(networks, Value::List(all) if all.is_empty());
        let wrong = |text: &str| {
            Diagnostic::error("Role and networks do not go together", text).at(Path::of("networks")).into()
        };
        match config.get("role").text() {
            Some("owner") if none => wrong("An owner owns at least one network; name it here."),
            Some("admin") if !none => wrong("An admin's word holds in every network; leave `networks` out."),
            _ => vec![],
        }
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(self.look(state))
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.make(planned))
    }

    fn update(&self, prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.change(prior, planned))
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.remove(&operations::REVOKE_CREDENTIAL, &[&text(&state, "name")?]).await.map_err(told)
        })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        Ok(keyed(&[("name", id)]))
    }

    fn import_form(&self) -> &'static str {
        "NAME"
    }
}
