use super::{
    caller::Caller,
    lists::{self, BySelector, Query},
    problem::ApiError,
    state::Api,
    watch::{self, Entries, Watched},
};
use crate::{mesh::Mesh, sessions::NodeAnswer};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use meshward_api_types::{Link, Links, Page, operations};
use meshward_control_proto::{Answer, LinkCount, Question};
use meshward_control_state::{
    change_log::ListKind,
    plans::{networks, nodes, policies::Snapshot},
};
use meshward_types::{Count, IdentityId, NetworkName, NodeName};
use roaring::RoaringBitmap;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    from: Option<BySelector>,
    to: Option<BySelector>,
    selector: Option<BySelector>,
    denied: Option<bool>,
    observed: Option<bool>,
}

impl Filter {
    fn fits(&self, link: &Link) -> bool {
        lists::is(self.network.as_ref(), &link.network)
            && lists::selects(self.from.as_ref(), &link.from)
            && lists::selects(self.to.as_ref(), &link.to)
            && (lists::selects(self.selector.as_ref(), &link.from)
                || lists::selects(self.selector.as_ref(), &link.to))
            && lists::is(self.denied.as_ref(), &(link.denied > 0))
            && lists::is(self.observed.as_ref(), &(link.observed > 0))
    }
}

/// Lists the links with the counters of all connected nodes. Pairs that were only denied have an
/// empty ACL.
#[utoipa::path(get, path = operations::LINKS.path(), tag = "policy", operation_id = "list_links",
    params(("network" = Option<NetworkName>, Query, description = "Only entries of this network"),
        ("from" = Option<String>, Query, description = "Only links from such labels: `app=web`"),
        ("to" = Option<String>, Query, description = "Only links to such labels: `app=api`"),
        ("selector" = Option<String>, Query, description = "Only links with such labels at either \
            end: `app=web`"),
        ("denied" = Option<bool>, Query, description = "Only links with denied packets (true) or \
            without (false)"),
        ("observed" = Option<bool>, Query, description = "Only links with observed packets (true) \
            or without (false)")),
    responses((status = 200, body = Links)))]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    if let Some(name) = &query.filter().network {
        api.mesh.look(|world| networks::find(world, name).map(drop))?;
    }
    if query.params().watches()? {
        let (mesh, who, filter) = (api.mesh.clone(), caller.clone(), query.filter().clone());
        let look: watch::Look = Arc::new(move |_| {
            let (mesh, who, filter) = (mesh.clone(), who.clone(), filter.clone());
            Box::pin(async move {
                let found = counted(&mesh, &who, &filter).await;
                let entries = found.items.into_iter();
                let values =
                    entries.filter_map(|link| Some((key(&link), serde_json::to_value(link).ok()?)));
                Ok(Entries { revision: found.revision, by_key: values.collect() })
            })
        });
        let from = query.params().from(query.headers())?;
        let watched = Watched {
            kind: ListKind::Links,
            interval: Some(watch::QUERIED_INTERVAL),
            by_key: false,
            look,
        };
        return watch::answer(&api, caller, watched, from);
    }
    let found = counted(&api.mesh, &caller, query.filter()).await;
    let Links { items, next: _, revision, nodes_answered, nodes_silent } = found;
    let entries = items.into_iter().map(|link| (key(&link), link)).collect();
    let Page { items, next, revision } = lists::page(entries, revision, query.params())?;
    Ok(Json(Links { items, next, revision, nodes_answered, nodes_silent }).into_response())
}

fn key(link: &Link) -> String {
    format!("{}/{}/{}", link.network, link.from, link.to)
}

