use super::*;
use crate::UpstreamAnswer;
use crate::{
    NameChange,
    fuzzing::{API, SECRET, WEB, address, ask, sample, workload},
};
use hickory_proto::{
    op::Message,
    rr::{
        RData, Record,
        rdata::{A, AAAA, CNAME},
    },
};
use meshward_types::{Acl, AclEntry, PortRange};
use proptest::prelude::*;

const WEB_ASKS: Asker =
    Asker { identity: WEB, address: IpAddr::V4(std::net::Ipv4Addr::new(10, 20, 0, 1)) };

/// Names that the property test gives to workloads.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn a_name_has_the_addresses_of_what_the_asker_reaches() {
    let names = sample(true);
    let answer = names.ask("api.shop.mesh.", RecordType::A);
    assert_eq!(answer.addresses(), ["10.20.255.1"]);
    assert_eq!(answer.outcome, Outcome::Answered);
    assert!(answer.message.metadata.authoritative && answer.message.metadata.recursion_available);
    assert_eq!(answer.message.answers[0].ttl, TTL);
    let own = names.ask("web.shop.mesh.", RecordType::A);
    assert_eq!(own.addresses(), ["10.20.0.1"], "its own, and no other of its identity");
    let v6 = names.ask("web.shop.mesh.", RecordType::AAAA);
    assert_eq!(v6.addresses(), ["fd42::1"]);
}

#[test]
fn what_is_not_reached_does_not_exist() {
    let names = sample(true);
    for (name, outcome) in [
        ("vault.shop.mesh.", Outcome::Hidden),
        ("ledger.shop.mesh.", Outcome::Hidden),
        ("_80._tcp.ledger.shop.mesh.", Outcome::Hidden),
        ("200.0.20.10.in-addr.arpa.", Outcome::Hidden),
        ("2.255.20.10.in-addr.arpa.", Outcome::Hidden),
        ("nobody.shop.mesh.", Outcome::Unknown),
        ("web.lab.mesh.", Outcome::Unknown),
        ("a.web.shop.mesh.", Outcome::Unknown),
        ("9.9.20.10.in-addr.arpa.", Outcome::Unknown),
        ("_443._tcp.api.shop.mesh.", Outcome::Unknown),
        ("_81._tcp.backend.shop.mesh.", Outcome::Unknown),
        ("_80.tcp.api.shop.mesh.", Outcome::Unknown),
    ] {
        let answer = names.ask(name, RecordType::SRV);
        assert_eq!(answer.outcome, outcome, "{name}");
        assert_eq!(answer.message.metadata.response_code, ResponseCode::NXDomain, "{name}");
        let soa = &answer.message.authorities[0];
        assert!(matches!(&soa.data, RData::SOA(soa) if soa.minimum == TTL && soa.serial == 7));
        assert!(soa.name.zone_of(&Name::from_ascii(name).unwrap()), "{name}: {}", soa.name);
    }
}

#[test]
fn a_name_without_records_of_a_type_has_no_data() {
    let names = sample(true);
    for (name, record_type) in [
        ("web.shop.mesh.", RecordType::TXT),
        ("api.shop.mesh.", RecordType::AAAA),
        ("web.shop.mesh.", RecordType::SRV),
        ("shop.mesh.", RecordType::A),
        ("_tcp.api.shop.mesh.", RecordType::SRV),
        ("_80._tcp.api.shop.mesh.", RecordType::A),
        ("mesh.", RecordType::AAAA),
        ("2.0.20.10.in-addr.arpa.", RecordType::A),
        ("0.20.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let answer = names.ask(name, record_type);
        assert_eq!(answer.outcome, Outcome::NoData, "{name} {record_type}");
        assert_eq!(answer.message.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.message.authorities.len(), 1);
    }
}

#[test]
fn ports_that_are_reached_have_service_records() {
    let names = sample(true);
    for name in ["_80._tcp.api.shop.mesh.", "api.shop.mesh."] {
        let answer = names.ask(name, RecordType::SRV);
        let [record] = &answer.message.answers[..] else { panic!("{:?}", answer.message) };
        let RData::SRV(srv) = &record.data else { panic!("{record:?}") };
        assert_eq!((srv.port, srv.target.to_ascii().as_str()), (80, "api.shop.mesh."));
        assert_eq!(answer.message.additionals[0].data, RData::from(IpAddr::from([10, 20, 255, 1])));
    }
    let answer = names.ask("_8080._tcp.backend.shop.mesh.", RecordType::SRV);
    assert_eq!(answer.outcome, Outcome::Answered);
}

#[test]
fn addresses_have_names() {
    let names = sample(true);
    for (name, target) in [
        ("5.0.20.10.in-addr.arpa.", "backend.shop.mesh."),
        ("1.255.20.10.in-addr.arpa.", "api.shop.mesh."),
        ("53.255.20.10.in-addr.arpa.", "mesh."),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa.",
            "web.shop.mesh.",
        ),
    ] {
        let answer = names.ask(name, RecordType::PTR);
        let RData::PTR(PTR(own)) = &answer.message.answers[0].data else { panic!("{name}") };
        assert_eq!(own.to_ascii(), target);
    }
}

