//! Who changed what.

use crate::{
    arguments::{Audit, Common},
    client::Client,
    listing,
    output::{or_dash, show},
};
use anyhow::Result;
use meshward_model::api::{AuditEntry, operations};

pub async fn audit(common: &Common, wanted: Audit) -> Result<()> {
    let client = Client::coordinator(common)?;
    let query = [("limit", wanted.limit.to_string())];
    let read = async || Ok(client.page(&operations::AUDIT, &[], &query).await?.items);
    listing::list(wanted.watching, read, |all| print(common, all)).await
}

fn print(common: &Common, all: &[AuditEntry]) -> Result<()> {
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
    show(common, all, ["REVISION", "AT", "WHO", "FROM+", "WHAT", "WHY"], row, "nothing has been changed yet")
}
