//! Properties of the answer to any query; see the crate `meshward-fuzzing`.

use crate::{
    Asker, NameChange, NamedService, NamedWorkload, Names, NetworkNames, Request, Resolution,
    Transport, UpstreamAnswer,
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query as Question},
    rr::{Name, RData, Record, RecordType},
    serialize::binary::{BinDecodable, BinDecoder},
};
use meshward_fuzzing::Bytes;
use meshward_types::{
    Acl, AclEntry, DnsSettings, IdentityId, PortRange, Protocol, ServicePort, WorkloadId,
    WorkloadName,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

meshward_fuzzing::targets! {
    names_query: query, samples;
    names_upstream: upstream, samples;
}

/// The identities of the sample: the asker, what it reaches, and what it does not reach.
pub(crate) const WEB: IdentityId = IdentityId(1);
pub(crate) const API: IdentityId = IdentityId(2);
pub(crate) const SECRET: IdentityId = IdentityId(3);

/// Any bytes: an answer has the id and the question of the query, can be read, is no longer than
/// the asker takes and than what it may cost a third party, and says nothing about what is hidden.
/// The first byte selects the transport.
fn query(data: &[u8]) {
    let mut bytes = Bytes(data);
    let turn = bytes.byte();
    let transport = if turn & 1 == 0 { Transport::Datagram } else { Transport::Stream };
    let asker = Asker { identity: WEB, address: address(1) };
    let request = Request { asker, transport, bytes: bytes.0, turn: turn.into() };
    let (mut out, mut other) = (vec![], vec![]);
    let resolution = sample(true).resolve(request, &mut out);
    assert_eq!(out.is_empty(), !matches!(resolution, Resolution::Answered(..)));
    let without = sample(false).resolve(request, &mut other);
    assert_eq!(out, other, "an answer without what is hidden is the same");
    assert_eq!(
        matches!(resolution, Resolution::Upstream(_)),
        matches!(without, Resolution::Upstream(_))
    );
    if !out.is_empty() {
        check_answer(bytes.0, transport, &out);
    }
}

fn check_answer(query: &[u8], transport: Transport, out: &[u8]) {
    let answer = Message::from_vec(out).expect("an answer can be read");
    assert_eq!(out[..2], query[..2], "the id");
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    // Reading any other count of questions would allocate for all of them first.
    if query[4..6] == [0, 1]
        && let Ok(asked) = Message::from_vec(query)
        && let [question] = &asked.queries[..]
        && asked.metadata.op_code == OpCode::Query
        && let [own] = &answer.queries[..]
    {
        assert!(own.name.eq_case(&question.name), "with the letters of the question");
        let most = asked.edns.as_ref().map_or(512, |edns| edns.max_payload().clamp(512, 1232));
        assert!(transport == Transport::Stream || out.len() <= most.into());
        assert!(asked.edns.is_some() || answer.edns.is_none());
    }
}

/// Records of an upstream resolver, after a query as a block: what can be read of them is written
/// so that it can be read, and is no longer than the asker takes.
fn upstream(data: &[u8]) {
    let mut bytes = Bytes(data);
    let asked = bytes.block();
    let asker = Asker { identity: WEB, address: address(1) };
    let request = Request { asker, transport: Transport::Datagram, bytes: asked, turn: 0 };
    let mut out = vec![];
    let Resolution::Upstream(query) = sample(true).resolve(request, &mut out) else { return };
    let mut decoder = BinDecoder::new(bytes.0);
    let mut answers = vec![];
    while answers.len() < 64
        && let Ok(record) = Record::read(&mut decoder)
    {
        answers.push(record);
    }
    let answer = UpstreamAnswer { answers, ..UpstreamAnswer::default() };
    query.write_upstream_answer(answer, &mut out);
    assert!(out.len() <= usize::from(query.limit));
    assert_eq!(out[..2], asked[..2], "the id");
}

/// Names of a network: some that `WEB` reaches, and, with `hidden`, some that it does not.
pub(crate) fn sample(hidden: bool) -> Names {
    let mut names = Names::new(NetworkNames {
        network: "shop".parse().expect("a name"),
        zone: (&DnsSettings::default().zone).into(),
        prefixes: ["10.20.0.0/16", "fd42::/64"].map(|net| net.parse().expect("a prefix")).into(),
        resolver: vec!["10.20.255.53".parse().expect("an address")],
    });
    names.set_serial(7);
    let entry = |protocol, first, last| AclEntry { protocol, ports: PortRange { first, last } };
    let acl = Acl::new(vec![entry(Protocol::Tcp, 80, 80), entry(Protocol::Tcp, 8080, 8080)]);
    for id in [WEB, API, SECRET] {
        names.apply(NameChange::PutIdentity { id, is_quarantined: false });
    }
    names.apply(NameChange::PutLink { from: WEB, to: API, acl: acl.clone() });
    names.apply(NameChange::PutLink { from: API, to: SECRET, acl });
    names.apply(workload(1, "web", WEB));
    for number in 2..100 {
        names.apply(workload(number, "backend", API));
    }
    names.apply(service("api", 1, API));
    if hidden {
        names.apply(workload(200, "vault", SECRET));
        names.apply(workload(201, "web", WEB));
        names.apply(service("ledger", 2, SECRET));
    }
    names
}

pub(crate) fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 20, 0, number).into()
}

