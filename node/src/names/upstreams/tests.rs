use super::*;
use hickory_proto::{
    op::{Message, MessageType, OpCode},
    rr::RData,
};
use meshward_names::{Asker, Names, NetworkNames, Request, Resolution, Transport};
use meshward_types::{DnsSettings, IdentityId};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NAME: &str = "dns.upstream.test";

/// A server's certificate, and the client that trusts it.
struct Trust {
    server: ServerConfig,
    client: ClientConfig,
}

impl Trust {
    fn new(protocol: &[u8]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = CertificateDer::from(made.cert.der().to_vec());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let server = ServerConfig::builder().with_no_client_auth();
        let mut server = server.with_single_cert(vec![certificate.clone()], key).unwrap();
        server.alpn_protocols = vec![protocol.to_vec()];
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { server, client }
    }
}

/// Answers a query with an address.
fn answer(query: &[u8]) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    let name = query.queries[0].name.clone();
    answer.add_queries(query.queries);
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80));
    answer.add_answer(Record::from_rdata(name, 60, RData::from(address)));
    answer.to_vec().unwrap()
}

/// A message behind its length.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

async fn serve_tls(server: ServerConfig) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            while let Ok(length) = stream.read_u16().await {
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await.unwrap();
                stream.write_all(&framed(&answer(&query))).await.unwrap();
            }
        }
    });
    address
}

fn serve_quic(server: ServerConfig) -> SocketAddr {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                let query = receive.read_to_end(4096).await.unwrap();
                send.write_all(&framed(&answer(&query[2..]))).await.unwrap();
                send.finish().unwrap();
            }
        }
    });
    address
}

/// The query of a workload for `www.upstream.test`.
fn query() -> Query {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("www.upstream.test.").unwrap();
    message.add_query(Question::query(name, RecordType::A));
    let bytes = message.to_vec().unwrap();
    let names = Names::new(NetworkNames {
        network: "shop".parse().unwrap(),
        zone: (&DnsSettings::default().zone).into(),
        prefixes: vec![],
        resolver: vec![],
    });
    let asker = Asker { identity: IdentityId(1), address: Ipv4Addr::LOCALHOST.into() };
    let request = Request { asker, transport: Transport::Datagram, bytes: &bytes, turn: 0 };
    let Resolution::Upstream(query) = names.resolve(request, &mut vec![]) else {
        panic!("it is not of the mesh")
    };
    query
}

/// Asks the server for the query above.
async fn asked(upstream: String, client: &ClientConfig) -> Result<UpstreamAnswer, UpstreamAnswer> {
    let dns = DnsSettings { upstreams: vec![upstream.parse().unwrap()], ..DnsSettings::default() };
    let settings = Arc::new(ResolverSettings { dns, ..ResolverSettings::default() });
    let host = HostResolvers::new("/nowhere".into());
    let upstreams = Upstreams::new(settings, &host, 1, || client.clone()).unwrap();
    let query = query();
    ask(upstreams.for_name(&query.question().unwrap().name), &query).await
}

#[tokio::test]
async fn an_upstream_is_asked_by_tls_if_it_shows_its_certificate() {
    let Trust { server, client } = Trust::new(b"dot");
    let address = serve_tls(server).await;
    let said = asked(format!("tls://{address}#{NAME}"), &client).await.unwrap();
    assert_eq!(said.answers[0].data.to_string(), "192.0.2.80");
    let said = asked(format!("tls://{address}#other.upstream.test"), &client).await.unwrap_err();
    assert_eq!(said.code, ResponseCode::ServFail);
}

#[tokio::test]
async fn an_upstream_is_asked_by_quic_if_it_shows_its_certificate() {
    let Trust { server, client } = Trust::new(b"doq");
    let address = serve_quic(server);
    let said = asked(format!("quic://{address}#{NAME}"), &client).await.unwrap();
    assert_eq!(said.answers[0].data.to_string(), "192.0.2.80");
    let said = asked(format!("quic://{address}#other.upstream.test"), &client).await.unwrap_err();
    assert_eq!(said.code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_longest_suffix_decides_and_the_node_never_asks_itself() {
    let dns = DnsSettings {
        zones: [("example", "192.0.2.1"), ("corp.example", "10.20.255.53")]
            .map(|(zone, server)| (zone.parse().unwrap(), vec![server.parse().unwrap()]))
            .into(),
        upstreams: vec!["10.20.255.53".parse().unwrap()],
        ..DnsSettings::default()
    };
    let addresses = vec!["10.20.255.53".parse().unwrap()];
    let settings = Arc::new(ResolverSettings { dns, addresses, mtu: 1420 });
    let host = HostResolvers::new("/nowhere".into());
    let trust = || unreachable!("no server is asked by TLS");
    let upstreams = Upstreams::new(settings, &host, 1, trust).unwrap();
    let is_asked = |name: &str| upstreams.for_name(&Name::from_ascii(name).unwrap()).is_some();
    assert!(is_asked("www.Example.") && is_asked("www.corp.example."));
    assert!(!is_asked("example.com.") && !is_asked("notexample."));
}
