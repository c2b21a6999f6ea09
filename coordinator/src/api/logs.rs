//! Lists that only grow: the audit log, and the states of a policy. The newest comes first.

use super::{
    caller::Caller,
    lists::{ListParams, Query, cursor},
    problem::ApiError,
    request::At,
    state::Api,
    watch::{self, Entries, Watched},
};
use crate::{
    mesh::Mesh,
    store::{AuditLine, Past},
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use meshward_api_types::{AuditEntry, MAX_PAGE, Page, PolicyRevision, operations};
use meshward_control_state::{
    change_log::ListKind,
    plans::networks,
    records::{Record, RecordKey},
};
use meshward_types::{NetworkName, Revision};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct AuditFilter {
    actor: Option<String>,
    after: Option<Revision>,
    before: Option<Revision>,
}

/// Returns the audit log, the newest line first.
#[utoipa::path(get, path = operations::AUDIT.path(), tag = "mesh", operation_id = "audit",
    params(("actor" = Option<String>, Query, description = "Only lines of this actor: `user:NAME`, \
        `node:NAME`, `trigger:NAME`"),
        ("after" = Option<Revision>, Query, description = "Only lines after this revision; not \
            with `watch`"),
        ("before" = Option<Revision>, Query, description = "Only lines before this revision; not \
            with `watch`")),
    responses((status = 200, body = Page<AuditEntry>)))]
pub(super) async fn audit(
    State(api): State<Api>,
    caller: Caller,
    query: Query<AuditFilter>,
) -> Result<Response, ApiError> {
    caller.must_reach_all()?;
    let AuditFilter { after, before, .. } = *query.filter();
    for (name, bound) in [("after", after), ("before", before)] {
        if bound.is_some_and(|bound| i64::try_from(bound.0).is_err()) {
            let text = format!("`{name}` is no revision: it is greater than any");
            return Err(ApiError::malformed(text).about(name));
        }
    }
    if query.params().watches()? {
        if after.is_some() || before.is_some() {
            let text = "a watch goes on from `revision`: leave `after` and `before` out";
            return Err(ApiError::malformed(text).about("watch"));
        }
        let (mesh, actor) = (api.mesh.clone(), query.filter().actor.clone());
        let look: watch::Look = Arc::new(move |keys| {
            let (mesh, actor) = (mesh.clone(), actor.clone());
            Box::pin(async move {
                let revision = mesh.look(|world| world.revision);
                let numbers = keys.iter().flatten().filter_map(|key| key.parse::<Revision>().ok());
                let before = numbers.max().map(Revision::next);
                let limit =
                    keys.as_ref().map_or(MAX_PAGE, |keys| keys.len().min(MAX_PAGE as usize) as u32);
                let found = mesh.audit(before, limit).await?;
                let own = found.into_iter().filter(|entry| is_by(actor.as_ref(), entry));
                let by_key = own.filter_map(|entry| value(entry.revision, &entry)).collect();
                Ok(Entries { revision, by_key })
            })
        });
        let from = query.params().from(query.headers())?;
        return watch::answer(
            &api,
            caller,
            Watched { kind: ListKind::Audit, interval: None, by_key: true, look },
            from,
        );
    }
    let (params, actor) = (query.params(), query.filter().actor.as_ref());
    let (limit, mut before) = (params.limit()?, params.before()?.or(before));
    let is_after = |revision: Revision| after.is_none_or(|after| revision > after);
    let mut found = Vec::new();
    // One more than fits shows that there is another page.
    while found.len() <= limit {
        let lines = api.mesh.audit(before, limit as u32 + 1).await?;
        let last = lines.last().map(|line| line.revision);
        let whole = lines.len() <= limit || !last.is_some_and(is_after);
        found
            .extend(lines.into_iter().filter(|line| is_by(actor, line) && is_after(line.revision)));
        before = last;
        if whole {
            break;
        }
    }
    Ok(newest(found, &api.mesh, params, |line| line.revision)?.into_response())
}

/// Returns `true` if a line of the audit log is by the wanted actor, or by anybody if none is
/// wanted.
fn is_by(actor: Option<&String>, line: &AuditEntry) -> bool {
    actor.is_none_or(|actor| *actor == line.actor)
}

/// Returns an entry with its key, for a watch.
fn value(revision: Revision, entry: &impl Serialize) -> Option<(String, serde_json::Value)> {
    Some((revision.to_string(), serde_json::to_value(entry).ok()?))
}

/// Returns a page of entries that are ordered by revision, the newest first.
fn newest<T>(
    mut found: Vec<T>,
    mesh: &Mesh,
    params: &ListParams,
    revision: impl Fn(&T) -> Revision,
) -> Result<Json<Page<T>>, ApiError> {
    let limit = params.limit()?;
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more).map(|last| cursor(&revision(last).to_string()));
    Ok(Json(Page { items: found, next: last, revision: mesh.look(|world| world.revision) }))
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Unfiltered {}

/// Lists the revisions of a network's policy, the newest first.
#[utoipa::path(get, path = operations::POLICY_LOG.path(), tag = "policy",
    operation_id = "policy_log",
    params(("name" = NetworkName, Path, description = "The name of the network")),
    responses((status = 200, body = Page<PolicyRevision>)))]
pub(super) async fn policy(
    State(api): State<Api>,
    caller: Caller,
    At(name): At<NetworkName>,
    query: Query<Unfiltered>,
) -> Result<Response, ApiError> {
    caller.must_reach(&name)?;
    api.mesh.look(|world| networks::find(world, &name).map(drop))?;
    if query.params().watches()? {
        let mesh = api.mesh.clone();
        let look: watch::Look = Arc::new(move |_| {
            let (mesh, name) = (mesh.clone(), name.clone());
            Box::pin(async move {
                let revision = mesh.look(|world| world.revision);
                let states = mesh.history(RecordKey::Policy(name), None, MAX_PAGE).await?;
                let shown = states.into_iter().map(describe);
                let by_key = shown.filter_map(|state| value(state.revision, &state)).collect();
                Ok(Entries { revision, by_key })
            })
        });
        let from = query.params().from(query.headers())?;
        let watched = Watched { kind: ListKind::Policies, interval: None, by_key: false, look };
        return watch::answer(&api, caller, watched, from);
    }
    let params = query.params();
    let limit = params.limit()? as u32 + 1;
    let states = api.mesh.history(RecordKey::Policy(name), params.before()?, limit).await?;
    let shown = states.into_iter().map(describe).collect();
    Ok(newest(shown, &api.mesh, params, |state: &PolicyRevision| state.revision)?.into_response())
}

fn describe(state: Past) -> PolicyRevision {
    let AuditLine { revision, note } = state.line;
    PolicyRevision {
        revision,
        at: note.at,
        actor: note.actor,
        why: note.why,
        origin: note.origin,
        files: match state.record {
            Some(Record::Policy(record)) => record.files.len(),
            _ => 0,
        },
    }
}
