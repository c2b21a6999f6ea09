use super::{
    caller::Caller,
    enforcement,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::{At, Body, Params, Precondition, etag},
    state::Api,
};
use crate::{mesh::Mesh, sessions::NodeAnswer};
use axum::{
    Json,
    extract::State,
    http::header::ETAG,
    response::{IntoResponse, Response},
};
use meshward_api_types::{
    Cut, ExplainQuery, Explanation, Page, Policy, PolicyDifference, PolicyResult, Role, Rollback,
    SubmitPolicy, SubmitResult, operations,
};
use meshward_control_proto::{Answer, Question};
use meshward_control_state::{
    Refusal,
    change_log::ListKind,
    plans::{
        networks, nodes,
        policies::{self, Applied, Basis, ClosingLinks, Past, Submission},
    },
    records::PolicyRecord,
    world::World,
};
use meshward_types::{
    IdentityId, Labels, NetworkName, NodeName, PolicyFile, PortRange, PortSpec, Revision,
    WorkloadId,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

#[derive(Deserialize)]
pub(super) struct AtRevision {
    revision: Option<Revision>,
}

#[derive(Deserialize)]
pub(super) struct Between {
    from: Revision,
    to: Option<Revision>,
}

#[derive(Deserialize)]
pub(super) struct Since {
    seconds: Option<u64>,
    #[serde(default)]
    with_denied: bool,
}

/// Checks policies and, unless it is a dry run, applies them to their networks: all or none.
///
/// The files replace the whole policy of each network that they name, or, with `scope`, a part of
/// it. The answer comes when every connected node concerned enforces the policy, or after two
/// seconds. A dry run needs only a viewer's credential.
#[utoipa::path(post, path = operations::SUBMIT_POLICY.path(), tag = "policy",
    operation_id = "submit_policy", request_body = SubmitPolicy,
    responses((status = 200, body = SubmitResult)))]
pub(super) async fn submit(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    expected: Precondition,
    Body(wanted): Body<SubmitPolicy>,
) -> Result<Json<SubmitResult>, ApiError> {
    let only_looks = caller.context.dry_run && caller.role < Role::Owner;
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
        reset: wanted.reset,
    };
    if submission.files.is_empty() && submission.scope.is_none() {
        let text = "there are no files; name one, or the part that is to be removed with `scope`";
        return Err(Refusal::Invalid(text.into()).about("files").into());
    }
    let context = caller.context.because(wanted.message);
    let check = |world: &World, results: &[PolicyResult]| expect(world, &expected, results);
    let done = mesh.submit_if(&context, submission, check).await?;
    let Applied { mut results, closing, findings } = done.outcome;
    let enforcement = enforcement::wait(&mesh, &done.touched, done.revision).await;
    let enforcement = (!context.dry_run).then_some(enforcement);
    let mut nodes_silent = vec![];
    if context.dry_run && wanted.count_cuts {
        nodes_silent = count_cuts(&mesh, closing, &mut results).await;
    }
    let revision = (!context.dry_run).then_some(done.revision);
    Ok(Json(SubmitResult { revision, networks: results, findings, nodes_silent, enforcement }))
}

/// Checks that the policy to be overwritten is in the expected state.
fn expect(world: &World, expected: &Precondition, results: &[PolicyResult]) -> Result<(), Refusal> {
    match results {
        _ if !expected.is_set() => Ok(()),
        [only] => expected.check(current(world, &only.network).as_ref().map(etag).as_deref()),
        several => Err(Refusal::Invalid(format!(
            "If-Match is about the policy of one network, and this is about {}; submit them one by \
            one",
            several.len()
        ))),
    }
}

