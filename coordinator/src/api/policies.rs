use super::{ApiError, Body, Caller, enforcement};
use crate::{
    mesh::{Mesh, Refusal},
    plans::{
        networks, nodes,
        policies::{self, Applied, Basis, Closing, Past, Submission},
    },
    records::{PolicyRecord, Record, RecordKey},
};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use meshward_model::{
    IdentityId, Labels, NetworkName, NodeName, PortRange, PortSpec, Revision, WorkloadId,
    api::{
        Cut, ErrorBody, ExplainQuery, Explanation, Policy, PolicyDifference, PolicyFile, PolicyResult,
        PolicyRevision, Role, Rollback, SubmitPolicy, SubmitResult,
    },
    control::{Answer, Question},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The most states of a policy that are listed.
const MAX_LOG: u32 = 1000;

#[derive(Deserialize)]
pub struct AtRevision {
    revision: Option<Revision>,
}

#[derive(Deserialize)]
pub struct Between {
    from: Revision,
    to: Option<Revision>,
}

#[derive(Deserialize)]
pub struct Newest {
    limit: Option<u32>,
}

#[derive(Deserialize)]
pub struct Since {
    seconds: Option<u64>,
    #[serde(default)]
    with_denied: bool,
}

/// Checks policies and, unless it is a dry run, applies them to their networks: all of them or none.
///
/// Everything that the files say of a network is its policy from then on, or, with `scope`, takes the place of a part of it. The answer comes when every connected node that it
/// concerns enforces it, or after two seconds. A dry run needs no more than a viewer's credential.
#[utoipa::path(post, path = "/v1/policies", tag = "policy", operation_id = "submit_policy", request_body = SubmitPolicy,
    responses((status = 200, body = SubmitResult), (status = "4XX", body = ErrorBody)))]
pub async fn submit(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<SubmitPolicy>,
) -> Result<Json<SubmitResult>, ApiError> {
    let only_looks = caller.author.dry_run && caller.role < Role::Owner;
    if !only_looks {
        caller.must_be(Role::Owner)?;
    }
    let submission = Submission {
        files: Arc::new(wanted.files),
        prune: wanted.prune,
        scope: wanted.scope,
        back: None,
        networks: caller.networks.clone(),
        guardrails: only_looks || caller.role == Role::Admin,
    };
    let author = caller.author.because(wanted.message);
    let done = mesh.submit(&author, submission).await?;
    let Applied { mut results, closing, findings } = done.outcome;
    let enforcement = enforcement::wait(&mesh, &done.touched, done.revision).await;
    let enforcement = (!author.dry_run).then_some(enforcement);
    let mut nodes_silent = vec![];
    if author.dry_run && wanted.count_cuts {
        nodes_silent = count_cuts(&mesh, closing, &mut results).await;
    }
    let revision = (!author.dry_run).then_some(done.revision);
    Ok(Json(SubmitResult { revision, networks: results, findings, nodes_silent, enforcement }))
}

/// Asks the nodes how many live flows would be cut; gives those that did not say.
async fn count_cuts(
    mesh: &Mesh,
    closing: Vec<(NetworkName, Closing)>,
    results: &mut [PolicyResult],
) -> Vec<NodeName> {
    let mut silent = BTreeSet::new();
    for (network, links) in closing {
        if links.is_empty() {
            continue;
        }
        let mut flows: BTreeMap<WorkloadId, u64> = BTreeMap::new();
        for (node, answer) in mesh.sessions.ask_all(&Question::Cuts(network.clone(), links)).await {
            match answer {
                Some(Answer::Cuts(cuts)) => {
                    cuts.into_iter().for_each(|(id, count)| *flows.entry(id).or_default() += count);
                }
                _ if mesh.look(|world| nodes::serves_any(world, &node, std::slice::from_ref(&network))) => {
                    silent.insert(node);
                }
                _ => {}
            }
        }
        let named = |(workload, flows): (WorkloadId, u64)| {
            let name = mesh.look(|world| {
                let known = world.networks.get(&network)?.workloads.get(&workload)?;
                Some(known.name.to_string())
            });
            Cut { workload, name: name.unwrap_or_default(), flows: flows as usize }
        };
        if let Some(result) = results.iter_mut().find(|result| result.network == network) {
            result.cuts = flows.into_iter().map(named).collect();
        }
    }
    silent.into_iter().collect()
}