#[test]
fn the_zone_is_its_own_name_server_at_the_resolvers_address() {
    let names = sample(true);
    assert_eq!(names.ask("mesh.", RecordType::A).addresses(), ["10.20.255.53"]);
    let servers = names.ask("mesh.", RecordType::NS);
    assert_eq!(servers.message.answers[0].data.to_string(), "mesh.");
    assert_eq!(servers.message.additionals.len(), 1);
    assert_eq!(names.ask("mesh.", RecordType::SOA).message.answers.len(), 1);
}

#[test]
fn only_names_outside_of_the_mesh_go_upstream() {
    let names = sample(true);
    let goes = |name: &str, record_type| {
        let bytes = ask(name, record_type, None);
        let request =
            Request { asker: WEB_ASKS, transport: Transport::Datagram, bytes: &bytes, turn: 0 };
        matches!(names.resolve(request, &mut vec![]), Resolution::Upstream(_))
    };
    for name in ["example.com.", "notmesh.", "mesh.example.", "8.8.8.8.in-addr.arpa.", "arpa."] {
        assert!(goes(name, RecordType::A), "{name}");
    }
    for name in ["mesh.", "x.mesh.", "a.b.c.d.e.MESH.", "lb._dns-sd._udp.0.20.10.in-addr.arpa."] {
        assert!(!goes(name, RecordType::A), "{name}");
    }
    assert!(!goes("example.com.", RecordType::ANY) && !goes("example.com.", RecordType::AXFR));
}

