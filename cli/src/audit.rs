//! The audit log.

use crate::{
    Mistake,
    arguments::{Audit, Common, Output},
    client::Client,
    listing, note, out,
    output::{or_dash, show},
};
use anyhow::Result;
use meshward_api_types::{AuditEntry, MAX_PAGE, operations};
use meshward_types::Revision;

/// The number of lines without `--limit` and `--after`.
const USUAL: u32 = 30;

pub(crate) async fn audit(common: &Common, wanted: Audit) -> Result<()> {
    let client = Client::coordinator(common)?;
    if wanted.follow {
        return follow(common, &client, &wanted).await;
    }
    let read = async || read(&client, &wanted).await;
    listing::list(wanted.watching, read, |lines| print(common, lines)).await
}

/// The lines that were asked for, the newest first.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Lines {
    all: Vec<AuditEntry>,
    #[serde(skip)]
    more: bool,
}

async fn read(client: &Client, wanted: &Audit) -> Result<Lines> {
    // Who names where they stopped reading wants all that has come since.
    let most = wanted.limit.or(wanted.after.is_none().then_some(USUAL)).map(|limit| limit as usize);
    let mut query = Vec::new();
    let parts = [
        ("actor", wanted.actor.clone()),
        ("after", wanted.after.map(|revision| revision.to_string())),
        ("before", wanted.before.map(|revision| revision.to_string())),
    ];
    query.extend(parts.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let left = most.map_or(MAX_PAGE, |most| (most - all.len()).min(MAX_PAGE as usize) as u32);
        let mut query = query.clone();
        query.push(("limit", left.to_string()));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page = client.page(&operations::AUDIT, &[], &query).await?;
        all.extend(page.items);
        cursor = page.next;
        if cursor.is_none() || most.is_some_and(|most| all.len() >= most) {
            return Ok(Lines { all, more: cursor.is_some() });
        }
    }
}

fn print(common: &Common, lines: &Lines) -> Result<()> {
    let row = |entry: &AuditEntry| {
        [
            entry.revision.to_string(),
            entry.at.clone(),
            entry.actor.clone(),
            or_dash(entry.origin.as_ref()),
            entry.action.clone(),
            or_dash(entry.why.as_ref()),
        ]
    };
    let columns = ["REVISION", "AT", "WHO", "FROM+", "WHAT", "WHY"];
    show(common, &lines.all, columns, row, "no lines; nothing like that has been changed")?;
    if let Some(last) = lines.all.last().filter(|_| lines.more && common.is_table()) {
        note!("there are older lines: --before {}, or --limit N", last.revision);
    }
    Ok(())
}

/// Prints lines as they come, the oldest first, for as long as somebody reads them.
async fn follow(common: &Common, client: &Client, wanted: &Audit) -> Result<()> {
    if common.output == Output::Yaml {
        let text = "lines that are followed have no end, and so no form in YAML; take -o json: one \
            object a line";
        return Err(Mistake(text.into()).into());
    }
    let mut last: Option<Revision> = None;
    listing::follow(async || {
        let next = match last {
            None => wanted.clone(),
            Some(_) => Audit { after: last, limit: None, ..wanted.clone() },
        };
        let lines = read(client, &next).await?.all;
        last = lines.first().map(|line| line.revision).or(last).or(Some(Revision(0)));
        for line in lines.iter().rev() {
            if common.is_table() {
                out!("{}", as_line(line));
            } else {
                out!("{}", serde_json::to_string(line)?);
            }
        }
        Ok(())
    })
    .await
}

fn as_line(line: &AuditEntry) -> String {
    let from = line.origin.as_ref().map_or(String::new(), |origin| format!(" from {origin}"));
    let why = line.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    format!("{} {} {}{from}: {}{why}", line.revision, line.at, line.actor, line.action)
}
