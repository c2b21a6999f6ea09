//! The resource `meshward_service_account`.

use super::state::{
    body, check_renewal, keep_unset, keyed, lasting, lasting_time, remaining, text,
};
use crate::{
    checks,
    mesh::{Mesh, Overwrite, told},
};
use meshward_api_types::{ChangeCredential, Context, CreateCredential, Credential, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostic, Diagnostics, Path, Resource, Schema, Type, Value,
    check_duration,
};
use std::sync::Arc;

pub(crate) struct ServiceAccount(pub Arc<Mesh>);

/// The longest lifetime that the coordinator accepts, in seconds: ten years.
const MOST_LIFETIME: u64 = 3650 * 86_400;

impl ServiceAccount {
    async fn make(&self, planned: Value) -> Result<Value, Diagnostics> {
        let mut asked = planned.clone();
        asked.set("lifetime_seconds", Value::of(&lasting(&planned, "lifetime")?)?);
        let wanted: CreateCredential =
            body(&asked, &["name", "role", "networks", "lifetime_seconds"])?;
        let made =
            self.0.write(&operations::CREATE_CREDENTIAL, &[], &wanted).await.map_err(told)?;
        let context = Context { token: made.token.clone(), ..self.0.context()?.clone() };
        let context = serde_json::to_string(&context)
            .map_err(|error| Diagnostic::error("The context is malformed", error.to_string()))?;
        let mut now = planned;
        now.set("id", made.kept.name);
        now.set("expires", Value::of(&made.kept.expires)?);
        now.set("token", made.token);
        now.set("context", context);
        Ok(now)
    }

    async fn change(&self, prior: Value, planned: Value) -> Result<Value, Diagnostics> {
        let wanted: ChangeCredential = body(&planned, &["role", "networks"])?;
        let lifetime_seconds = lasting(&planned, "lifetime")?;
        let another = planned.get("lifetime") != prior.get("lifetime");
        let wanted = ChangeCredential {
            all_networks: wanted.networks.is_empty(),
            lifetime_seconds: lifetime_seconds.filter(|_| another),
            no_expiry: another && lifetime_seconds.is_none(),
            ..wanted
        };
        let as_seen = |found: &Credential| {
            let now = described(&prior, found)?;
            let sorted = |value: &Value| {
                let mut all: Vec<_> =
                    value.get("networks").elements().iter().map(Value::text).collect();
                all.sort_unstable();
                all.into_iter().map(|text| text.map(ToOwned::to_owned)).collect::<Vec<_>>()
            };
            Ok(now.get("role") == prior.get("role") && sorted(&now) == sorted(&prior))
        };
        let (read, write) = (&operations::CREDENTIAL, &operations::CHANGE_CREDENTIAL);
        let name = text(&prior, "name")?;
        let what = Overwrite { read, write, key: &name };
        let changed = self.0.overwrite(what, &wanted, as_seen).await?;
        let mut now = planned;
        now.set("expires", Value::of(&changed.expires)?);
        Ok(now)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let name = text(&state, "name")?;
        let all = self.0.list(&operations::CREDENTIALS).await?;
        let Some(found) = all.iter().find(|credential| credential.name == name) else {
            return Ok(None);
        };
        let mut now = described(&state, found)?;
        let due = match (lasting_time(&state, "renew_before")?, &found.expires) {
            (Some(before), Some(expires)) => remaining(expires)? <= before,
            _ => false,
        };
        // A changed `lifetime` makes Terraform set it again: if the credential is to be renewed, or
        // someone else has set or removed its expiry.
        if due || found.expires.is_none() != state.get("lifetime").is_null() {
            now.set(
                "lifetime",
                if due { None } else { found.expires.as_deref() }.map_or(Value::Null, Value::from),
            );
        }
        Ok(Some(now))
    }
}

/// Returns the state for a credential; attributes that the coordinator does not return keep their
/// values.
fn described(state: &Value, found: &Credential) -> Result<Value, Diagnostics> {
    let mut now = Value::of(found)?;
    now.set("id", found.name.as_str());
    for own in ["token", "context", "rotation", "lifetime", "renew_before"] {
        now.set(own, state.get(own).clone());
    }
    keep_unset(state, &mut now, &["networks"]);
    Ok(now)
}

/// Returns the attribute `lifetime`.
fn lifetime() -> Attribute {
    Attribute::optional(
        "lifetime",
        Type::String,
        "The lifetime, such as `12h` or `30d`; at most 3650 days. Default: valid until it is \
         revoked. A changed lifetime counts from when it is applied, and the token stays the same. \
         The last admin cannot have a lifetime.",
    )
    .checked(|value| checks::lasts(value, 1, MOST_LIFETIME, "A credential's lifetime"))
}

impl Resource for ServiceAccount {
    fn schema(&self) -> Schema {
        Schema::new(
            "A credential for a program, with its role in the coordinator's API. The token is in \
             the state, as a sensitive value. Role and networks can be changed without another \
             token.",
            Block::of(vec![
                Attribute::id("The name."),
                Attribute::required("name", Type::String, "The name, for the audit log.")
                    .replaces(),
                Attribute::required(
                    "role",
                    Type::String,
                    "The role: `viewer` reads; `operator` also quarantines; `owner` also applies \
                     policy to its networks, except guardrails; `admin` may do everything.",
                )
                .checked(checks::role),
                Attribute::optional(
                    "networks",
                    Type::set(),
                    "The networks that the credential is limited to. Default: all. An owner needs \
                     at least one; an admin cannot be limited.",
                )
                .checked(checks::network),
                lifetime(),
                Attribute::optional(
                    "renew_before",
                    Type::String,
                    "A plan within this time before the credential expires renews its `lifetime`, \
                     such as `7d`. Default: never.",
                )
                .checked(check_duration),
                Attribute::computed(
                    "expires",
                    Type::String,
                    "The time at which the credential expires (RFC 3339); null if it does not.",
                )
                .follows(),
                Attribute::optional(
                    "rotation",
                    Type::String,
                    "Any text. Changing it creates another token.",
                )
                .replaces(),
                Attribute::computed(
                    "token",
                    Type::String,
                    "The bearer token. Unknown after an import.",
                )
                .sensitive(),
                Attribute::computed(
                    "context",
                    Type::String,
                    "A context file for `meshctl --context` and for `context` of this provider. \
                     Unknown after an import.",
                )
                .sensitive(),
            ]),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        if let Some(wrong) = check_renewal(
            config,
            "lifetime",
            "Every plan would renew the credential: `renew_before` must be shorter than \
             `lifetime`.",
        ) {
            return wrong;
        }
        if config.get("lifetime").is_null() && config.get("renew_before").text().is_some() {
            let text = "Without `lifetime` the credential does not expire; omit `renew_before`.";
            return Diagnostic::error("Invalid renew_before", text)
                .at(Path::of("renew_before"))
                .into();
        }
        let networks = config.get("networks");
        let none = networks.is_null() || matches!(networks, Value::List(all) if all.is_empty());
        let wrong = |text: &str| {
            Diagnostic::error("Role and networks do not go together", text)
                .at(Path::of("networks"))
                .into()
        };
        match config.get("role").text() {
            Some("owner") if none => wrong("An owner needs at least one network; list it here."),
            Some("admin") if !none => {
                wrong("An admin cannot be limited to networks; omit `networks`.")
            }
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
            self.0
                .remove(&operations::REVOKE_CREDENTIAL, &[&text(&state, "name")?])
                .await
                .map_err(told)
        })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        Ok(keyed(&[("name", id)]))
    }

    fn import_form(&self) -> &'static str {
        "NAME"
    }
}