/// Asks the nodes how many live flows would be cut; returns those that did not answer.
async fn count_cuts(
    mesh: &Mesh,
    closing: Vec<ClosingLinks>,
    results: &mut [PolicyResult],
) -> Vec<NodeName> {
    let mut silent = BTreeSet::new();
    for ClosingLinks { network, links } in closing {
        if links.is_empty() {
            continue;
        }
        let mut flows: BTreeMap<WorkloadId, u64> = BTreeMap::new();
        let question = Question::Cuts { network: network.clone(), links };
        for NodeAnswer { node, answer } in mesh.sessions.ask_all(&question).await {
            match answer {
                Some(Answer::Cuts(cuts)) => {
                    // A node may only report its own workloads.
                    let own: BTreeSet<WorkloadId> = mesh.look(|world| {
                        world.workloads_on(&node).map(|workload| workload.id.clone()).collect()
                    });
                    for cut in cuts.into_iter().filter(|cut| own.contains(&cut.workload)) {
                        let sum = flows.entry(cut.workload).or_default();
                        *sum = sum.saturating_add(cut.flows);
                    }
                }
                _ if mesh.look(|world| {
                    nodes::serves_any(world, &node, std::slice::from_ref(&network))
                }) =>
                {
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

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    network: Option<NetworkName>,
}

impl Listed for Policy {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Policies;

    fn key(&self) -> String {
        self.network.to_string()
    }

    fn is_for(&self, _: &World, caller: &Caller) -> bool {
        caller.reaches(&self.network)
    }

    fn fits(&self, filter: &Filter) -> bool {
        lists::is(filter.network.as_ref(), &self.network)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        world.networks.keys().filter_map(|name| current(world, name)).collect()
    }

    fn one(_: &Mesh, world: &World, key: &str) -> Option<Self> {
        current(world, &key.parse().ok()?)
    }
}

fn current(world: &World, name: &NetworkName) -> Option<Policy> {
    let network = world.networks.get(name)?;
    Some(Policy {
        network: name.clone(),
        revision: network.policy_revision,
        files: network.policy_files.to_vec(),
    })
}

/// Lists the policies of all networks, as they were written.
#[utoipa::path(get, path = operations::POLICIES.path(), tag = "policy",
    operation_id = "list_policies",
    params(("network" = Option<NetworkName>, Query, description = "Only links of this network")),
    responses((status = 200, body = Page<Policy>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Policy>(api, caller, query).await
}

/// Returns the policy of a network as it was written, now or at a revision.
#[utoipa::path(get, path = operations::POLICY.path(), tag = "policy", operation_id = "get_policy",
    params(("name" = NetworkName, Path, description = "The name of the network"),
        ("revision" = Option<Revision>, Query, description = "The state at this revision (default: \
            now)")),
    responses((status = 200, body = Policy, headers(("ETag" = String, description = "The state of \
        the current policy")))))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NetworkName>,
    Params(at): Params<AtRevision>,
) -> Result<Response, ApiError> {
    caller.must_reach(&name)?;
    let now = mesh.look(|world| {
        networks::find(world, &name)?;
        current(world, &name)
            .ok_or_else(|| Refusal::Missing(format!("there is no network `{name}`")))
    })?;
    let tag = [(ETAG, etag(&now))];
    let Some(revision) = at.revision else { return Ok((tag, Json(now)).into_response()) };
    let past = past_policy(&mesh, &name, revision).await?;
    let files = past.map(|record| record.files.to_vec()).unwrap_or_default();
    Ok((tag, Json(Policy { network: name, revision: Some(revision), files })).into_response())
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
        return Err(ApiError::missing(format!(
            "there is no revision {revision} yet; the newest is {newest}"
        )));
    }
    Ok(Past(mesh.as_of(revision).await?))
}

/// Returns which links open and close between two revisions of a network's policy, among the
/// current workloads.
#[utoipa::path(get, path = operations::POLICY_DIFFERENCE.path(), tag = "policy",
    operation_id = "policy_difference",
    params(("name" = NetworkName, Path, description = "The name of the network"),
        ("from" = Revision, Query, description = "A revision"),
        ("to" = Option<Revision>, Query, description = "The second revision (default: now)")),
    responses((status = 200, body = PolicyDifference)))]
pub(super) async fn difference(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NetworkName>,
    Params(between): Params<Between>,
) -> Result<Json<PolicyDifference>, ApiError> {
    caller.must_reach(&name)?;
    let before = past_policy(&mesh, &name, between.from).await?;
    let to = between.to.unwrap_or_else(|| mesh.look(|world| world.revision));
    let after = past_policy(&mesh, &name, to).await?;
    let basis = mesh.look(Basis::of);
    let work = move || policies::difference(&basis, &name, [before.as_ref(), after.as_ref()]);
    Ok(Json(mesh.pool.run(&caller.context.actor, work).await??))
}

/// Applies the policy that a network had at a revision.
#[utoipa::path(post, path = operations::ROLL_POLICY_BACK.path(), tag = "policy",
    operation_id = "roll_policy_back", request_body = Rollback,
    params(("name" = NetworkName, Path, description = "The name of the network")),
    responses((status = 200, body = SubmitResult)))]
