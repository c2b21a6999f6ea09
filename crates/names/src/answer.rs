//! Answers to queries, by what the asker reaches (RFC 1034 §4.3.2, RFC 2308, RFC 2782).

use crate::{
    address::ReverseName,
    entry::{Asker, NamedService},
    query::{Query, QueryKind, Transport, Unanswerable},
    response::{Authority, Sections},
    table::{AddressHolder, Host, Names},
};
use hickory_proto::{
    op::{Query as Question, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{NS, PTR, SOA, SRV},
    },
};
use ipnet::IpNet;
use meshward_types::{IdentityId, Protocol, ServicePort};
use std::net::IpAddr;

/// The time to live of every answer, positive or negative, in seconds.
pub const TTL: u32 = 5;
/// Addresses in an answer at the most. If a name has more, each answer has the next ones.
pub const MAX_ADDRESSES: usize = 64;

/// A query as it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The sender.
    pub asker: Asker,
    /// The transport.
    pub transport: Transport,
    /// The bytes of the message.
    pub bytes: &'a [u8],
    /// A number that is another one for each query: the order of addresses rotates by it.
    pub turn: u32,
}

/// The outcome of a query, as metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It has records.
    Answered,
    /// The name exists, and has no record of this type.
    NoData,
    /// The name does not exist.
    Unknown,
    /// The name exists, and the asker reaches nothing that has it: it does not exist for it.
    Hidden,
    /// It is of a kind that is not answered.
    Refused,
    /// It cannot be read.
    Malformed,
}

/// The resolution of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// There is an answer.
    Answered(QueryKind, Outcome),
    /// The name is not of the mesh: an upstream resolver is to be asked.
    Upstream(Query),
    /// The message is no query; nothing is sent back.
    Ignored,
}

/// The answer of the node itself.
struct Answer {
    outcome: Outcome,
    sections: Sections,
    /// The zone that answers; `None`: the mesh's.
    zone: Option<Name>,
}

/// The domain that a queried name belongs to.
enum Domain {
    /// The zone, with the labels before it.
    Zone(Vec<String>),
    /// The addresses of a prefix.
    Reverse(ReverseName, IpNet),
    Outside,
}