/// Lists the policies of all networks, as they were written.
#[utoipa::path(get, path = "/v1/policies", tag = "policy", operation_id = "list_policies",
    responses((status = 200, body = Vec<Policy>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Vec<Policy>> {
    Json(mesh.look(|world| {
        let own = world.networks.iter().filter(|(name, _)| caller.reaches(name));
        own.map(|(name, network)| Policy {
            network: name.clone(),
            revision: network.policy_revision,
            files: network.policy_files.to_vec(),
        })
        .collect()
    }))
}

/// Gives the policy of a network as it was written, now or at a revision.
#[utoipa::path(get, path = "/v1/networks/{name}/policy", tag = "policy", operation_id = "get_policy",
    params(("name" = String, Path, description = "The network's name"),
        ("revision" = Option<u64>, Query, description = "As it was at this revision")),
    responses((status = 200, body = Policy), (status = "4XX", body = ErrorBody)))]
pub async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NetworkName>,
    Query(at): Query<AtRevision>,
) -> Result<Json<Policy>, ApiError> {
    caller.must_reach(&name)?;
    let (current, files) = mesh.look(|world| {
        let network = networks::find(world, &name)?;
        Ok::<_, ApiError>((network.policy_revision, network.policy_files.clone()))
    })?;
    let Some(revision) = at.revision else {
        return Ok(Json(Policy { network: name, revision: current, files: files.to_vec() }));
    };
    let past = past_policy(&mesh, &name, revision).await?;
    let files = past.map(|record| record.files.to_vec()).unwrap_or_default();
    Ok(Json(Policy { network: name, revision: Some(revision), files }))
}

async fn past_policy(
    mesh: &Mesh,
    name: &NetworkName,
    revision: Revision,
) -> Result<Option<PolicyRecord>, ApiError> {
    Ok(past(mesh, revision).await?.policy(name).cloned())
}

async fn past(mesh: &Mesh, revision: Revision) -> Result<Past, ApiError> {
    let newest = mesh.look(|world| world.revision);
    if revision > newest {
        return Err(ApiError::new(
            axum::http::StatusCode::NOT_FOUND,
            format!("there is no revision {revision} yet; the newest is {newest}"),
        ));
    }
    Ok(Past(mesh.as_of(revision).await?))
}

/// Lists the states that the policy of a network had, the newest first.
#[utoipa::path(get, path = "/v1/networks/{name}/policy/log", tag = "policy", operation_id = "policy_log",
    params(("name" = String, Path, description = "The network's name"),
        ("limit" = Option<u32>, Query, description = "How many, at most 1000 (default 100)")),
    responses((status = 200, body = Vec<PolicyRevision>), (status = "4XX", body = ErrorBody)))]
pub async fn log(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NetworkName>,
    Query(newest): Query<Newest>,
) -> Result<Json<Vec<PolicyRevision>>, ApiError> {
    caller.must_reach(&name)?;
    mesh.look(|world| networks::find(world, &name).map(drop))?;
    let limit = newest.limit.unwrap_or(100).min(MAX_LOG);
    let states = mesh.history(RecordKey::Policy(name), limit).await?;
    let shown = states.into_iter().map(|state| PolicyRevision {
        revision: state.entry.revision,
        at: state.entry.at,
        actor: state.entry.actor,
        why: state.entry.why,
        origin: state.entry.origin,
        files: match state.record {
            Some(Record::Policy(record)) => record.files.len(),
            _ => 0,
        },
    });
    Ok(Json(shown.collect()))
}

/// Says which links open and close between two states of a network's policy, among the workloads of now.
#[utoipa::path(get, path = "/v1/networks/{name}/policy/difference", tag = "policy", operation_id = "policy_difference",
    params(("name" = String, Path, description = "The network's name"),
        ("from" = u64, Query, description = "A revision"),
        ("to" = Option<u64>, Query, description = "Another; now if it is left out")),
    responses((status = 200, body = PolicyDifference), (status = "4XX", body = ErrorBody)))]
pub async fn difference(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NetworkName>,
    Query(between): Query<Between>,
) -> Result<Json<PolicyDifference>, ApiError> {
    caller.must_reach(&name)?;
    let before = past_policy(&mesh, &name, between.from).await?;
    let to = between.to.unwrap_or_else(|| mesh.look(|world| world.revision));
    let after = past_policy(&mesh, &name, to).await?;
    let basis = mesh.look(Basis::of);
    let work = move || policies::difference(&basis, &name, [before.as_ref(), after.as_ref()]);
    Ok(Json(mesh.pool.run(&caller.author.actor, work).await.map_err(Refusal::from)??))
}