#[test]
fn another_nodes_answer_is_read_and_followed_from_the_question() {
    let record = |name: &str, data: RData| Record::from_rdata(name.parse().unwrap(), 60, data);
    let cname = |to: &str| RData::CNAME(CNAME(to.parse().unwrap()));
    let v4 = |last| RData::A(A::new(192, 0, 2, last));
    let bytes = ask("WWW.example.com.", RecordType::A, Some(1232));
    let request =
        Request { asker: WEB_ASKS, transport: Transport::Datagram, bytes: &bytes, turn: 0 };
    let resolution = sample(true).resolve(request, &mut vec![]);
    let Resolution::Upstream(query) = resolution else { panic!("{resolution:?}") };
    assert_eq!(query.domain_name(), Some("www.example.com".parse().unwrap()));

    let answers = vec![
        record("www.example.com.", cname("a.cdn.example.")),
        record("a.cdn.example.", cname("b.cdn.example.")),
        record("b.cdn.example.", v4(1)),
        record("b.cdn.example.", RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
        record("b.cdn.example.", v4(2)),
        record("elsewhere.example.", v4(9)),
    ];
    let upstream = UpstreamAnswer { answers, ..UpstreamAnswer::default() };
    let mut out = vec![];
    query.write_upstream_answer(upstream.flattened(&query), &mut out);
    let said = UpstreamAnswer::read(&out, &query).unwrap();
    let wanted = [1, 2].map(|last| (IpAddr::from([192, 0, 2, last]), 60));
    assert_eq!(said.addresses().collect::<Vec<_>>(), wanted);
    assert!(said.answers.iter().all(|own| own.name.to_ascii() == "WWW.example.com."));

    // What the question does not fit is no answer, and counts are not believed.
    let other = ask("www.example.org.", RecordType::A, None);
    let request = Request { bytes: &other, ..request };
    let Resolution::Upstream(other) = sample(true).resolve(request, &mut vec![]) else { panic!() };
    assert!(UpstreamAnswer::read(&out, &other).is_none());
    assert!(UpstreamAnswer::read(&bytes, &query).is_none());
    out[6..8].copy_from_slice(&[0xff; 2]);
    assert!(UpstreamAnswer::read(&out, &query).is_none());
}

#[test]
fn a_query_is_passed_on_and_read_again() {
    let bytes = ask("www.example.com.", RecordType::AAAA, None);
    let request = Request { asker: WEB_ASKS, transport: Transport::Stream, bytes: &bytes, turn: 0 };
    let Resolution::Upstream(query) = sample(true).resolve(request, &mut vec![]) else { panic!() };
    let passed_on = query.forwarded(900).unwrap();
    let request = Request { transport: Transport::Datagram, bytes: &passed_on, ..request };
    let Resolution::Upstream(read) = sample(true).resolve(request, &mut vec![]) else { panic!() };
    assert_eq!((read.question(), read.limit), (query.question(), 900));
}

#[test]
fn an_answer_fits_what_the_asker_takes_and_rotates() {
    let names = sample(true);
    let sizes = [(None, 512), (Some(512), 512), (Some(1232), 1232), (Some(65_000), 1232)];
    for (edns, most) in sizes {
        let answer = names.ask_with("backend.shop.mesh.", RecordType::AAAA, edns, 0);
        assert!(answer.bytes.len() <= most && answer.bytes.len() > most - 40);
        assert!(answer.message.metadata.truncation);
        assert_eq!(answer.message.edns.is_some(), edns.is_some());
    }
    let bytes = ask("backend.shop.mesh.", RecordType::AAAA, None);
    let request = Request { asker: WEB_ASKS, transport: Transport::Stream, bytes: &bytes, turn: 3 };
    let mut out = vec![];
    names.resolve(request, &mut out);
    let whole = Message::from_vec(&out).unwrap();
    assert_eq!(whole.answers.len(), MAX_ADDRESSES);
    assert!(!whole.metadata.truncation);
    let first = |turn| names.ask_with("backend.shop.mesh.", RecordType::A, None, turn).addresses();
    assert_ne!(first(0)[0], first(1)[0]);
}

#[test]
fn a_question_comes_back_with_its_letters() {
    let answer = sample(true).ask("aPi.sHoP.mEsH.", RecordType::A);
    assert_eq!(answer.message.queries[0].name.to_ascii(), "aPi.sHoP.mEsH.");
    assert_eq!(answer.message.answers[0].name.to_ascii(), "aPi.sHoP.mEsH.");
    assert_eq!(answer.outcome, Outcome::Answered);
}

#[test]
fn what_is_no_plain_question_is_refused() {
    let names = sample(true);
    let good = ask("api.shop.mesh.", RecordType::A, Some(1232));
    let code = |change: &dyn Fn(&mut Vec<u8>)| {
        let (mut bytes, mut out) = (good.clone(), vec![]);
        change(&mut bytes);
        let request =
            Request { asker: WEB_ASKS, transport: Transport::Datagram, bytes: &bytes, turn: 0 };
        names.resolve(request, &mut out);
        Message::from_vec(&out).ok().map(|answer| answer.metadata.response_code)
    };
    assert_eq!(code(&|_| {}), Some(ResponseCode::NoError));
    assert_eq!(code(&|bytes| bytes[2] |= 0x80), None, "an answer is not answered");
    assert_eq!(code(&|bytes| bytes.truncate(11)), None);
    assert_eq!(code(&|bytes| bytes.truncate(20)), Some(ResponseCode::FormErr));
    assert_eq!(code(&|bytes| bytes[5] = 2), Some(ResponseCode::FormErr), "two questions");
    assert_eq!(code(&|bytes| bytes[7] = 1), Some(ResponseCode::FormErr), "with an answer");
    assert_eq!(code(&|bytes| bytes[2] |= 0x28), Some(ResponseCode::NotImp), "an update");
    let class = good.len() - 11 - 1;
    assert_eq!(code(&|bytes| bytes[class] = 3), Some(ResponseCode::Refused), "class CH");
    let version = good.len() - 5;
    let answer = code(&|bytes| bytes[version] = 1).unwrap();
    assert_eq!(u16::from(answer), u16::from(ResponseCode::BADVERS), "the code of RFC 6891");
}

#[test]
fn changes_take_effect_at_the_next_query() {
    let mut names = sample(false);
    let exists = |names: &Names, name: &str| names.ask(name, RecordType::A).outcome;
    names.apply(NameChange::PutIdentity { id: API, is_quarantined: true });
    assert_eq!(exists(&names, "api.shop.mesh."), Outcome::Hidden);
    assert_eq!(exists(&names, "backend.shop.mesh."), Outcome::Hidden);
    names.apply(NameChange::PutIdentity { id: API, is_quarantined: false });
    assert_eq!(exists(&names, "backend.shop.mesh."), Outcome::Answered);
    names.apply(NameChange::RemoveService("api".parse().unwrap()));
    assert_eq!(exists(&names, "api.shop.mesh."), Outcome::Unknown);
    let port = AclEntry { protocol: Protocol::Tcp, ports: PortRange { first: 1, last: 1 } };
    let acl = Acl::new(vec![]).with_forensics(vec![port]);
    names.apply(NameChange::PutLink { from: WEB, to: SECRET, acl });
    names.apply(workload(200, "vault", SECRET));
    assert_eq!(exists(&names, "vault.shop.mesh."), Outcome::Hidden);
    names.apply(NameChange::PutIdentity { id: SECRET, is_quarantined: true });
    assert_eq!(exists(&names, "vault.shop.mesh."), Outcome::Answered, "forensics reach it");
    names.apply(NameChange::RemoveWorkload("vault-200".parse().unwrap()));
    assert_eq!(exists(&names, "vault.shop.mesh."), Outcome::Unknown);
    names.apply(NameChange::RemoveLink { from: WEB, to: API });
    assert_eq!(exists(&names, "backend.shop.mesh."), Outcome::Hidden);
}

proptest! {
    /// An address is given if and only if it is reached, over random links and names.
    #[test]
    fn every_address_that_is_given_is_reached(
        links in prop::collection::vec((0_u32..5, 0_u32..5), 0..12),
        owners in prop::collection::vec((0_u32..5, 0_usize..4), 1..20),
        asker in 0_u32..5,
    ) {
        let mut names = Names::new(sample(false).network);
        let port = AclEntry { protocol: Protocol::Udp, ports: PortRange::ALL };
        for (from, to) in &links {
            let (from, to) = (IdentityId(*from), IdentityId(*to));
            names.apply(NameChange::PutLink { from, to, acl: Acl::new(vec![port]) });
        }
        for (number, (identity, name)) in owners.iter().enumerate() {
            names.apply(workload(number as u8 + 2, NAMES[*name], IdentityId(*identity)));
        }
        for (at, name) in NAMES.iter().enumerate() {
            let asker = Asker { identity: IdentityId(asker), address: address(1) };
            let asked = format!("{name}.shop.mesh.");
            let mut given = names.ask_as(asker, &asked, RecordType::A).addresses();
            let reached = owners.iter().enumerate().filter(|(_, (identity, own))| {
                *own == at && links.contains(&(asker.identity.0, *identity))
            });
            let mut reached: Vec<String> =
                reached.map(|(number, _)| address(number as u8 + 2).to_string()).collect();
            given.sort();
            reached.sort();
            prop_assert_eq!(given, reached);
        }
    }
}

struct Answered {
    outcome: Outcome,
    message: Message,
    bytes: Vec<u8>,
}

impl Answered {
    fn addresses(&self) -> Vec<String> {
        self.message.answers.iter().map(|record| record.data.to_string()).collect()
    }
}

impl Names {
    fn ask(&self, name: &str, record_type: RecordType) -> Answered {
        self.ask_with(name, record_type, None, 0)
    }

    fn ask_as(&self, asker: Asker, name: &str, record_type: RecordType) -> Answered {
        let bytes = ask(name, record_type, None);
        self.ask_request(Request { asker, transport: Transport::Datagram, bytes: &bytes, turn: 0 })
    }

    fn ask_with(
        &self,
        name: &str,
        record_type: RecordType,
        edns: Option<u16>,
        turn: u32,
    ) -> Answered {
        let bytes = ask(name, record_type, edns);
        let transport = Transport::Datagram;
        self.ask_request(Request { asker: WEB_ASKS, transport, bytes: &bytes, turn })
    }

    fn ask_request(&self, request: Request<'_>) -> Answered {
        let mut bytes = vec![];
        let Resolution::Answered(_, outcome) = self.resolve(request, &mut bytes) else {
            panic!("it is not answered")
        };
        Answered { outcome, message: Message::from_vec(&bytes).unwrap(), bytes }
    }
}
