//! Backups of the mesh.

use crate::{
    Mistake,
    arguments::Common,
    client::Client,
    output::{Change, tell},
};
use anyhow::Result;
use meshward_api_types::operations;
use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

/// Writes a backup to a file that is there whole or not at all.
pub(crate) async fn backup(common: &Common, file: &Path, ca: bool) -> Result<()> {
    if file.exists() {
        return Err(
            Mistake(format!("{} is there already; name another file", file.display())).into()
        );
    }
    let with = if ca { "with the CA: keep it secret" } else { "without the CA" };
    let change = |done| Change {
        would: format!("write a backup of the mesh to {}, {with}", file.display()),
        done,
        effects: vec![],
        result: None,
    };
    if common.dry_run {
        return tell(common, &change(String::new()));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    let partial = Path::new(&name);
    let mut options = fs::OpenOptions::new();
    let mut content = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(partial)
        .map_err(|error| Mistake(format!("cannot write {}: {error}", file.display())))?;
    let client = Client::coordinator(common)?;
    let done = async {
        let length = client
            .download(&format!("{}?ca={ca}", operations::BACKUP.path()), &mut content)
            .await?;
        content.sync_all()?;
        fs::rename(partial, file)?;
        anyhow::Ok(length)
    };
    match done.await {
        Ok(length) => tell(common, &change(format!("{}: {length} bytes, {with}", file.display()))),
        Err(error) => {
            let _ = fs::remove_file(partial);
            Err(error)
        }
    }
}
