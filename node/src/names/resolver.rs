//! The resolver of one network: it answers queries from the view, in the worker that has read them.

use super::{
    changes,
    counts::{CountedOutcome, QueryCount, QueryCounts},
    gateway_queries::GatewayQueries,
    limits::{AskerLimits, AskerPermit},
    peer_queries::{PeerQueries, PeerQuery, Unbegun},
};
use crate::clock;
use hickory_proto::op::ResponseCode;
use meshward_control_proto::{Change, Resource, ResourceKey, view::NetworkSpec};
use meshward_datapath::{
    DatagramQuery, Intercept, NameMessage, PeerIndex, QueryAsker, QueryEnds, QuotaOwner,
    ResolverConfig, WorkloadIndex,
};
use meshward_names::{
    Asker, NameChange, Names, NetworkNames, Query, QueryKind, Request, Resolution, Transport,
};
use meshward_types::{DnsSettings, IdentityId, NetworkName, Revision};
use parking_lot::RwLock;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};
use tokio::sync::mpsc;

/// Tasks that wait for the thread of names at the most.
const MAX_QUEUED: usize = 4096;

/// A task for the thread of names.
pub(crate) enum Task {
    /// Ask an upstream, and answer the workload.
    Ask(Question),
    /// Ask an upstream for a workload of a peer, and answer the peer.
    AskForPeer(PeerQuestion),
    /// The settings of a network are others.
    Configure(NetworkName),
}

/// A query in a datagram that goes upstream.
pub(crate) struct Question {
    pub(crate) network: NetworkName,
    pub(crate) asker: WorkloadIndex,
    pub(crate) ends: QueryEnds,
    pub(crate) query: Query,
    pub(crate) permit: AskerPermit<WorkloadIndex>,
}

/// A query of a workload of a peer that goes upstream.
pub(crate) struct PeerQuestion {
    pub(crate) network: NetworkName,
    pub(crate) peer_query: PeerQuery,
    /// The workload's address.
    pub(crate) asker: IpAddr,
    pub(crate) query: Query,
}

/// The queue of tasks.
pub(crate) type Tasks = mpsc::Sender<Task>;

/// Makes the queue, and its other end.
pub(crate) fn queue() -> (Tasks, mpsc::Receiver<Task>) {
    mpsc::channel(MAX_QUEUED)
}

/// The resolver of one network.
pub(crate) struct NetworkResolver {
    network: NetworkName,
    state: RwLock<State>,
    counts: QueryCounts,
    limits: Arc<AskerLimits<WorkloadIndex>>,
    peer_queries: Arc<PeerQueries>,
    /// The shares of peers' workloads.
    pub(super) remote_limits: Arc<AskerLimits<QuotaOwner>>,
    /// Queries that nodes of egress gateways are asked.
    pub(super) gateway_queries: Arc<GatewayQueries>,
    turn: AtomicU32,
    tasks: Tasks,
}

struct State {
    names: Names,
    settings: Arc<ResolverSettings>,
}

/// The settings of a network's resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResolverSettings {
    /// The addresses at which the node answers.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) dns: DnsSettings,
    pub(crate) mtu: u16,
}

/// The effect of changes on a resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Names,
    /// The settings are others: the endpoint is to be configured.
    Settings,
}

/// A query by TCP, as far as the node itself could answer it.
pub(crate) enum StreamAnswer {
    /// The answer is written.
    Written,
    /// An upstream is to be asked.
    Upstream(Query, AskerPermit<WorkloadIndex>),
    /// It is no query.
    None,
}

impl NetworkResolver {
    /// The resolver of a network of which nothing is known.
    pub(crate) fn new(network: NetworkName, tasks: Tasks) -> Self {
        let settings = ResolverSettings::default();
        let names = Names::new(network_names(&network, &NetworkSpec::with_mtu(0)));
        Self {
            network,
            state: RwLock::new(State { names, settings: Arc::new(settings) }),
            counts: QueryCounts::default(),
            limits: Arc::default(),
            peer_queries: Arc::default(),
            remote_limits: Arc::default(),
            gateway_queries: Arc::default(),
            turn: AtomicU32::new(0),
            tasks,
        }
    }

