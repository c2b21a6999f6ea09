//! The resource and the ephemeral resource `meshward_join_token`.

use super::state::{
    body, check_renewal, keep_unset, keyed, lasting, lasting_time, remaining, text,
};
use crate::{
    checks,
    mesh::{Mesh, told},
};
use meshward_api_types::{CreateToken, CreatedToken, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostic, Diagnostics, Ephemeral, Opened, Path, Resource, Schema,
    Type, Value, check_duration, duration,
};
use std::sync::Arc;

pub(crate) struct JoinToken(pub Arc<Mesh>);

/// The default lifetime of the resource's token.
const TTL: &str = "24h";

impl JoinToken {
    async fn make(&self, planned: &Value) -> Result<Value, Diagnostics> {
        let mut wanted = planned.clone();
        wanted.set("ttl_seconds", Value::of(&lasting(planned, "ttl")?)?);
        wanted.set("forget_after_seconds", Value::of(&lasting(planned, "forget_after")?)?);
        let fields = [
            "uses",
            "ttl_seconds",
            "site",
            "networks",
            "relay",
            "needs_approval",
            "forget_after_seconds",
        ];
        let wanted: CreateToken = body(&wanted, &fields)?;
        let made: CreatedToken =
            self.0.write(&operations::CREATE_TOKEN, &[], &wanted).await.map_err(told)?;
        let mut now = planned.clone();
        now.set("id", made.kept.id);
        now.set("expires", made.kept.expires);
        now.set("token", made.token);
        Ok(now)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let id = text(&state, "id")?;
        let all = self.0.list(&operations::TOKENS).await?;
        let Some(found) = all.iter().find(|token| token.id == id) else {
            // The coordinator deletes tokens that expired long ago; that is not a change that
            // Terraform has to undo.
            let expired = state.get("expires").text().map(remaining).transpose()?;
            let expired = expired.is_some_and(time::SignedDuration::is_negative);
            return Ok((expired && state.get("renew_before").is_null()).then_some(state));
        };
        if ends_soon(&state, &found.expires)? {
            return Ok(None);
        }
        let mut now = Value::of(found)?;
        for own in ["token", "ttl", "uses", "renew_before"] {
            now.set(own, state.get(own).clone());
        }
        now.set("forget_after", shown(state.get("forget_after"), found.forget_after_seconds)?);
        keep_unset(&state, &mut now, &["networks"]);
        Ok(Some(now))
    }
}

/// Returns whether a token expires within `renew_before`, so that it has to be replaced.
fn ends_soon(state: &Value, expires: &str) -> Result<bool, Diagnostics> {
    let Some(before) = lasting_time(state, "renew_before")? else { return Ok(false) };
    Ok(remaining(expires)? <= before)
}

/// Formats a number of seconds, or returns `written` if that is the same duration in another form.
fn shown(written: &Value, seconds: Option<u64>) -> Result<Value, Diagnostics> {
    let same = |text: &str| duration(text).is_ok_and(|time| Some(time.as_secs()) == seconds);
    if written.text().is_some_and(same) {
        return Ok(written.clone());
    }
    Value::of(&seconds.map(super::state::duration_text)).map_err(Into::into)
}

fn limits() -> Vec<Attribute> {
    let bounded: fn(&Value) -> Result<(), String> =
        |value| checks::within(value, 1, 100_000, "The number of uses");
    vec![
        Attribute::optional(
            "uses",
            Type::Number,
            "The number of nodes that may join with the token.",
        )
        .checked(bounded)
        .or(1),
        Attribute::optional(
            "site",
            Type::String,
            "The site of the nodes that join with it, such as `aws-eu1`.",
        )
        .checked(checks::label_value),
        Attribute::optional(
            "networks",
            Type::set(),
            "The networks that these nodes may serve. Default: all.",
        )
        .checked(checks::network),
        Attribute::optional(
            "relay",
            Type::Bool,
            "Whether the token is for relays instead of nodes.",
        )
        .or(false),
        Attribute::optional(
            "needs_approval",
            Type::Bool,
            "Whether nodes that join with the token must be approved by name, as by \
             `meshward_node`, before they serve a network.",
        )
        .or(false),
        Attribute::optional(
            "forget_after",
            Type::String,
            "Makes nodes that join with the token ephemeral, as for autoscaled machines: the \
             coordinator removes a node after this time without contact, such as `10m`; 10 seconds \
             to 365 days. Default: nodes stay until they are removed.",
        )
        .checked(|value| {
            checks::lasts(value, 10, 365 * 86_400, "The time after which a node is forgotten")
        }),
    ]
}

