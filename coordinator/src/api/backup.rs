use super::{caller::Caller, problem::ApiError, request::Params};
use crate::{
    ids::new_id,
    mesh::{ChangeContext, Mesh},
};
use axum::{
    body::Body,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures::stream;
use meshward_api_types::{Role, operations};
use meshward_control_state::{Plan, Refusal};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc};
use tokio::{fs::File, io::AsyncReadExt};

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

#[derive(Deserialize)]
pub(super) struct Wanted {
    /// `true` to include the CA with its private key.
    #[serde(default)]
    ca: bool,
}

/// Makes a backup: one consistent and verified file for `meshward-coordinator restore`.
#[utoipa::path(get, path = operations::BACKUP.path(), tag = "mesh", operation_id = "backup",
    params(("ca" = Option<bool>, Query, description = "`true` to include the CA's key (default: \
        false)")),
    responses((status = 200, body = Vec<u8>, content_type = "application/vnd.sqlite3")))]
pub(super) async fn backup(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Response, ApiError> {
    caller.must_be(Role::Admin)?;
    caller.must_reach_all()?;
    let name: String = new_id();
    let file = Unlinked(mesh.data_dir.join(format!("backup-{name}.tmp")));
    let done = mesh.back_up(file.0.clone(), wanted.ca.then(|| mesh.data_dir.clone())).await?;
    let with = if wanted.ca { "with" } else { "without" };
    let action = format!("made a backup of revision {}, {with} the CA", done.revision);
    let context = ChangeContext { dry_run: false, ..caller.context };
    mesh.change(&context, |_| Ok(Plan::noted(action.clone()))).await?;
    let failed =
        |error: std::io::Error| Refusal::Failed(format!("the backup cannot be read: {error}"));
    let content = File::open(&file.0).await.map_err(failed)?;
    // The file is unlinked; its content goes when it was read.
    drop(file);
    let pieces = stream::try_unfold(content, |mut content| async move {
        let mut piece = vec![0; PIECE];
        let length = content.read(&mut piece).await?;
        piece.truncate(length);
        Ok::<_, std::io::Error>((length > 0).then_some((piece, content)))
    });
    Ok(([(CONTENT_TYPE, "application/vnd.sqlite3")], Body::from_stream(pieces)).into_response())
}

/// A file that goes when this is dropped.
struct Unlinked(PathBuf);

impl Drop for Unlinked {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
