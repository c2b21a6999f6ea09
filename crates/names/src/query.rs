//! Reading queries: RFC 1035, EDNS (RFC 6891).

use hickory_proto::{
    ProtoError,
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{DNSClass, RecordType},
};
use meshward_types::dns::DomainName;

/// The longest query that is read, in bytes: a name has at most 255, and padding (RFC 8467) makes
/// queries a multiple of 128 bytes.
const MAX_QUERY: usize = 4096;
/// Records beside the question at the most: an OPT record, and a signature of the transaction.
const MAX_ADDITIONALS: u16 = 4;
/// The header's length.
pub(crate) const HEADER: usize = 12;
/// The longest answer in a datagram without EDNS (RFC 1035 §4.2.1).
const PLAIN_DATAGRAM: u16 = 512;
/// The longest answer in a datagram: it fits a packet of 1,280 bytes, the least MTU of IPv6, so it
/// is never fragmented (the DNS flag day of 2020).
pub(crate) const MAX_DATAGRAM: u16 = 1232;

/// The transport of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP: an answer has at most as many bytes as the asker takes.
    Datagram,
    /// TCP: an answer has at most 65,535 bytes.
    Stream,
}

/// The record type of a query, as metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueryKind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// The ports of a service.
    Srv,
    /// The name of an address.
    Ptr,
    /// Any other type, or a query that cannot be read.
    Other,
}

impl QueryKind {
    /// Every kind with its name in metrics.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::A, "a"),
        (Self::Aaaa, "aaaa"),
        (Self::Srv, "srv"),
        (Self::Ptr, "ptr"),
        (Self::Other, "other"),
    ];

    pub(crate) fn of(record_type: RecordType) -> Self {
        match record_type {
            RecordType::A => Self::A,
            RecordType::AAAA => Self::Aaaa,
            RecordType::SRV => Self::Srv,
            RecordType::PTR => Self::Ptr,
            _ => Self::Other,
        }
    }
}

/// A query that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) question: Option<Question>,
    /// `true` if the asker has sent an OPT record, and so gets one.
    pub(crate) has_edns: bool,
    /// The longest answer, in bytes.
    pub(crate) limit: u16,
}

/// A message that gets no answer with records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unanswerable {
    /// Not even a query: nothing is sent back.
    Ignored,
    /// The sender gets this code.
    Error(Query, ResponseCode),
}

impl Query {
    /// Reads a query.
    pub(crate) fn read(bytes: &[u8], transport: Transport) -> Result<Self, Unanswerable> {
        let header = Header::read(bytes).ok_or(Unanswerable::Ignored)?;
        let bare = header.query(transport);
        let malformed = |query| Err(Unanswerable::Error(query, ResponseCode::FormErr));
        if header.op_code != OpCode::Query {
            return Err(Unanswerable::Error(bare, ResponseCode::NotImp));
        }
        if bytes.len() > MAX_QUERY || !header.is_plain_question() {
            return malformed(bare);
        }
        let Ok(mut message) = Message::from_vec(bytes) else { return malformed(bare) };
        let mut query = Self { question: message.queries.pop(), ..bare };
        if let Some(edns) = &message.edns {
            query.has_edns = true;
            query.limit = limit(transport, edns);
            if edns.version() > 0 {
                return Err(Unanswerable::Error(query, ResponseCode::BADVERS));
            }
        }
        match &query.question {
            Some(question) if question.query_class != DNSClass::IN || is_meta(question) => {
                Err(Unanswerable::Error(query, ResponseCode::Refused))
            }
            Some(_) => Ok(query),
            None => malformed(query),
        }
    }

    /// Returns the message with which another node is asked. `limit`: the longest answer, in bytes.
    ///
    /// # Errors
    /// Fails if the question cannot be written.
    pub fn forwarded(&self, limit: u16) -> Result<Vec<u8>, ProtoError> {
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.extend(self.question.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(limit);
        message.edns = Some(edns);
        message.to_vec()
    }

    /// Returns the question's name, if addresses are asked for that may be outside of the mesh.
    pub fn domain_name(&self) -> Option<DomainName> {
        let question = self
            .question
            .as_ref()
            .filter(|question| matches!(question.query_type, RecordType::A | RecordType::AAAA))?;
        question.name.to_ascii().parse().ok()
    }

    /// Returns the question.
    pub fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// Returns the kind of its record type.
    pub fn kind(&self) -> QueryKind {
        self.question.as_ref().map_or(QueryKind::Other, |own| QueryKind::of(own.query_type))
    }
}

/// Returns the longest answer that an asker takes.
fn limit(transport: Transport, edns: &Edns) -> u16 {
    match transport {
        Transport::Datagram => edns.max_payload().clamp(PLAIN_DATAGRAM, MAX_DATAGRAM),
        Transport::Stream => u16::MAX,
    }
}

/// Returns whether a question asks for no records: a transfer of a zone, or a type that stands for
/// something else (RFC 6895 §3.1).
fn is_meta(question: &Question) -> bool {
    let number = u16::from(question.query_type);
    matches!(question.query_type, RecordType::OPT) || number == 0 || (128..=254).contains(&number)
}

/// The header of a message, as far as it decides whether the rest is read.
struct Header {
    id: u16,
    op_code: OpCode,
    recursion_desired: bool,
    checking_disabled: bool,
    /// Questions, answers, authorities, additional records.
    counts: [u16; 4],
}

impl Header {
    /// Reads the header of a query; `None` for anything else.
    fn read(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = word(2);
        let message_type =
            if flags & 0x8000 == 0 { MessageType::Query } else { MessageType::Response };
        (message_type == MessageType::Query).then(|| Self {
            id: word(0),
            op_code: OpCode::from_u8((flags >> 11) as u8 & 15),
            recursion_desired: flags & 0x100 != 0,
            checking_disabled: flags & 0x10 != 0,
            counts: [word(4), word(6), word(8), word(10)],
        })
    }

    /// Returns whether the counts are those of a question, so that reading the rest is bounded.
    fn is_plain_question(&self) -> bool {
        let [questions, answers, authorities, additionals] = self.counts;
        questions == 1 && answers == 0 && authorities == 0 && additionals <= MAX_ADDITIONALS
    }

    /// Returns the query, of which only the header has been read.
    fn query(&self, transport: Transport) -> Query {
        let limit = match transport {
            Transport::Datagram => PLAIN_DATAGRAM,
            Transport::Stream => u16::MAX,
        };
        let Self { id, recursion_desired, checking_disabled, .. } = *self;
        Query { id, recursion_desired, checking_disabled, question: None, has_edns: false, limit }
    }
}
