//! Join tokens.

use crate::{
    arguments::{Common, Token, Watching, verb_or_list},
    client::Client,
    listing, note, out,
    output::{Change, count, list, or_dash, show, tell},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::{CreateToken, operations};

pub(crate) async fn token(common: &Common, verb: Option<Token>, which: Watching) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb_or_list(verb, which, Token::List)? {
        Token::Create { uses, ttl, site, networks, relay, needs_approval, ephemeral } => {
            let ttl_seconds = ttl.as_secs();
            let forget_after_seconds = ephemeral.map(|time| time.as_secs());
            let wanted = CreateToken {
                uses,
                ttl_seconds,
                site,
                networks,
                relay,
                needs_approval,
                forget_after_seconds,
            };
            create(common, &client, &wanted).await
        }
        Token::List(watching) => {
            let read = async || client.all(&operations::TOKENS, &[]).await;
            listing::list(watching, read, |all| print(common, all)).await
        }
        Token::Revoke { id } => {
            client.remove(&operations::REVOKE_TOKEN, &[&id]).await?;
            let (would, done) = (format!("revoke token {id}"), format!("token {id} is revoked"));
            tell(common, &Change { would, done, effects: vec![], result: None })
        }
    }
}

async fn create(common: &Common, client: &Client, wanted: &CreateToken) -> Result<()> {
    let created = client.write(&operations::CREATE_TOKEN, &[], wanted).await?;
    let kept = &created.kept;
    let (what, join) = if kept.relay {
        ("relay", "meshward-relay join TOKEN@HOST --name NAME")
    } else {
        ("node", "meshward-node join TOKEN@HOST")
    };
    let uses = count(kept.uses_left as usize, what);
    if common.dry_run {
        // The token that came back is not one: it was not kept.
        let would = format!("create a join token for {uses}, valid until {}", kept.expires);
        return tell(
            common,
            &Change { would, done: String::new(), effects: vec![], result: Some(kept) },
        );
    }
    if !common.is_table() {
        let done = format!("token {} is created", kept.id);
        return tell(
            common,
            &Change { would: String::new(), done, effects: vec![], result: Some(&created) },
        );
    }
    // Alone on stdout, so that it can be piped on.
    out!("{}", created.token);
    note!("token {}: for {uses}, valid until {}", kept.id, kept.expires);
    note!("on the machine that joins, run: {join}");
    Ok(())
}

fn print(common: &Common, all: &[api::Token]) -> Result<()> {
    let row = |token: &api::Token| {
        let networks = match token {
            _ if token.relay => "relays".into(),
            _ if token.networks.is_empty() => "all".into(),
            _ => list(&token.networks),
        };
        let networks = match token.forget_after_seconds {
            Some(_) => format!("{networks}, ephemeral"),
            None => networks,
        };
        let networks =
            if token.needs_approval { format!("{networks}, once approved") } else { networks };
        [
            token.id.clone(),
            token.uses_left.to_string(),
            token.expires.clone(),
            or_dash(token.site.as_ref()),
            networks,
        ]
    };
    show(common, all, ["ID", "USES LEFT", "EXPIRES", "SITE", "NETWORKS"], row, "no join tokens")
}
