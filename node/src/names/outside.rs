//! Names outside of the mesh: an upstream is asked, here or, for names that a rule names, at the node
//! of the egress gateway that packets to their addresses leave by.

use super::{context::Context, counts::CountedOutcome, resolver::PeerQuestion};
use crate::{
    clock,
    workers::{ServedEndpoint, send_name_message},
};
use hickory_proto::op::ResponseCode;
use meshward_datapath::{
    AddressFamily, NAME_ANSWER_OVERHEAD, NameGateway, NameMessage, NameRoute, PeerIndex,
};
use meshward_names::{Query, QueryKind, UpstreamAnswer};
use meshward_types::{NetworkName, dns::DomainName};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::time::sleep;

/// The interval at which gateways that have not answered are asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// The time for which gateways are waited for: less than that after which askers give up (5 s,
/// resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(4);
/// The time for which other gateways' answers wait for that of the one that packets take.
const PREFERENCE: Duration = Duration::from_millis(800);

/// Finds the answer to a query of the workload at an address, and writes it.
pub(super) async fn ask(
    context: &Context,
    network: &NetworkName,
    served: &ServedEndpoint,
    (asker, query): (IpAddr, &Query),
    answer: &mut Vec<u8>,
) {
    let said = match route(served, asker, query) {
        None => context.ask(network, &served.resolver, query).await,
        Some((name, route)) => {
            let said = match peers(&route) {
                None => context.ask(network, &served.resolver, query).await,
                Some(peers) => ask_peers(served, (asker, query), &peers).await,
            };
            served.endpoint.learn_name(route.asker, &name, said.addresses());
            said
        }
    };
    query.write_upstream_answer(said, answer);
}

/// Answers a query of a workload of a peer, if a rule lets the workload reach the name through this
/// node.
pub(super) async fn answer_peer(context: Arc<Context>, question: PeerQuestion) {
    let PeerQuestion { network, peer, number, asker, query, permit } = question;
    let Some(served) = context.enforcement.endpoint(&network) else { return };
    let asker = query.domain_name().and_then(|name| {
        let asker = served.endpoint.asker_of_peer(clock::now(), peer, asker, &name)?;
        Some((asker, name))
    });
    let mut message = Vec::new();
    match asker {
        Some((asker, name)) => {
            let said = context.ask(&network, &served.resolver, &query).await;
            served.endpoint.learn_name(asker, &name, said.addresses());
            query.write_upstream_answer(said, &mut message);
        }
        None => query.write_code(ResponseCode::Refused, &mut message),
    }
    send_name_message(&served, peer, &NameMessage::Answer { number, message: &message });
    drop(permit);
}

/// Returns the name that is asked for, and its gateways, if a rule names it.
fn route(served: &ServedEndpoint, asker: IpAddr, query: &Query) -> Option<(DomainName, NameRoute)> {
    let family = match query.kind() {
        QueryKind::A => AddressFamily::Ipv4,
        QueryKind::Aaaa => AddressFamily::Ipv6,
        _ => return None,
    };
    let name = query.domain_name()?;
    let route = served.endpoint.name_route(asker, &name, family)?;
    Some((name, route))
}

/// Returns the peers to ask, the one that packets take first; `None` if they leave by this node.
fn peers(route: &NameRoute) -> Option<Vec<PeerIndex>> {
    let peer = |gateway: &NameGateway| match gateway {
        NameGateway::Peer(peer) => Some(*peer),
        NameGateway::Local => None,
    };
    let first = route.gateways.first().and_then(peer)?;
    let mut all = vec![first];
    for other in route.gateways.iter().filter_map(peer) {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    Some(all)
}

/// Asks the nodes of gateways, all of them, so that each may stand in for the others. Returns the
/// answer of the first one, or another's if that does not answer soon.
async fn ask_peers(
    served: &ServedEndpoint,
    (asker, query): (IpAddr, &Query),
    peers: &[PeerIndex],
) -> UpstreamAnswer {
    let failed = || {
        served.resolver.count(query.kind(), CountedOutcome::Failed);
        UpstreamAnswer { code: ResponseCode::ServFail, ..UpstreamAnswer::default() }
    };
    let limit = served.resolver.settings().mtu.saturating_sub(NAME_ANSWER_OVERHEAD);
    let Ok(message) = query.forwarded(limit) else { return failed() };
    let mut waiting = served.resolver.gateway_queries.begin(peers);
    let sent = NameMessage::Query { number: waiting.number, asker, message: &message };
    let (mut silent, mut stand_in) = (peers.to_vec(), None);
    let mut again = tokio::time::interval(AGAIN);
    let (preference, patience) = (sleep(PREFERENCE), sleep(PATIENCE));
    tokio::pin!(preference, patience);
    while !silent.is_empty() {
        tokio::select! {
            Some(answer) = waiting.answers.recv() => {
                silent.retain(|peer| *peer != answer.peer);
                let said = UpstreamAnswer::read(&answer.message, query);
                match said.filter(|said| !is_failure(said.code)) {
                    Some(said) if answer.peer == peers[0] => {
                        stand_in = Some(said);
                        break;
                    }
                    Some(said) => {
                        stand_in.get_or_insert(said);
                    }
                    None => {}
                }
            }
            _ = again.tick() => silent.iter().for_each(|peer| {
                send_name_message(served, *peer, &sent);
            }),
            () = &mut preference, if stand_in.is_some() => break,
            () = &mut patience => break,
        }
    }
    let Some(said) = stand_in else { return failed() };
    served.resolver.count(query.kind(), CountedOutcome::Upstream);
    said
}

/// Returns whether a gateway's node has found no answer: another one may.
fn is_failure(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::ServFail | ResponseCode::Refused)
}