fn outcome() -> Vec<Attribute> {
    vec![
        Attribute::id("The token's id, which is not secret."),
        Attribute::computed("token", Type::String, "The join token, for `meshward-node join`.")
            .sensitive(),
        Attribute::computed(
            "expires",
            Type::String,
            "The time at which the token expires (RFC 3339).",
        ),
    ]
}

fn lifetime(usual: &str) -> Attribute {
    Attribute::optional(
        "ttl",
        Type::String,
        "The lifetime of the token, such as `90m` or `24h`; at most 365 days.",
    )
    .checked(|value| checks::lasts(value, 1, 365 * 86_400, "The lifetime of a token"))
    .or(usual)
}

impl Resource for JoinToken {
    fn schema(&self) -> Schema {
        let mut attributes = outcome();
        attributes.push(lifetime(TTL).replaces().unread());
        let unread = |own: Attribute| if own.name == "uses" { own.unread() } else { own };
        attributes.extend(limits().into_iter().map(|own| unread(own.replaces())));
        attributes.push(
            Attribute::optional(
                "renew_before",
                Type::String,
                "A plan within this time before the token expires creates another token, such as \
                 `1h`. Default: never, because nodes that have joined no longer need the token.",
            )
            .checked(check_duration),
        );
        Schema::new(
            "A join token, with which machines become nodes. The token is in the state, as a \
             sensitive value; to keep it out of the state, use the ephemeral resource of the same \
             name. Nodes that have joined stay when the token is deleted.",
            Block::of(attributes),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        let mut whole = config.clone();
        if config.get("ttl").is_null() {
            whole.set("ttl", TTL);
        }
        let wrong = "Every plan would create another token: `renew_before` must be shorter than \
                     `ttl`.";
        if let Some(said) = check_renewal(&whole, "ttl", wrong) {
            return said;
        }
        let relay = *config.get("relay") == Value::Bool(true);
        let wrong = |attribute: &str, text: &str| {
            Diagnostic::error("Not applicable to relays", text).at(Path::of(attribute)).into()
        };
        match relay {
            true if !config.get("networks").elements().is_empty() => {
                wrong("networks", "A relay serves all networks; omit `networks`.")
            }
            true if *config.get("needs_approval") == Value::Bool(true) => wrong(
                "needs_approval",
                "A relay serves no network, so there is nothing to approve; omit it.",
            ),
            true if !config.get("forget_after").is_null() => {
                wrong("forget_after", "A relay stays until it is removed; omit it.")
            }
            _ => vec![],
        }
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(self.look(state))
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { self.make(&planned).await })
    }

    /// Stores the new configuration: only `renew_before` changes in place.
    fn update(&self, _prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { Ok(planned) })
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.remove(&operations::REVOKE_TOKEN, &[&text(&state, "id")?]).await.map_err(told)
        })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        Ok(keyed(&[("id", id)]))
    }

    fn import_form(&self) -> &'static str {
        "TOKEN_ID"
    }
}

impl Ephemeral for JoinToken {
    fn schema(&self) -> Schema {
        let mut attributes = outcome();
        attributes.push(lifetime("1h"));
        attributes.extend(limits());
        attributes.push(
            Attribute::optional(
                "revoke_on_close",
                Type::Bool,
                "Whether to revoke the token when Terraform ends. Machines that boot later cannot \
                 join with it then.",
            )
            .or(false),
        );
        Schema::new(
            "A join token that is in no plan and no state, for write-only arguments such as that \
             of a cloud's secret store. Terraform creates another one in every plan and every \
             apply; unused tokens expire after `ttl`.",
            Block::of(attributes),
        )
    }

    fn open(&self, mut config: Value) -> Answer<'_, Opened> {
        Box::pin(async move {
            for own in Ephemeral::schema(self).block.attributes {
                if let (Some(default), Value::Null) = (own.default, config.get(&own.name)) {
                    config.set(&own.name, default);
                }
            }
            let result = self.make(&config).await?;
            let revoked = *config.get("revoke_on_close") == Value::Bool(true);
            let private = if revoked { text(&result, "id")? } else { String::new() };
            Ok(Opened { result, private })
        })
    }

    fn close(&self, private: String) -> Answer<'_, ()> {
        Box::pin(async move {
            if private.is_empty() {
                Ok(())
            } else {
                self.0.remove(&operations::REVOKE_TOKEN, &[&private]).await.map_err(told)
            }
        })
    }
}