async fn counted(mesh: &Mesh, caller: &Caller, filter: &Filter) -> Links {
    let answers = mesh.sessions.ask_all(&Question::Links).await;
    let answers: HashMap<_, _> =
        answers.into_iter().map(|NodeAnswer { node, answer }| (node, answer)).collect();
    let hosted = hosted(mesh, answers.keys());
    let counts = answers.iter().flat_map(|(node, answer)| match answer {
        Some(Answer::Links(counts)) => own(counts, hosted.get(node)),
        _ => vec![],
    });
    let mut sums: BTreeMap<(NetworkName, IdentityId, IdentityId), Count> = BTreeMap::new();
    for LinkCount { network, from, to, count } in counts {
        let zero = Count { packets: 0, bytes: 0, denied: 0, observed: 0 };
        let sum = sums.entry((network.clone(), *from, *to)).or_insert(zero);
        // A node may report any number.
        sum.packets = sum.packets.saturating_add(count.packets);
        sum.bytes = sum.bytes.saturating_add(count.bytes);
        sum.denied = sum.denied.saturating_add(count.denied);
        sum.observed = sum.observed.saturating_add(count.observed);
    }
    let (snapshots, revision, nodes_answered, nodes_silent) = mesh.look(|world| {
        let wanted = filter.network.as_slice();
        let concerned = |node: &&NodeName| {
            nodes::serves_any(world, node, &caller.networks)
                && nodes::serves_any(world, node, wanted)
        };
        let silent = world.nodes.keys().filter(concerned);
        let silent = silent.filter(|node| !matches!(answers.get(*node), Some(Some(_))));
        let answered = answers.iter().filter(|(node, answer)| answer.is_some() && concerned(node));
        let own = |name: &NetworkName| {
            filter.network.as_ref().is_none_or(|only| only == name) && caller.reaches(name)
        };
        let networks = world.networks.iter().filter(|(name, _)| own(name));
        let snapshots: Vec<Snapshot> = networks.map(|(_, network)| Snapshot::of(network)).collect();
        (snapshots, world.revision, answered.count(), silent.cloned().collect())
    });
    // Long lists are made without the world's lock: no change waits for it.
    let all = snapshots.iter().flat_map(|snapshot| counted_links(snapshot, &mut sums));
    let mut items: Vec<Link> = all.filter(|link| filter.fits(link)).collect();
    items.sort_by(|a, b| (&a.network, &a.from, &a.to).cmp(&(&b.network, &b.from, &b.to)));
    Links { items, next: None, revision, nodes_answered, nodes_silent }
}

/// The identities whose workloads a node has or had, by network.
type Hosted = BTreeMap<NetworkName, RoaringBitmap>;

fn hosted<'a>(mesh: &Mesh, nodes: impl Iterator<Item = &'a NodeName>) -> HashMap<NodeName, Hosted> {
    mesh.look(|world| {
        let of = |node: &NodeName| {
            let index = world.nodes.index(node)?;
            let networks =
                world.networks.iter().map(|(name, own)| (name.clone(), own.hosted_by(index)));
            Some((
                node.clone(),
                networks.filter(|(_, identities)| !identities.is_empty()).collect(),
            ))
        };
        nodes.filter_map(of).collect()
    })
}

/// Returns the counts that a node can know: those with a workload of its own at one end.
fn own<'a>(counts: &'a [LinkCount], hosted: Option<&Hosted>) -> Vec<&'a LinkCount> {
    let is_own = |count: &&LinkCount| {
        let identities = hosted.and_then(|hosted| hosted.get(&count.network));
        identities.is_some_and(|own| own.contains(count.from.0) || own.contains(count.to.0))
    };
    counts.iter().filter(is_own).collect()
}

/// Returns the links of a network with their counters, and the pairs without a link that have
/// counters.
fn counted_links(
    snapshot: &Snapshot,
    sums: &mut BTreeMap<(NetworkName, IdentityId, IdentityId), Count>,
) -> Vec<Link> {
    let name = snapshot.network();
    let mut links: Vec<Link> = (snapshot.links())
        .map(|((from, to), link)| with_count(link, sums.remove(&(name.clone(), from, to))))
        .collect();
    let others = sums.iter().filter(|((own, _, _), _)| own == name);
    links.extend(others.filter_map(|((_, from, to), count)| {
        Some(with_count(snapshot.pair(*from, *to)?, Some(*count)))
    }));
    links
}

fn with_count(link: Link, count: Option<Count>) -> Link {
    let Some(count) = count else { return link };
    Link {
        packets: count.packets,
        bytes: count.bytes,
        denied: count.denied,
        observed: count.observed,
        ..link
    }
}