/// A holder of a name that the asker reaches.
#[derive(Clone, Copy)]
enum Visible<'a> {
    Service(&'a NamedService),
    Workloads(&'a Host),
}

impl Names {
    /// Resolves a query. Writes the answer, if there is one, into `out`.
    pub fn resolve(&self, request: Request<'_>, out: &mut Vec<u8>) -> Resolution {
        let query = match Query::read(request.bytes, request.transport) {
            Ok(query) => query,
            Err(Unanswerable::Ignored) => return Resolution::Ignored,
            Err(Unanswerable::Error(query, code)) => {
                query.write_code(code, out);
                let outcome = match code {
                    ResponseCode::FormErr => Outcome::Malformed,
                    _ => Outcome::Refused,
                };
                return Resolution::Answered(query.kind(), outcome);
            }
        };
        let Some(question) = &query.question else { return Resolution::Ignored };
        let answer = match self.domain_of(&question.name) {
            Domain::Zone(labels) => self.answer_in_zone(&labels, question, request),
            Domain::Reverse(name, prefix) => {
                self.answer_reverse(name, prefix, question, request.asker)
            }
            // The node cannot give all that others know about a name (RFC 8482 §4.3).
            Domain::Outside if question.query_type == RecordType::ANY => {
                query.write_code(ResponseCode::NotImp, out);
                return Resolution::Answered(query.kind(), Outcome::Refused);
            }
            Domain::Outside => return Resolution::Upstream(query),
        };
        self.write(&query, answer, out)
    }

    fn write(&self, query: &Query, answer: Answer, out: &mut Vec<u8>) -> Resolution {
        let Answer { outcome, mut sections, zone } = answer;
        let code = match outcome {
            Outcome::Unknown | Outcome::Hidden => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        };
        if outcome != Outcome::Answered {
            let zone = zone.unwrap_or_else(|| self.apex().clone());
            sections.authorities.push(record(&zone, RData::SOA(self.soa())));
        }
        query.write(Authority::Own, code, sections, out);
        Resolution::Answered(query.kind(), outcome)
    }

    fn apex(&self) -> &Name {
        self.network.zone.apex()
    }

    /// Returns the domain that a name belongs to.
    fn domain_of(&self, name: &Name) -> Domain {
        let apex = self.apex();
        let before = usize::from(name.num_labels()).checked_sub(apex.num_labels().into());
        if let Some(before) = before
            && name.iter().skip(before).zip(apex.iter()).all(|(a, b)| a.eq_ignore_ascii_case(b))
        {
            let label = |label: &[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
            return Domain::Zone(name.iter().take(before).map(label).collect());
        }
        let reverse = ReverseName::read(name).and_then(|reverse| {
            let prefix = self.network.prefixes.iter().find(|prefix| prefix.contains(&reverse.net));
            Some(Domain::Reverse(reverse, *prefix?))
        });
        reverse.unwrap_or(Domain::Outside)
    }

    fn answer_in_zone(
        &self,
        labels: &[String],
        question: &Question,
        request: Request<'_>,
    ) -> Answer {
        let Some((network, before)) = labels.split_last() else {
            return self.answer_apex(question);
        };
        if network != self.network.network.as_str() {
            return Answer::without_records(Outcome::Unknown);
        }
        match before {
            [] => Answer::without_records(Outcome::NoData),
            [host] => match self.visible(request.asker, host) {
                Ok(visible) => self.answer_host(visible, question, request),
                Err(outcome) => Answer::without_records(outcome),
            },
            [protocol, host] if read_protocol(protocol).is_some() => {
                match self.visible(request.asker, host) {
                    Ok(_) => Answer::without_records(Outcome::NoData),
                    Err(outcome) => Answer::without_records(outcome),
                }
            }
            [port, protocol, host] => match (read_port(port), read_protocol(protocol)) {
                (Some(port), Some(protocol)) => match self.visible(request.asker, host) {
                    Ok(visible) => self.answer_port(visible, (protocol, port), question, request),
                    Err(outcome) => Answer::without_records(outcome),
                },
                _ => Answer::without_records(Outcome::Unknown),
            },
            _ => Answer::without_records(Outcome::Unknown),
        }
    }

    /// Answers a query for the zone itself: it has the resolver's addresses and is its own name
    /// server, so that no name of a network is taken up.
    fn answer_apex(&self, question: &Question) -> Answer {
        let resolver = |record_type| {
            let own = self.network.resolver.iter().filter(move |ip| is_of(**ip, record_type));
            own.map(|ip| record(&question.name, RData::from(*ip)))
        };
        let mut sections = Sections::default();
        match question.query_type {
            RecordType::SOA => {
                sections.answers.push(record(&question.name, RData::SOA(self.soa())));
            }
            RecordType::NS => {
                sections.answers.push(record(&question.name, RData::NS(NS(question.name.clone()))));
                sections.additionals.extend(resolver(RecordType::ANY));
            }
            other => sections.answers.extend(resolver(other)),
        }
        Answer::with(sections)
    }

    /// Finds what has a name, if the asker reaches it.
    fn visible(&self, asker: Asker, host: &str) -> Result<Visible<'_>, Outcome> {
        let host = self.hosts.get(host).ok_or(Outcome::Unknown)?;
        let (visible, is_reached) = match &host.service {
            Some(service) => {
                let mut identities = service.identities.iter();
                let reaches = |id: &IdentityId| self.reach.reaches_identity(asker, *id);
                (Visible::Service(service), identities.any(reaches))
            }
            None => {
                let mut own = host.workloads.iter();
                let reaches = own.any(|own| self.reach.reaches(asker, &own.workload));
                (Visible::Workloads(host), reaches)
            }
        };
        if is_reached { Ok(visible) } else { Err(Outcome::Hidden) }
    }

    fn answer_host(
        &self,
        visible: Visible<'_>,
        question: &Question,
        request: Request<'_>,
    ) -> Answer {
        let mut sections = Sections::default();
        if let (RecordType::SRV, Visible::Service(service)) = (question.query_type, visible) {
            let asker = request.asker;
            let ports =
                service.ports.iter().filter(|port| self.reaches_port(asker, service, **port));
            let srv = |port: &ServicePort| srv(&question.name, port.port, question.name.clone());
            sections.answers.extend(ports.map(srv));
            sections.additionals =
                self.addresses(visible, RecordType::ANY, &question.name, request);
        } else {
            sections.answers =
                self.addresses(visible, question.query_type, &question.name, request);
        }
        Answer::with(sections)
    }

    /// Answers a query for a port of a protocol of what has a name (RFC 2782).
    fn answer_port(
        &self,
        visible: Visible<'_>,
        (protocol, port): (Protocol, u16),
        question: &Question,
        request: Request<'_>,
    ) -> Answer {
        let asker = request.asker;
        let is_reached = match visible {
            Visible::Service(service) => service.ports.iter().any(|own| {
                (own.protocol, own.port) == (protocol, port)
                    && self.reaches_port(asker, service, *own)
            }),
            Visible::Workloads(host) => host
                .workloads
                .iter()
                .any(|own| self.reach.reaches_port(asker, &own.workload, (protocol, port))),
        };
        if !is_reached {
            return Answer::without_records(Outcome::Unknown);
        }
        let mut sections = Sections::default();
        if matches!(question.query_type, RecordType::SRV | RecordType::ANY) {
            let host = question.name.trim_to(usize::from(question.name.num_labels()) - 2);
            sections.answers.push(srv(&question.name, port, host.clone()));
            sections.additionals = self.addresses(visible, RecordType::ANY, &host, request);
        }
        Answer::with(sections)
    }

    fn reaches_port(&self, asker: Asker, service: &NamedService, port: ServicePort) -> bool {
        let mut identities = service.identities.iter();
        let target = (port.protocol, port.target);
        identities.any(|identity| self.reach.reaches_port_of(asker, *identity, target))
    }

    /// Returns the addresses of what has a name, in an order that changes from query to query.
    fn addresses(
        &self,
        visible: Visible<'_>,
        record_type: RecordType,
        name: &Name,
        Request { asker, turn, .. }: Request<'_>,
    ) -> Vec<Record> {
        if !matches!(record_type, RecordType::A | RecordType::AAAA | RecordType::ANY) {
            return vec![];
        }
        let wanted = |ip: &&IpAddr| is_of(**ip, record_type);
        let record = |ip: &IpAddr| record(name, RData::from(*ip));
        match visible {
            Visible::Service(service) => {
                service.addresses.iter().filter(wanted).map(record).collect()
            }
            Visible::Workloads(host) => {
                let all = &host.workloads;
                let (later, first) = all.split_at(turn as usize % all.len().max(1));
                let in_turn = first.iter().chain(later);
                let reached = in_turn.filter(|own| self.reach.reaches(asker, &own.workload));
                let addresses = reached.flat_map(|own| own.workload.addresses.iter());
                addresses.filter(wanted).map(record).take(MAX_ADDRESSES).collect()
            }
        }
    }

    /// Answers a query for the name of an address.
    fn answer_reverse(
        &self,
        reverse: ReverseName,
        prefix: IpNet,
        question: &Question,
        asker: Asker,
    ) -> Answer {
        let zone = Some(reverse.zone_in(prefix));
        let without = |outcome| Answer { zone: zone.clone(), ..Answer::without_records(outcome) };
        if reverse.is_below {
            return without(Outcome::Unknown);
        }
        if reverse.net.prefix_len() < reverse.net.max_prefix_len() {
            return without(Outcome::NoData);
        }
        match self.name_of(reverse.net.addr(), asker) {
            Ok(_) if !matches!(question.query_type, RecordType::PTR | RecordType::ANY) => {
                without(Outcome::NoData)
            }
            Ok(name) => {
                let answers = vec![record(&question.name, RData::PTR(PTR(name)))];
                Answer::with(Sections { answers, ..Sections::default() })
            }
            Err(outcome) => without(outcome),
        }
    }

    fn name_of(&self, address: IpAddr, asker: Asker) -> Result<Name, Outcome> {
        if self.network.resolver.contains(&address) {
            return Ok(self.apex().clone());
        }
        let host = match self.addresses.get(&address).ok_or(Outcome::Unknown)? {
            AddressHolder::Service(name) => {
                self.visible(asker, name)?;
                &**name
            }
            AddressHolder::Workload(own) => {
                let name = own.workload.name.as_ref().ok_or(Outcome::Unknown)?;
                if !self.reach.reaches(asker, &own.workload) {
                    return Err(Outcome::Hidden);
                }
                name.as_str()
            }
        };
        let labels = [host, self.network.network.as_str()];
        let name = Name::from_labels(labels).and_then(|name| name.append_domain(self.apex()));
        name.map_err(|_| Outcome::Unknown)
    }

    /// Returns the start of authority. Its last field is how long a negative answer is good for
    /// (RFC 2308 §4); nobody transfers the zone.
    fn soa(&self) -> SOA {
        let apex = self.apex();
        let contact = apex.prepend_label("hostmaster").unwrap_or_else(|_| apex.clone());
        SOA::new(apex.clone(), contact, self.serial, 3600, 600, 86_400, TTL)
    }
}

impl Answer {
    fn without_records(outcome: Outcome) -> Self {
        Self { outcome, sections: Sections::default(), zone: None }
    }

    /// An answer with records of a name that exists: if there are none, it has no data.
    fn with(sections: Sections) -> Self {
        if sections.answers.is_empty() {
            return Self::without_records(Outcome::NoData);
        }
        Self { outcome: Outcome::Answered, sections, zone: None }
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn srv(name: &Name, port: u16, target: Name) -> Record {
    record(name, RData::SRV(SRV::new(0, 0, port, target)))
}

fn is_of(address: IpAddr, record_type: RecordType) -> bool {
    match record_type {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    }
}

/// Reads a port's label: `_80`.
fn read_port(label: &str) -> Option<u16> {
    label.strip_prefix('_')?.parse().ok()
}

/// Reads a protocol's label: `_tcp`.
fn read_protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
