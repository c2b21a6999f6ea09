//! The upstream resolvers of a network: of its split zones, its own, or else the host's. Each has a
//! cache, which no other network shares.

use super::{host::HostResolvers, resolver::ResolverSettings};
use anyhow::Result;
use hickory_proto::{
    op::{Query as Question, ResponseCode},
    rr::{Name, Record, RecordType},
};
use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
        ResolverOpts,
    },
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
};
use meshward_names::{Query, UpstreamAnswer};
use meshward_types::dns::{Upstream, UpstreamTransport};
use rustls::{ClientConfig, RootCertStore};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// The time within which an attempt is answered, and the attempts after the first one: together
/// less than the time after which askers give up (5 s, resolv.conf(5)).
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 1;
/// Answers that are kept for a network and each of its split zones.
const CACHED: u64 = 8192;
/// The longest time for which an answer is kept.
const MAX_TTL: Duration = Duration::from_hours(1);
/// Queries on one connection at the same time: those of all workloads.
const MAX_ACTIVE: usize = 1024;

/// Returns the client side of TLS, HTTPS and QUIC, which trusts the certificates that the host
/// trusts.
pub(super) fn trusting_the_host() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        tracing::warn!("the host trusts no certificates: no upstream can be asked by TLS");
    }
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// The upstreams of a network.
pub(crate) struct Upstreams {
    settings: Arc<ResolverSettings>,
    zones: Vec<SplitZone>,
    rest: Option<TokioResolver>,
    /// The version of the host's resolvers that `rest` asks; `None`: the network has its own.
    host: Option<u64>,
}

struct SplitZone {
    name: Name,
    resolver: TokioResolver,
}

impl Upstreams {
    /// The upstreams by a network's settings. `version` is that of the host's resolvers; `tls` is
    /// called if a server is asked by TLS, HTTPS or QUIC.
    pub(crate) fn new(
        settings: Arc<ResolverSettings>,
        host: &HostResolvers,
        version: u64,
        tls: impl Fn() -> ClientConfig,
    ) -> Result<Self> {
        let resolver = |servers| resolver(servers, &settings.addresses, &tls);
        let own = &settings.addresses;
        let mut zones = Vec::new();
        for (name, servers) in &settings.dns.zones {
            let name = Name::from_ascii(format!("{name}."))?;
            let servers = servers.iter().map(name_server).collect();
            zones.extend(resolver(servers)?.map(|resolver| SplitZone { name, resolver }));
        }
        // The longest suffix first.
        zones.sort_by_key(|zone| std::cmp::Reverse(zone.name.num_labels()));
        let is_host = settings.dns.upstreams.is_empty();
        let servers = match is_host {
            true => host.servers(own),
            false => settings.dns.upstreams.iter().map(name_server).collect(),
        };
        let rest = resolver(servers)?;
        Ok(Self { zones, rest, host: is_host.then_some(version), settings })
    }

    /// Returns whether they are still those of the settings and of the host.
    pub(crate) fn is_current(&self, settings: &Arc<ResolverSettings>, version: u64) -> bool {
        self.settings == *settings && self.host.is_none_or(|own| own == version)
    }

    /// Returns the resolver for a name; `None` if there is none.
    pub(crate) fn for_name(&self, name: &Name) -> Option<TokioResolver> {
        let zone = self.zones.iter().find(|zone| zone.name.zone_of(name));
        zone.map(|zone| &zone.resolver).or(self.rest.as_ref()).cloned()
    }
}

/// Asks a resolver. Fails if no upstream has answered.
pub(crate) async fn ask(
    resolver: Option<TokioResolver>,
    query: &Query,
) -> Result<UpstreamAnswer, UpstreamAnswer> {
    let failed = |code| UpstreamAnswer { code, ..UpstreamAnswer::default() };
    let (Some(resolver), Some(question)) = (resolver, query.question()) else {
        return Err(failed(ResponseCode::ServFail));
    };
    let Question { name, query_type, .. } = question.clone();
    match lookup(&resolver, name, query_type).await {
        Ok(answers) => Ok(UpstreamAnswer { answers, ..UpstreamAnswer::default() }),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Ok(negative(none)),
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Ok(failed(code)),
        Err(error) => {
            tracing::debug!("no upstream has answered: {error}");
            Err(failed(ResponseCode::ServFail))
        }
    }
}

async fn lookup(
    resolver: &TokioResolver,
    mut name: Name,
    record_type: RecordType,
) -> Result<Vec<Record>, NetError> {
    // Otherwise search domains would be tried.
    name.set_fqdn(true);
    Ok(resolver.lookup(name, record_type).await?.answers().to_vec())
}

/// An answer without records: its SOA says for how long it is good (RFC 2308 §3).
fn negative(none: NoRecords) -> UpstreamAnswer {
    let soa = none.soa.map(|soa| {
        let ttl = none.negative_ttl.unwrap_or(soa.ttl);
        let mut record = soa.into_record_of_rdata();
        record.ttl = ttl;
        record
    });
    UpstreamAnswer {
        code: none.response_code,
        answers: vec![],
        authorities: soa.into_iter().collect(),
    }
}

/// A resolver that asks these servers, but for those that are the node itself.
fn resolver(
    mut servers: Vec<NameServerConfig>,
    own: &[IpAddr],
    tls: impl Fn() -> ClientConfig,
) -> Result<Option<TokioResolver>> {
    servers.retain(|server| !own.contains(&server.ip));
    if servers.is_empty() {
        return Ok(None);
    }
    let is_plain = |connection: &ConnectionConfig| {
        matches!(connection.protocol, ProtocolConfig::Udp | ProtocolConfig::Tcp)
    };
    let are_plain = servers.iter().all(|server| server.connections.iter().all(is_plain));
    let config = ResolverConfig::from_name_servers(servers);
    let provider = TokioRuntimeProvider::default();
    let mut builder = TokioResolver::builder_with_config(config, provider).with_options(options());
    if !are_plain {
        builder = builder.with_tls_config(tls());
    }
    Ok(Some(builder.build()?))
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    options.cache_size = CACHED;
    options.positive_max_ttl = Some(MAX_TTL);
    options.negative_max_ttl = Some(MAX_TTL);
    options.max_active_requests = MAX_ACTIVE;
    options.try_tcp_on_error = true;
    // The host's names are not its workloads'.
    options.use_hosts_file = ResolveHosts::Never;
    options
}

fn name_server(upstream: &Upstream) -> NameServerConfig {
    let Upstream { transport, address, server_name, path } = upstream;
    let name: Arc<str> = match server_name {
        Some(name) => name.as_str().into(),
        None => address.ip().to_string().into(),
    };
    let protocols = match transport {
        UpstreamTransport::Plain => vec![ProtocolConfig::Udp, ProtocolConfig::Tcp],
        UpstreamTransport::Tls => vec![ProtocolConfig::Tls { server_name: name }],
        UpstreamTransport::Https => {
            vec![ProtocolConfig::Https { server_name: name, path: (**path).into() }]
        }
        UpstreamTransport::Quic => vec![ProtocolConfig::Quic { server_name: name }],
    };
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    };
    let connections = protocols.into_iter().map(connection).collect();
    NameServerConfig::new(address.ip(), true, connections)
}

#[cfg(test)]
mod tests;