pub(super) async fn roll_back(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NetworkName>,
    expected: Precondition,
    Body(wanted): Body<Rollback>,
) -> Result<Json<SubmitResult>, ApiError> {
    caller.must_be(Role::Owner)?;
    let past = past_policy(&mesh, &name, wanted.revision).await?;
    let why = wanted.message.unwrap_or_else(|| format!("back to revision {}", wanted.revision));
    let context = caller.context.because(Some(why));
    let submission = Submission {
        back: Some((name, past)),
        networks: caller.networks.clone(),
        guardrails: caller.role == Role::Admin,
        reset: wanted.reset,
        ..Submission::default()
    };
    let check = |world: &World, results: &[PolicyResult]| expect(world, &expected, results);
    let done = mesh.submit_if(&context, submission, check).await?;
    let enforcement = enforcement::wait(&mesh, &done.touched, done.revision).await;
    let enforcement = (!context.dry_run).then_some(enforcement);
    let revision = (!context.dry_run).then_some(done.revision);
    let networks = done.outcome.results;
    Ok(Json(SubmitResult {
        revision,
        networks,
        findings: vec![],
        nodes_silent: vec![],
        enforcement,
    }))
}

/// Generates the smallest policy that allows the flows that nodes have seen.
#[utoipa::path(get, path = operations::POLICY_SUGGESTION.path(), tag = "policy",
    operation_id = "suggest_policy",
    params(("name" = NetworkName, Path, description = "The name of the network"),
        ("seconds" = Option<u64>, Query, description = "The age of the oldest flows, in seconds \
            (default: 3600)"),
        ("with_denied" = Option<bool>, Query, description = "Also allow flows that were denied")),
    responses((status = 200, body = Policy)))]
pub(super) async fn suggest(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NetworkName>,
    Params(since): Params<Since>,
) -> Result<Json<Policy>, ApiError> {
    caller.must_reach(&name)?;
    mesh.look(|world| networks::find(world, &name).map(drop))?;
    let seconds = since.seconds.unwrap_or(3600);
    let answers = mesh.sessions.ask_all(&Question::Flows { network: name.clone(), seconds }).await;
    let flows = answers.into_iter().flat_map(|NodeAnswer { node, answer }| match answer {
        // A node may only report flows that its own workloads have begun.
        Some(Answer::Flows(mut flows)) => {
            let own = own_identities(&mesh, &name, &node);
            flows.retain(|flow| own.contains(&flow.from));
            flows
        }
        _ => vec![],
    });
    let counted = flows.filter(|flow| flow.passed || since.with_denied);
    let observed: BTreeSet<(IdentityId, IdentityId, PortSpec)> = counted
        .map(|flow| {
            let ports = match flow.protocol.has_ports() {
                true => PortRange { first: flow.port, last: flow.port },
                false => PortRange::ALL,
            };
            (flow.from, flow.to, PortSpec { protocol: Some(flow.protocol), ports })
        })
        .filter(|(_, _, port)| port.protocol != Some(meshward_types::Protocol::Other))
        .collect();
    let inputs =
        mesh.look(|world| networks::find(world, &name).map(|known| known.links.inputs().clone()))?;
    let network = name.clone();
    let work = move || {
        let identities: BTreeMap<IdentityId, Labels> =
            inputs.identities().map(|(id, labels)| (id, labels.clone())).collect();
        meshward_policy::suggest(network, &identities, &observed).to_yaml()
    };
    let text = mesh.pool.run(&caller.context.actor, work).await?;
    let text = text.map_err(Refusal::Failed)?;
    Ok(Json(Policy {
        network: name,
        revision: None,
        files: vec![PolicyFile { name: "suggestion.yaml".into(), text }],
    }))
}

/// The identities of a node's workloads in a network.
fn own_identities(mesh: &Mesh, network: &NetworkName, node: &NodeName) -> BTreeSet<IdentityId> {
    let find = |world: &World| {
        let (known, index) = (world.networks.get(network)?, world.nodes.index(node)?);
        Some(known.identities_on(index).collect())
    };
    mesh.look(find).unwrap_or_default()
}

/// Returns whether a flow is allowed and which rule decides, now or by the policies and quarantines
/// of a revision.
#[utoipa::path(post, path = operations::EXPLAIN.path(), tag = "policy", operation_id = "explain",
    request_body = ExplainQuery,
    responses((status = 200, body = Vec<Explanation>)))]
pub(super) async fn explain(
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
    Ok(Json(mesh.pool.run(&caller.context.actor, work).await??))
}