/// Applies the policy that a network had at a revision.
#[utoipa::path(post, path = "/v1/networks/{name}/policy/rollback", tag = "policy", operation_id = "roll_policy_back", request_body = Rollback,
    params(("name" = String, Path, description = "The network's name")),
    responses((status = 200, body = SubmitResult), (status = "4XX", body = ErrorBody)))]
pub async fn roll_back(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NetworkName>,
    Body(wanted): Body<Rollback>,
) -> Result<Json<SubmitResult>, ApiError> {
    caller.must_be(Role::Owner)?;
    let past = past_policy(&mesh, &name, wanted.revision).await?;
    let why = wanted.message.unwrap_or_else(|| format!("back to revision {}", wanted.revision));
    let author = caller.author.because(Some(why));
    let submission = Submission {
        back: Some((name, past)),
        networks: caller.networks.clone(),
        guardrails: caller.role == Role::Admin,
        ..Submission::default()
    };
    let done = mesh.submit(&author, submission).await?;
    let enforcement = enforcement::wait(&mesh, &done.touched, done.revision).await;
    let enforcement = (!author.dry_run).then_some(enforcement);
    let revision = (!author.dry_run).then_some(done.revision);
    let networks = done.outcome.results;
    Ok(Json(SubmitResult { revision, networks, findings: vec![], nodes_silent: vec![], enforcement }))
}

/// Writes the least policy that explains the flows that nodes have seen begin.
#[utoipa::path(get, path = "/v1/networks/{name}/policy/suggestion", tag = "policy", operation_id = "suggest_policy",
    params(("name" = String, Path, description = "The network's name"),
        ("seconds" = Option<u64>, Query, description = "Flows of the last so many seconds (default 3600)"),
        ("with_denied" = Option<bool>, Query, description = "Also allow what was denied")),
    responses((status = 200, body = Policy), (status = "4XX", body = ErrorBody)))]
pub async fn suggest(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NetworkName>,
    Query(since): Query<Since>,
) -> Result<Json<Policy>, ApiError> {
    caller.must_reach(&name)?;
    mesh.look(|world| networks::find(world, &name).map(drop))?;
    let seconds = since.seconds.unwrap_or(3600);
    let answers = mesh.sessions.ask_all(&Question::Flows(name.clone(), seconds)).await;
    let flows = answers.into_iter().flat_map(|(_, answer)| match answer {
        Some(Answer::Flows(flows)) => flows,
        _ => vec![],
    });
    let counted = flows.filter(|flow| flow.passed || since.with_denied);
    let seen: BTreeSet<(IdentityId, IdentityId, PortSpec)> = counted
        .map(|flow| {
            let ports = match flow.protocol.has_ports() {
                true => PortRange { first: flow.port, last: flow.port },
                false => PortRange::ALL,
            };
            (flow.from, flow.to, PortSpec { protocol: Some(flow.protocol), ports })
        })
        .filter(|(_, _, port)| port.protocol != Some(meshward_model::Protocol::Other))
        .collect();
    let ground = mesh.look(|world| networks::find(world, &name).map(|known| known.links.ground().clone()))?;
    let network = name.clone();
    let work = move || {
        let identities: BTreeMap<IdentityId, Labels> =
            ground.identities().map(|(id, labels)| (id, labels.clone())).collect();
        meshward_policy::suggest(network, &identities, &seen).to_yaml()
    };
    let text = mesh.pool.run(&caller.author.actor, work).await.map_err(Refusal::from)?;
    let text = text.map_err(|error| ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(Json(Policy {
        network: name,
        revision: None,
        files: vec![PolicyFile { name: "suggestion.yaml".into(), text }],
    }))
}

/// Says whether a flow is allowed, and what decides; now, or by the policies and quarantines of a revision.
#[utoipa::path(post, path = "/v1/explain", tag = "policy", operation_id = "explain", request_body = ExplainQuery,
    responses((status = 200, body = Vec<Explanation>), (status = "4XX", body = ErrorBody)))]
pub async fn explain(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(query): Body<ExplainQuery>,
) -> Result<Json<Vec<Explanation>>, ApiError> {
    if let Some(network) = &query.network {
        caller.must_reach(network)?;
    } else {
        caller.must_reach_all()?;
    }
    let past = match query.revision {
        Some(revision) => Some(past(&mesh, revision).await?),
        None => None,
    };
    let basis = mesh.look(Basis::of);
    let work = move || policies::explain(&basis, &query, past.as_ref());
    Ok(Json(mesh.pool.run(&caller.author.actor, work).await.map_err(Refusal::from)??))
}
