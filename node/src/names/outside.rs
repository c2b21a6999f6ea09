//! Names outside of the mesh: an upstream is asked, here or, for names that a rule names, at the
//! node of the egress gateway that packets to their addresses leave by.

use super::{
    context::Context, counts::CountedOutcome, gateway_queries::GatewayQuery, resolver::PeerQuestion,
};
use crate::{
    clock,
    workers::{ServedEndpoint, send_name_message},
};
use hickory_proto::op::ResponseCode;
use meshward_datapath::{
    AddressFamily, NAME_ANSWER_OVERHEAD, NameAsker, NameGateway, NameMessage, NameRoute, PeerIndex,
};
use meshward_names::{Query, QueryKind, UpstreamAnswer};
use meshward_types::{NetworkName, dns::DomainName};
use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::time::{interval, sleep};

/// The interval at which gateways that have not answered are asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// The time for which gateways are waited for: less than that after which askers give up (5 s,
/// resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(4);

/// A query for a name that a rule names.
struct NamedQuery<'a> {
    served: &'a ServedEndpoint,
    asker: IpAddr,
    query: &'a Query,
    name: DomainName,
    family: AddressFamily,
}

/// Finds the answer to a query of the workload at an address, and writes it.
pub(super) async fn ask(
    context: &Context,
    network: &NetworkName,
    served: &ServedEndpoint,
    (asker, query): (IpAddr, &Query),
    answer: &mut Vec<u8>,
) {
    let named = NamedQuery::of(served, asker, query);
    let routed = named.and_then(|named| named.route().map(|route| (named, route)));
    let said = match routed {
        None => context.ask(network, &served.resolver, query).await,
        Some((named, route)) => {
            let said = match peers(&route) {
                None => context.ask(network, &served.resolver, query).await.flattened(query),
                Some(peers) => named.ask(&peers).await,
            };
            learn(served, route.asker, &named.name, &said);
            said
        }
    };
    query.write_upstream_answer(said, answer);
}

/// Answers a query of a workload of a peer, if a rule lets the workload reach the name through this
/// node. Otherwise it is left alone: the view of this node may be older than the peer's, which asks
/// again.
pub(super) async fn answer_peer(context: Arc<Context>, mut question: PeerQuestion) {
    drop(question.peer_query.queued.take());
    let PeerQuestion { network, peer_query, asker, query } = question;
    let Some(served) = context.enforcement.endpoint(&network) else { return };
    let Some(name) = query.domain_name() else { return };
    let (peer, now) = (peer_query.peer, clock::now());
    let Some(asker) = served.endpoint.asker_of_peer(now, peer, asker, &name) else { return };
    let Some(_permit) = served.resolver.remote_limits.permit(asker.owner, now) else {
        return served.resolver.count(query.kind(), CountedOutcome::Limited);
    };
    let said = context.ask(&network, &served.resolver, &query).await.flattened(&query);
    learn(&served, asker, &name, &said);
    let mut message = Vec::new();
    query.write_upstream_answer(said, &mut message);
    let number = peer_query.number;
    send_name_message(&served, peer, &NameMessage::Answer { number, message: &message });
}

fn learn(served: &ServedEndpoint, asker: NameAsker, name: &DomainName, said: &UpstreamAnswer) {
    served.endpoint.learn_name(clock::now(), asker, name, said.addresses());
}

/// Returns the peers to ask, the one that packets take first; `None` if they leave by this node.
fn peers(route: &NameRoute) -> Option<Vec<PeerIndex>> {
    let peer = |gateway: &NameGateway| match gateway {
        NameGateway::Peer(peer) => Some(*peer),
        NameGateway::Local => None,
    };
    route.gateways.first().and_then(peer)?;
    Some(route.gateways.iter().filter_map(peer).collect())
}

impl<'a> NamedQuery<'a> {
    /// The query, if it is for addresses of a domain name.
    fn of(served: &'a ServedEndpoint, asker: IpAddr, query: &'a Query) -> Option<Self> {
        let family = match query.kind() {
            QueryKind::A => AddressFamily::Ipv4,
            QueryKind::Aaaa => AddressFamily::Ipv6,
            _ => return None,
        };
        Some(Self { served, asker, query, name: query.domain_name()?, family })
    }

    fn route(&self) -> Option<NameRoute> {
        self.served.endpoint.name_route(self.asker, &self.name, self.family)
    }

    /// Asks the nodes of gateways, all of them, so that each knows addresses of the name. Returns
    /// the answer of the one that packets take now.
    async fn ask(&self, peers: &[PeerIndex]) -> UpstreamAnswer {
        let Self { served, query, .. } = self;
        let answer = self.answer_of(served.resolver.gateway_queries.begin(peers), peers).await;
        let outcome = match &answer {
            Some(_) => CountedOutcome::Upstream,
            None => CountedOutcome::Failed,
        };
        served.resolver.count(query.kind(), outcome);
        let code = ResponseCode::ServFail;
        answer.unwrap_or_else(|| UpstreamAnswer { code, ..UpstreamAnswer::default() })
    }

    async fn answer_of(
        &self,
        mut waiting: GatewayQuery,
        peers: &[PeerIndex],
    ) -> Option<UpstreamAnswer> {
        let Self { served, asker, query, .. } = self;
        let limit = served.resolver.settings().mtu.saturating_sub(NAME_ANSWER_OVERHEAD);
        let message = query.forwarded(limit).ok()?;
        let (number, asker) = (waiting.number, *asker);
        let sent = NameMessage::Query { number, asker, message: &message };
        let mut answers: HashMap<PeerIndex, UpstreamAnswer> = HashMap::new();
        let (mut again, patience) = (interval(AGAIN), sleep(PATIENCE));
        tokio::pin!(patience);
        loop {
            tokio::select! {
                Some(answer) = waiting.answers.recv() => {
                    let said = UpstreamAnswer::read(&answer.message, query);
                    answers.extend(said.map(|said| (answer.peer, said)));
                }
                _ = again.tick() => {
                    let silent = peers.iter().filter(|peer| !answers.contains_key(peer));
                    silent.for_each(|peer| send_name_message(served, *peer, &sent));
                }
                () = &mut patience => return None,
            }
            // Packets take another gateway once one is down.
            let first = self.route().and_then(|route| Some(self::peers(&route)?[0]));
            if let Some(said) = first.and_then(|first| answers.remove(&first)) {
                return Some(said);
            }
        }
    }
}
