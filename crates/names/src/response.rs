//! Writing answers: the question as it was asked (the case of its letters included), EDNS, and
//! truncation (RFC 1035, RFC 2181 §9, RFC 6891).

use crate::query::{HEADER, MAX_DATAGRAM, Query};
use hickory_proto::{
    ProtoError,
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        RData, Record,
        rdata::{A, AAAA, CNAME},
    },
    serialize::binary::{BinEncodable, BinEncoder},
};
use std::net::IpAddr;

/// The shortest question, in bytes: the name of the root, a type and a class. Records are longer.
const SHORTEST_ENTRY: usize = 5;

/// The sections of an answer.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// The author of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authority {
    /// The node itself, for its zone.
    Own,
    /// An upstream resolver, or nobody.
    Other,
}

/// An answer of an upstream resolver.
#[derive(Debug, Default)]
pub struct UpstreamAnswer {
    /// The code; [`ResponseCode::ServFail`] if there was no answer.
    pub code: ResponseCode,
    /// The records of the answer section.
    pub answers: Vec<Record>,
    /// The records of the authority section: a negative answer's SOA.
    pub authorities: Vec<Record>,
}

impl UpstreamAnswer {
    /// Reads the answer of another node to a query; `None` if it is none.
    pub fn read(bytes: &[u8], query: &Query) -> Option<Self> {
        // What the header says is there decides how much room is made for it.
        let counts = bytes.get(4..HEADER)?.chunks_exact(2);
        let count: usize =
            counts.map(|own| usize::from(u16::from_be_bytes([own[0], own[1]]))).sum();
        if count > bytes.len() / SHORTEST_ENTRY {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let is_answer = message.metadata.message_type == MessageType::Response
            && message.queries.as_slice() == query.question.as_slice();
        is_answer.then_some(Self {
            code: message.metadata.response_code,
            answers: message.answers,
            authorities: message.authorities,
        })
    }

    /// Returns the answer without the names that it leads through: the addresses of the type that
    /// was asked for, at the end of the chain from the question, as records of the question's name.
    #[must_use]
    pub fn flattened(self, query: &Query) -> Self {
        let Some(question) = &query.question else { return self };
        let mut chain = vec![&question.name];
        for record in &self.answers {
            if let RData::CNAME(CNAME(next)) = &record.data
                && chain.contains(&&record.name)
                && !chain.contains(&next)
            {
                chain.push(next);
            }
        }
        let is_asked_for = |record: &&Record| {
            record.record_type() == question.query_type && chain.contains(&&record.name)
        };
        let least = self.answers.iter().map(|record| record.ttl).min().unwrap_or_default();
        let of_question =
            |record: &Record| Record::from_rdata(question.name.clone(), least, record.data.clone());
        let answers = self.answers.iter().filter(is_asked_for).map(of_question).collect();
        Self { answers, ..self }
    }

    /// Returns the addresses in the answer, each with its time to live in seconds.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.answers.iter().filter_map(|record| match record.data {
            RData::A(A(address)) => Some((address.into(), record.ttl)),
            RData::AAAA(AAAA(address)) => Some((address.into(), record.ttl)),
            _ => None,
        })
    }
}

impl Query {
    /// Writes an upstream resolver's answer to the query, as long as the asker takes it.
    pub fn write_upstream_answer(&self, upstream: UpstreamAnswer, out: &mut Vec<u8>) {
        let UpstreamAnswer { code, mut answers, authorities } = upstream;
        // The names of records have the letters of the question, whoever has asked for them first.
        if let Some(question) = &self.question {
            let own = answers.iter_mut().filter(|record| record.name == question.name);
            own.for_each(|record| record.name = question.name.clone());
        }
        let sections = Sections { answers, authorities, additionals: vec![] };
        self.write(Authority::Other, code, sections, out);
    }

    /// Writes an answer that has a code only.
    pub fn write_code(&self, code: ResponseCode, out: &mut Vec<u8>) {
        self.write(Authority::Other, code, Sections::default(), out);
    }

    /// Writes an answer, as long as the asker takes it: additional records are left out first; then
    /// records of the answer, and the asker is told to ask by TCP. What fits is there all the same:
    /// older versions of musl ask no more.
    pub(crate) fn write(
        &self,
        authority: Authority,
        code: ResponseCode,
        sections: Sections,
        out: &mut Vec<u8>,
    ) {
        let mut message = self.message(authority, code);
        message.answers = sections.answers;
        message.authorities = sections.authorities;
        message.additionals = sections.additionals;
        let written = self.emit(&mut message, out);
        if written.is_err() {
            // A record that cannot be written was read from an upstream.
            let mut failure = self.message(Authority::Other, ResponseCode::ServFail);
            if emit(&failure, out).is_err() {
                failure.queries.clear();
                let _ = emit(&failure, out);
            }
        }
    }

    fn emit(&self, message: &mut Message, out: &mut Vec<u8>) -> Result<(), ProtoError> {
        let limit = usize::from(self.limit);
        emit(message, out)?;
        if out.len() <= limit {
            return Ok(());
        }
        message.additionals.clear();
        emit(message, out)?;
        if out.len() <= limit {
            return Ok(());
        }
        message.metadata.truncation = true;
        let (all, whole) = (std::mem::take(&mut message.answers), out.len());
        emit(message, out)?;
        if out.len() > limit {
            message.authorities.clear();
            emit(message, out)?;
        }
        let room = limit.saturating_sub(out.len());
        let each = (whole - out.len()).div_ceil(all.len().max(1)).max(1);
        let empty = out.len();
        message.answers = all;
        message.answers.truncate(room / each);
        emit(message, out)?;
        if out.len() > limit {
            // The records differ in length, and the first are the longest.
            message.answers.clear();
            emit(message, out)?;
        }
        debug_assert!(out.len() <= limit.max(empty));
        Ok(())
    }

    fn message(&self, authority: Authority, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = authority == Authority::Own;
        message.metadata.response_code = code;
        message.queries.extend(self.question.clone());
        message.edns = self.has_edns.then(|| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DATAGRAM);
            edns
        });
        message
    }
}

fn emit(message: &Message, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    out.clear();
    message.emit(&mut BinEncoder::new(out))
}
