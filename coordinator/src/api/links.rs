use super::{
    Api, ApiError, Caller,
    lists::{self, BySelector, Query},
    watch::{self, Watched},
};
use crate::{
    journal::Kind,
    mesh::Mesh,
    plans::{networks, nodes, policies},
    world::World,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use meshward_model::{
    IdentityId, NetworkName, NodeName,
    api::{Link, Links, Page, operations},
    control::{Answer, Count, LinkCount, Question},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Filter {
    network: Option<NetworkName>,
    from: Option<BySelector>,
    to: Option<BySelector>,
    denied: Option<bool>,
    observed: Option<bool>,
}

impl Filter {
    fn fits(&self, link: &Link) -> bool {
        lists::is(&self.network, &link.network)
            && lists::selects(&self.from, &link.from)
            && lists::selects(&self.to, &link.to)
            && lists::is(&self.denied, &(link.denied > 0))
            && lists::is(&self.observed, &(link.observed > 0))
    }
}

/// Lists the links with the counters of all connected nodes; pairs that were only ever denied have an empty ACL.
#[utoipa::path(get, path = operations::LINKS.path(), tag = "policy", operation_id = "list_links",
    params(("network" = Option<NetworkName>, Query, description = "Only those of this network"),
        ("from" = Option<String>, Query, description = "Only those that such labels begin: `app=web`"),
        ("to" = Option<String>, Query, description = "Only those to such labels: `app=api`"),
        ("denied" = Option<bool>, Query, description = "Only those on which something was denied, or nothing"),
        ("observed" = Option<bool>, Query, description = "Only those on which something passed because it is observed, or nothing")),
    responses((status = 200, body = Links)))]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    if let Some(name) = &query.filter().network {
        api.mesh.look(|world| networks::find(world, name).map(drop))?;
    }
    if query.asked().watches()? {
        let (mesh, who, filter) = (api.mesh.clone(), caller.clone(), query.filter().clone());
        let look: watch::Look = Arc::new(move |_| {
            let (mesh, who, filter) = (mesh.clone(), who.clone(), filter.clone());
            Box::pin(async move {
                let found = counted(&mesh, &who, &filter).await;
                let entries = found.items.into_iter();
                let values = entries.filter_map(|link| Some((key(&link), serde_json::to_value(link).ok()?)));
                Ok((found.revision, values.collect()))
            })
        });
        let from = query.asked().from(query.headers())?;
        let watched = Watched { kind: Kind::Links, every: Some(watch::ASKED), keyed: false, look };
        return watch::answer(&api, caller, watched, from);
    }
    let found = counted(&api.mesh, &caller, query.filter()).await;
    let Links { items, next: _, revision, nodes_answered, nodes_silent } = found;
    let entries = items.into_iter().map(|link| (key(&link), link)).collect();
    let Page { items, next, revision } = lists::page(entries, revision, query.asked())?;
    Ok(Json(Links { items, next, revision, nodes_answered, nodes_silent }).into_response())
}

fn key(link: &Link) -> String {
    format!("{}/{}/{}", link.network, link.from, link.to)
}

async fn counted(mesh: &Mesh, caller: &Caller, filter: &Filter) -> Links {
    let answers: HashMap<_, _> = mesh.sessions.ask_all(&Question::Links).await.into_iter().collect();
    let counts = answers.values().flatten().flat_map(|answer| match answer {
        Answer::Links(counts) => &counts[..],
        _ => &[],
    });
    let mut sums: BTreeMap<(NetworkName, IdentityId, IdentityId), Count> = BTreeMap::new();
    for LinkCount { network, from, to, count } in counts {
        let zero = Count { packets: 0, bytes: 0, denied: 0, observed: 0 };
        let sum = sums.entry((network.clone(), *from, *to)).or_insert(zero);
        sum.packets += count.packets;
        sum.bytes += count.bytes;
        sum.denied += count.denied;
        sum.observed += count.observed;
    }
    mesh.look(|world| {
        let wanted = filter.network.as_slice();
        let concerned = |node: &&NodeName| {
            nodes::serves_any(world, node, &caller.networks) && nodes::serves_any(world, node, wanted)
        };
        let silent = world.nodes.keys().filter(concerned);
        let silent = silent.filter(|node| !matches!(answers.get(*node), Some(Some(_))));
        let answered = answers.iter().filter(|(node, answer)| answer.is_some() && concerned(node));
        let mut items = counted_links(world, filter.network.as_ref(), sums);
        items.retain(|link| caller.reaches(&link.network) && filter.fits(link));
        Links {
            items,
            next: None,
            revision: world.revision,
            nodes_answered: answered.count(),
            nodes_silent: silent.cloned().collect(),
        }
    })
}

fn counted_links(
    world: &World,
    only: Option<&NetworkName>,
    mut sums: BTreeMap<(NetworkName, IdentityId, IdentityId), Count>,
) -> Vec<Link> {
    let mut links = Vec::new();
    for (name, network) in world.networks.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        for ((from, to), link) in policies::links(network) {
            let count = sums.remove(&(name.clone(), from, to));
            links.push(with_count(link, count));
        }
        for ((_, from, to), count) in sums.iter().filter(|((own, _, _), _)| own == name) {
            let (Some(from), Some(to)) = (network.identities.get(from), network.identities.get(to)) else {
                continue;
            };
            let link = Link {
                network: name.clone(),
                from: from.labels.clone(),
                to: to.labels.clone(),
                acl: Default::default(),
                packets: 0,
                bytes: 0,
                denied: 0,
                observed: 0,
            };
            links.push(with_count(link, Some(*count)));
        }
    }
    links.sort_by(|a, b| (&a.network, &a.from, &a.to).cmp(&(&b.network, &b.from, &b.to)));
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