pub(crate) fn workload(number: u8, name: &str, identity: IdentityId) -> NameChange {
    let id: WorkloadId = format!("{name}-{number}").parse().expect("an id");
    let name: Option<WorkloadName> = Some(name.parse().expect("a name"));
    let v6 = Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, number.into());
    let addresses = vec![address(number), v6.into()];
    NameChange::PutWorkload(id, NamedWorkload { name, addresses, identity, is_quarantined: false })
}

fn service(name: &str, number: u8, identity: IdentityId) -> NameChange {
    let port = ServicePort { protocol: Protocol::Tcp, port: 80, target: 8080 };
    let unreached = ServicePort { port: 443, target: 8443, ..port };
    let addresses = vec![Ipv4Addr::new(10, 20, 255, number).into()];
    let (ports, identities) = (vec![port, unreached], vec![identity]);
    let name = name.parse().expect("a name");
    NameChange::PutService(name, NamedService { addresses, ports, identities })
}

/// Writes a query.
pub(crate) fn ask(name: &str, record_type: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    message.add_query(Question::query(name, record_type));
    if let Some(size) = edns {
        message.edns.get_or_insert_default().set_max_payload(size);
    }
    message.to_vec().expect("a query can be written")
}

fn samples() -> Vec<Vec<u8>> {
    let asked = [
        ask("backend.shop.mesh.", RecordType::A, None),
        ask("bAckEnd.Shop.MESH.", RecordType::AAAA, Some(4096)),
        ask("_80._tcp.api.shop.mesh.", RecordType::SRV, Some(1232)),
        ask("7.0.20.10.in-addr.arpa.", RecordType::PTR, None),
        ask("ledger.shop.mesh.", RecordType::ANY, Some(512)),
        ask("mesh.", RecordType::SOA, None),
        ask("www.example.com.", RecordType::HTTPS, Some(4096)),
    ];
    let record = Record::from_rdata(
        Name::from_ascii("www.example.com.").expect("a name"),
        60,
        RData::from(address(1)),
    );
    let mut answer = Message::response(1, OpCode::Query);
    answer.add_answer(record);
    let answer = answer.to_vec().expect("an answer can be written");
    let upstream = [meshward_fuzzing::blocks([&asked[6]]), answer[12..].to_vec()].concat();
    let queries = asked.iter().map(|query| [&[0], &query[..]].concat());
    queries.chain([upstream]).collect()
}