    /// Applies changes of the network's view. When this returns, the next query meets them.
    /// `services`: the changes of the names of services.
    pub(crate) fn apply<'a>(
        &self,
        revision: Revision,
        changes: impl IntoIterator<Item = &'a Change>,
        services: Vec<NameChange>,
    ) -> Effect {
        let mut effect = Effect::Names;
        let mut state = self.state.write();
        state.names.set_serial(revision.0 as u32);
        for change in changes {
            if let Change::Put(ResourceKey::Network(_), Resource::Network(spec)) = change {
                state.names.set_network(network_names(&self.network, spec));
                let settings = settings(spec);
                if *state.settings != settings {
                    state.settings = Arc::new(settings);
                    effect = Effect::Settings;
                }
            }
            if let Some(change) = changes::of_view(change) {
                state.names.apply(change);
            }
        }
        for change in services {
            state.names.apply(change);
        }
        effect
    }

    /// Returns the settings.
    pub(crate) fn settings(&self) -> Arc<ResolverSettings> {
        self.state.read().settings.clone()
    }

    /// Returns the endpoint's part of the settings. `streams`: the interface that takes
    /// connections.
    pub(crate) fn config(&self, streams: Option<WorkloadIndex>) -> ResolverConfig {
        let settings = self.settings();
        let intercept =
            if settings.dns.intercept { Intercept::Queries } else { Intercept::Nothing };
        ResolverConfig { addresses: settings.addresses.clone(), intercept, streams }
    }

    /// Has the thread of names look at the settings.
    pub(crate) fn request_configuration(&self) {
        // If the queue is full, the thread looks by itself before long.
        let _ = self.tasks.try_send(Task::Configure(self.network.clone()));
    }

    /// Answers a query in a datagram. Returns `false` if there is no answer now.
    pub(crate) fn resolve(&self, asked: DatagramQuery<'_>, answer: &mut Vec<u8>) -> bool {
        let DatagramQuery { asker, ends, message } = asked;
        let address = ends.asker.ip();
        let query = match self.answer(asker, address, (Transport::Datagram, message), answer) {
            Resolution::Answered(..) => return true,
            Resolution::Ignored => return false,
            Resolution::Upstream(query) => query,
        };
        let kind = query.kind();
        let Some(permit) = self.limits.permit(asker.workload, clock::now()) else {
            return self.refuse(&query, answer);
        };
        let network = self.network.clone();
        let question = Question { network, asker: asker.workload, ends, query, permit };
        match self.tasks.try_send(Task::Ask(question)) {
            Ok(()) => false,
            Err(mpsc::error::TrySendError::Full(Task::Ask(question))) => {
                self.refuse(&question.query, answer)
            }
            Err(_) => {
                self.counts.count(kind, CountedOutcome::Failed);
                false
            }
        }
    }

    /// Receives a message of a peer about a name outside of the mesh. A query that is one too many
    /// is dropped: the peer asks again.
    pub(crate) fn receive_name_message(&self, peer: PeerIndex, message: NameMessage<'_>) {
        match message {
            NameMessage::Answer { number, message } => {
                self.gateway_queries.receive(number, peer, message);
            }
            NameMessage::Query { number, asker, message } => {
                let Some(query) = self.query_outside(asker, message) else { return };
                let kind = query.kind();
                match self.peer_queries.begin(peer, number, clock::now()) {
                    Ok(peer_query) => {
                        let network = self.network.clone();
                        let question = PeerQuestion { network, peer_query, asker, query };
                        let _ = self.tasks.try_send(Task::AskForPeer(question));
                    }
                    Err(Unbegun::TooMany) => self.count(kind, CountedOutcome::Limited),
                    Err(Unbegun::Running) => {}
                }
            }
        }
    }

    /// Reads a query that a peer passes on; `None` if it is none, or the name is one of the
    /// network's own.
    fn query_outside(&self, asker: IpAddr, bytes: &[u8]) -> Option<Query> {
        let asker = Asker { identity: IdentityId(0), address: asker };
        let request = Request { asker, transport: Transport::Datagram, bytes, turn: 0 };
        match self.state.read().names.resolve(request, &mut Vec::new()) {
            Resolution::Upstream(query) => Some(query),
            Resolution::Answered(..) | Resolution::Ignored => None,
        }
    }

    /// Answers a query by TCP.
    pub(crate) fn resolve_stream(
        &self,
        asker: QueryAsker,
        address: IpAddr,
        message: &[u8],
        answer: &mut Vec<u8>,
    ) -> StreamAnswer {
        match self.answer(asker, address, (Transport::Stream, message), answer) {
            Resolution::Answered(..) => StreamAnswer::Written,
            Resolution::Ignored => StreamAnswer::None,
            Resolution::Upstream(query) => match self.limits.permit(asker.workload, clock::now()) {
                Some(permit) => StreamAnswer::Upstream(query, permit),
                None => {
                    self.refuse(&query, answer);
                    StreamAnswer::Written
                }
            },
        }
    }

    fn answer(
        &self,
        asker: QueryAsker,
        address: IpAddr,
        (transport, bytes): (Transport, &[u8]),
        answer: &mut Vec<u8>,
    ) -> Resolution {
        let asker = Asker { identity: asker.identity, address };
        let request = Request { asker, transport, bytes, turn: self.turn.fetch_add(1, Relaxed) };
        let resolution = self.state.read().names.resolve(request, answer);
        if let Resolution::Answered(kind, outcome) = resolution {
            self.counts.count(kind, CountedOutcome::Own(outcome));
        }
        resolution
    }

    /// Refuses a query of a workload that has asked for too much.
    fn refuse(&self, query: &Query, answer: &mut Vec<u8>) -> bool {
        self.counts.count(query.kind(), CountedOutcome::Limited);
        query.write_code(ResponseCode::Refused, answer);
        true
    }

    /// Counts a query that an upstream was asked.
    pub(crate) fn count(&self, kind: QueryKind, outcome: CountedOutcome) {
        self.counts.count(kind, outcome);
    }

    /// Returns the queries so far.
    pub(crate) fn counts(&self) -> Vec<QueryCount> {
        self.counts.read()
    }
}

fn network_names(network: &NetworkName, spec: &NetworkSpec) -> NetworkNames {
    NetworkNames {
        network: network.clone(),
        zone: (&spec.dns.zone).into(),
        prefixes: spec.prefixes.clone(),
        resolver: spec.resolver.clone(),
    }
}

fn settings(spec: &NetworkSpec) -> ResolverSettings {
    let NetworkSpec { resolver, dns, mtu, .. } = spec;
    ResolverSettings { addresses: resolver.clone(), dns: dns.clone(), mtu: *mtu }
}
