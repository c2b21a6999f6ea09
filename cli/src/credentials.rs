//! Credentials.

use crate::{
    arguments::{Common, Credential, Watching, verb_or_list},
    client::{self, Client},
    listing, note, out,
    output::{Change, bad, list, show, tell},
};
use anyhow::Result;
use meshward_api_client::context::Context;
use meshward_api_types as api;
use meshward_api_types::operations;
use std::time::SystemTime;

pub(crate) async fn credential(
    common: &Common,
    verb: Option<Credential>,
    which: Watching,
) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb_or_list(verb, which, Credential::List)? {
        Credential::Create { name, role, networks, lifetime, servers } => {
            let lifetime_seconds = lifetime.map(|time| time.as_secs());
            let wanted =
                api::CreateCredential { name, role: role.into(), networks, lifetime_seconds };
            let own = client::context(common)?.reached_by(&servers);
            create(common, &client, &wanted, own).await
        }
        Credential::Change { name, role, networks, lifetime, no_expiry } => {
            let all_networks = role.is_some() && networks.is_empty();
            let lifetime_seconds = lifetime.map(|time| time.as_secs());
            let role = role.map(Into::into);
            let wanted =
                api::ChangeCredential { role, networks, all_networks, lifetime_seconds, no_expiry };
            let changed = client.write(&operations::CHANGE_CREDENTIAL, &[&name], &wanted).await?;
            let would = format!("change credential {name}");
            let done = format!("credential {name} is changed");
            tell(common, &Change { would, done, effects: vec![], result: Some(&changed) })
        }
        Credential::List(watching) => {
            let read = async || client.all(&operations::CREDENTIALS, &[]).await;
            listing::list(watching, read, |all| print(common, all)).await
        }
        Credential::Revoke { name } => {
            client.remove(&operations::REVOKE_CREDENTIAL, &[&name]).await?;
            let (would, done) = (
                format!("revoke the credential {name}"),
                format!("the credential {name} is revoked"),
            );
            tell(common, &Change { would, done, effects: vec![], result: None })
        }
    }
}

async fn create(
    common: &Common,
    client: &Client,
    wanted: &api::CreateCredential,
    own: Context,
) -> Result<()> {
    let created = client.write(&operations::CREATE_CREDENTIAL, &[], wanted).await?;
    if common.dry_run {
        // The token that came back is not one: it was not kept.
        let role = format!("{:?}", wanted.role).to_lowercase();
        let until = created
            .kept
            .expires
            .as_ref()
            .map_or(String::new(), |expires| format!(", valid until {expires}"));
        let would = format!("create credential {} with role {role}{until}", wanted.name);
        let result = Some(&created.kept as &dyn crate::output::erased::Result);
        return tell(common, &Change { would, done: String::new(), effects: vec![], result });
    }
    let name = wanted.name.clone();
    let context = Context { token: created.token.clone(), ..own };
    if !common.is_table() {
        let done = format!("credential {name} is created");
        let whole = Made { created, context };
        return tell(
            common,
            &Change { would: String::new(), done, effects: vec![], result: Some(&whole) },
        );
    }
    // Alone on stdout, so that it can be kept in a file.
    out!("{}", serde_json::to_string_pretty(&context)?);
    note!(
        "save this to a file: it is not shown again. On the machine that uses it: meshctl context \
         import FILE --name {name}"
    );
    if let Some(expires) = &created.kept.expires {
        note!("the credential is valid until {expires}");
    }
    if context.is_local() {
        note!(
            "it only names {}, an address of this machine; for use on another one, add --server \
             HOST",
            context.server
        );
    }
    Ok(())
}

#[derive(serde::Serialize)]
struct Made {
    #[serde(flatten)]
    created: api::CreatedCredential,
    context: Context,
}

fn print(common: &Common, all: &[api::Credential]) -> Result<()> {
    let row = |credential: &api::Credential| {
        let networks =
            if credential.networks.is_empty() { "all".into() } else { list(&credential.networks) };
        let expires = match &credential.expires {
            Some(at) if is_over(at) => bad(format!("expired {at}")),
            Some(at) => at.clone(),
            None => "never".into(),
        };
        [
            credential.name.clone(),
            format!("{:?}", credential.role).to_lowercase(),
            networks,
            expires,
        ]
    };
    show(common, all, ["NAME", "ROLE", "NETWORKS", "EXPIRES"], row, "no credentials")
}

/// Returns `true` if a time (RFC 3339) is past, by this machine's clock.
fn is_over(at: &str) -> bool {
    humantime::parse_rfc3339(at).is_ok_and(|at| at <= SystemTime::now())
}
