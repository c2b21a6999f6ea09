//! The messages between a node and the coordinator, over QUIC with mutual TLS.
//!
//! A node opens one bidirectional stream, the *session*: [`FromNode`] one way, [`FromCoordinator`]
//! the other. The coordinator opens a stream of its own for each question: one [`Question`] and one
//! [`Answer`]. Joining uses another ALPN and no client certificate: one [`JoinRequest`], one
//! [`JoinReply`].
//!
//! Each message is a little-endian `u32` length and a postcard body: of at most [`MAX_FRAME`] bytes
//! from a node, and [`MAX_UPDATE`] from the coordinator, which is trusted. What a node has more of
//! than fits comes in parts.

use crate::{
    accept::AcceptFrom,
    acl::Acl,
    bounded::{as_printable, as_printable_if_any, at_most},
    keys::PublicKey,
    labels::Labels,
    measurement::{ImageSignature, Measurement, Sha256},
    names::{IdentityId, NetworkName, NodeName, Revision, WorkloadId, WorkloadName},
    ports::Protocol,
    relay::{RelayNumber, RelaySpec},
    view::{Change, Digest, Shadow},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// ALPN of the session.
pub const ALPN_SESSION: &[u8] = b"meshward-session/2";
/// ALPN of joining.
pub const ALPN_JOIN: &[u8] = b"meshward-join/2";
/// The most bytes of the body of a node's message.
pub const MAX_FRAME: usize = 1 << 20;
/// The most bytes of the body of a coordinator's message.
pub const MAX_UPDATE: usize = 64 << 20;
/// What a part of something longer has at most: bytes, and elements.
const PART_BYTES: usize = MAX_FRAME / 2;
const PART_ELEMENTS: usize = 4096;
/// The most elements of an answer that came in parts.
pub const MAX_ANSWER: usize = 1 << 18;
/// A node's clock and the coordinator's may differ by this much.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
/// The most bytes of the messages that come from a machine that has not joined yet.
pub const MAX_JOIN_FRAME: usize = 64 << 10;
/// The code of QUIC's close (RFC 9000 §19.19) that tells a member that it is none any more.
pub const CLOSE_REMOVED: u32 = 2;
/// The port on which the coordinator listens, QUIC over UDP and HTTPS over TCP, unless it is
/// configured otherwise.
pub const DEFAULT_PORT: u16 = 7443;

/// How long a node may take to say that it enforces a revision for which nobody waits: so what
/// churns costs half as many messages.
pub const ENFORCED_WITHIN: Duration = Duration::from_secs(10);

/// The DNS name in every coordinator's certificate: clients ask for it, whatever address they dial.
pub const COORDINATOR_NAME: &str = "coordinator.meshward.internal";

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// The length is over the limit.
    #[error("a message of {got} bytes came; at most {limit} are taken")]
    TooLong {
        /// The length that was announced, in bytes.
        got: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The body is no such message.
    #[error("a message cannot be decoded ({0}); do both sides run the same version?")]
    Malformed(#[from] postcard::Error),
}

/// Encodes a message with its length in front.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // Encoding plain data into memory has no way to fail.
    let mut frame = postcard::to_extend(message, vec![0; 4]).expect("messages encode into memory");
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Changes in their wire form: encoded once, however many nodes are told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChanges {
    count: usize,
    bytes: Arc<[u8]>,
}

impl EncodedChanges {
    /// Encodes changes.
    pub fn of(changes: &[Change]) -> Self {
        let bytes = changes.iter().fold(Vec::new(), |bytes, change| {
            // Encoding plain data into memory has no way to fail.
            postcard::to_extend(change, bytes).expect("changes encode into memory")
        });
        Self { count: changes.len(), bytes: bytes.into() }
    }

    /// How many changes these are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// The message [`FromCoordinator::Update`] of changes that are encoded already, with its length in
/// front.
pub fn encode_update(revision: Revision, parts: &[EncodedChanges], urgent: bool) -> Vec<u8> {
    // Which message it is, as postcard numbers an enum's variants; then its fields in their order,
    // a list with its length in front.
    const UPDATE: u32 = 1;
    let count: usize = parts.iter().map(EncodedChanges::count).sum();
    let length: usize = parts.iter().map(|part| part.bytes.len()).sum();
    let mut frame = Vec::with_capacity(length + 32);
    frame.extend([0; 4]);
    let mut frame =
        postcard::to_extend(&(UPDATE, revision, count), frame).expect("numbers encode into memory");
    parts.iter().for_each(|part| frame.extend_from_slice(&part.bytes));
    frame.push(urgent.into());
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Reads the length in front of a body.
pub fn body_length(head: [u8; 4], limit: usize) -> Result<usize, BadFrame> {
    let got = u32::from_le_bytes(head) as usize;
    if got > limit {
        return Err(BadFrame::TooLong { got, limit });
    }
    Ok(got)
}

/// Decodes a body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadFrame> {
    Ok(postcard::from_bytes(body)?)
}

/// The bytes that something takes in a message.
pub fn encoded_size(of: &impl Serialize) -> usize {
    // Counting the bytes of plain data has no way to fail.
    postcard::experimental::serialized_size(of).expect("plain data has a size")
}

/// Cuts a list into parts that fit into messages, in its order: none of them is longer than half of
/// a message may be, unless it has a single element. At least one part, if an empty one.
pub fn in_parts<T: Serialize>(all: impl IntoIterator<Item = T>) -> Vec<Vec<T>> {
    let (mut parts, mut part, mut bytes) = (vec![], vec![], 0);
    for element in all {
        let size = encoded_size(&element);
        if bytes + size > PART_BYTES || part.len() == PART_ELEMENTS {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.push(element);
    }
    if !part.is_empty() || parts.is_empty() {
        parts.push(part);
    }
    // A first element that is longer than a part finds an empty one before it.
    if parts.len() > 1 {
        parts.retain(|part| !part.is_empty());
    }
    parts
}

/// What tells one start of a node daemon from another: made at random at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub [u8; 16]);

/// What a machine is in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// It runs workloads.
    Node,
    /// It passes packets on between nodes that cannot reach each other.
    Relay,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Relay => "relay",
        })
    }
}

/// A machine asks to become a member.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// The name that it wants.
    pub name: NodeName,
    /// As what it joins.
    pub part: Part,
    /// Labels that the operator gives it.
    pub labels: Labels,
    /// A PKCS #10 request (DER) for its own key.
    pub csr: Vec<u8>,
    /// What its clock says, in seconds since the epoch.
    pub clock: i64,
    /// After how many seconds without being seen it is to be removed; `None`: as its token says.
    pub forget_after: Option<u64>,
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JoinReply {
    /// It is a member now.
    Accepted {
        /// Its certificate (DER).
        certificate: Vec<u8>,
        /// The mesh's id, as in the certificate's SPIFFE id.
        mesh: String,
        /// Its site, as its token says.
        site: Option<String>,
    },
    /// It is not, and this is why.
    Refused(String),
}

/// Where a node's endpoint of a network can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// The network.
    pub network: NetworkName,
    /// The endpoint's key.
    pub public_key: PublicKey,
    /// Its UDP port.
    pub port: u16,
    /// The addresses under which STUN servers see it.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SEEN>")]
    pub reflexive: Vec<SocketAddr>,
    /// Addresses that its operator says it can be reached at.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SEEN>")]
    pub advertised: Vec<SocketAddr>,
    /// The addresses of its interfaces; the coordinator adds the one that it sees.
    pub interfaces: Vec<SocketAddr>,
    /// The relays by which it can be reached, the nearest first.
    pub relays: Vec<RelayNumber>,
}

/// The most elements of one list of a report. What people can get wrong has lower limits, and a
/// sentence.
const MAX_LISTED: usize = 1024;
const MAX_SEEN: usize = 256;

impl WorkloadReport {
    /// The report, without those of its signatures with which it would be too long for a message.
    pub fn fitted(mut self) -> Self {
        while !self.signatures.is_empty() && encoded_size(&self) > PART_BYTES {
            self.signatures.pop();
        }
        self
    }
}

/// A workload that a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// Its id.
    pub id: WorkloadId,
    /// Its network.
    pub network: NetworkName,
    /// What people call it.
    pub name: WorkloadName,
    /// The labels that its owner declares.
    pub labels: Labels,
    /// Its addresses, out of the node's blocks.
    #[serde(deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub prefixes: Vec<IpNet>,
    /// Its WireGuard key, if it is a device.
    #[serde(default)]
    pub device: Option<PublicKey>,
    /// What its owner declares about who may reach it.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub accepts: Vec<AcceptFrom>,
    /// What its node has measured; nothing for a process that no container runtime runs.
    #[serde(default)]
    pub measurement: Option<Arc<Measurement>>,
    /// The signatures that were found of its images.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub signatures: Vec<(Sha256, Vec<ImageSignature>)>,
    /// Why it cannot be let in, whatever the network wants: what its node could not make sense of.
    #[serde(default, deserialize_with = "as_printable_if_any")]
    pub objection: Option<String>,
}

/// What a trigger has caught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    /// The network.
    pub network: NetworkName,
    /// The trigger.
    #[serde(deserialize_with = "as_printable")]
    pub trigger: String,
    /// The workload.
    pub workload: WorkloadId,
    /// Flows that were denied in the trigger's time.
    pub denied_flows: u32,
    /// To so many ports.
    pub distinct_ports: u32,
    /// And so many addresses.
    pub distinct_addresses: u32,
}

/// What a node says in its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromNode {
    /// First message: who the node is, and what view it has. [`Self::Has`] follows.
    Hello {
        /// The software's version.
        #[serde(deserialize_with = "as_printable")]
        version: String,
        /// The start of the daemon that speaks.
        instance: InstanceId,
        /// What its clock says, in seconds since the epoch.
        clock: i64,
        /// The revision of the view that it has.
        revision: Revision,
        /// The digest of that view.
        digest: Digest,
    },
    /// A part of what the node has. The parts together are all of it.
    Has {
        /// Endpoints.
        #[serde(deserialize_with = "at_most::<_, _, PART_ELEMENTS>")]
        endpoints: Vec<EndpointReport>,
        /// Workloads.
        #[serde(deserialize_with = "at_most::<_, _, PART_ELEMENTS>")]
        workloads: Vec<WorkloadReport>,
        /// Whether this is the last part.
        is_last: bool,
    },
    /// A part of the answer to [`FromCoordinator::Compare`].
    Shadow {
        /// Items and their hashes.
        part: Shadow,
        /// Whether this is the last part.
        is_last: bool,
    },
    /// An endpoint is new or has moved.
    Endpoint(EndpointReport),
    /// A workload has started.
    Started(WorkloadReport),
    /// A workload has stopped.
    Stopped(WorkloadId),
    /// The view of this revision is enforced, and on disk unless the node is degraded.
    Enforced(Revision),
    /// A workload of the node has done what a trigger waits for.
    Fired(Fired),
    /// The node calls a peer that it has no session with: the peer is to call back, so that NATs on
    /// both sides open.
    Call {
        /// The network.
        network: NetworkName,
        /// The peer.
        peer: NodeName,
    },
    /// The certificate is to be renewed.
    Renew {
        /// A PKCS #10 request (DER).
        csr: Vec<u8>,
    },
    /// What keeps the node from writing down what it has to, in words; nothing: all is well. It
    /// enforces all the same.
    Degraded(#[serde(deserialize_with = "as_printable_if_any")] Option<String>),
    /// The node leaves the mesh. The connection is closed with [`CLOSE_REMOVED`] once it is no
    /// member any more.
    Leave,
}

impl FromNode {
    /// What a node has, in parts.
    pub fn has(endpoints: Vec<EndpointReport>, workloads: Vec<WorkloadReport>) -> Vec<Self> {
        let endpoints = in_parts(endpoints).into_iter().map(|part| (part, vec![]));
        let workloads = in_parts(workloads.into_iter().map(WorkloadReport::fitted));
        let parts: Vec<_> =
            endpoints.chain(workloads.into_iter().map(|part| (vec![], part))).collect();
        let last = parts.len() - 1;
        let has =
            |(at, (endpoints, workloads))| Self::Has { endpoints, workloads, is_last: at == last };
        parts.into_iter().enumerate().map(has).collect()
    }

    /// What a view holds, in parts.
    pub fn shadow(shadow: Shadow) -> Vec<Self> {
        let parts = in_parts(shadow);
        let last = parts.len() - 1;
        let part = |(at, part): (usize, Vec<_>)| Self::Shadow {
            part: part.into_iter().collect(),
            is_last: at == last,
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

/// What the coordinator says in a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromCoordinator {
    /// The digests differ: say what you have.
    Compare,
    /// These changes lead to this revision.
    Update {
        /// The revision after the changes.
        revision: Revision,
        /// The changes.
        changes: Vec<Change>,
        /// Whether somebody may wait for it: then the node says at once that it enforces the
        /// revision, otherwise within [`ENFORCED_WITHIN`].
        urgent: bool,
    },
    /// A workload is not admitted: it stays closed.
    Refused {
        /// Which.
        workload: WorkloadId,
        /// Why, and how to mend it.
        reason: String,
    },
    /// The node is over a budget that the coordinator has for each node.
    OverBudget {
        /// Which, and what becomes of it.
        budget: String,
    },
    /// Another machine with the same identity has the session: this one is to wait.
    Held {
        /// Why, and how to mend it.
        reason: String,
    },
    /// A peer calls: the node is to call back.
    Called {
        /// The network.
        network: NetworkName,
        /// The peer.
        peer: NodeName,
    },
    /// The renewed certificate (DER).
    Renewed {
        /// The certificate.
        certificate: Vec<u8>,
    },
    /// These are the relays, apart from the coordinator.
    Relays(Vec<RelaySpec>),
    /// Endpoints are to get other keys: those of these networks, or all.
    RotateKeys {
        /// The networks; none: all.
        networks: Vec<NetworkName>,
        /// How long the keys of before are good, in seconds.
        keep_old_seconds: u64,
    },
    /// An endpoint is not taken as it was reported: its key belongs to somebody else. What was
    /// known of it stays.
    RefusedEndpoint {
        /// The network.
        network: NetworkName,
        /// Why, and how to mend it.
        reason: String,
    },
}

/// What the coordinator asks of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// Whether the node is there.
    Alive,
    /// The counters of every link since the daemon started.
    Links,
    /// How many live flows these links would cut, were they like this.
    Cuts(NetworkName, Vec<(IdentityId, IdentityId, Acl)>),
    /// The flows that were begun or tried in the last so many seconds.
    Flows(NetworkName, u64),
    /// To take a device in.
    AddDevice(DeviceOrder),
    /// To turn a device away.
    RemoveDevice(WorkloadId),
}

/// A machine with a stock WireGuard that is to join by a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceOrder {
    /// The network.
    pub network: NetworkName,
    /// What people call it.
    pub name: WorkloadName,
    /// Its labels.
    pub labels: Labels,
    /// Its key.
    pub public_key: PublicKey,
}

/// What a device has to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceAnswer {
    /// The workload that it is.
    pub id: WorkloadId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The key of the node's endpoint, for devices.
    pub public_key: PublicKey,
    /// What it reaches by the node.
    pub prefixes: Vec<IpNet>,
    /// MTU of its interface, in bytes.
    pub mtu: u16,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Alive`].
    Alive,
    /// To [`Question::Links`].
    Links(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<LinkCount>),
    /// To [`Question::Cuts`]: by the workload of the node that began them.
    Cuts(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<(WorkloadId, u64)>),
    /// To [`Question::Flows`].
    Flows(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<FlowSeen>),
    /// To [`Question::AddDevice`], or why not.
    Device(Result<DeviceAnswer, String>),
    /// To [`Question::RemoveDevice`], or why not.
    Removed(Result<(), String>),
}

impl Answer {
    /// The answer in parts, of which each fits into a message.
    pub fn parts(self) -> Vec<Self> {
        match self {
            Self::Links(all) => in_parts(all).into_iter().map(Self::Links).collect(),
            Self::Cuts(all) => in_parts(all).into_iter().map(Self::Cuts).collect(),
            Self::Flows(all) => in_parts(all).into_iter().map(Self::Flows).collect(),
            other => vec![other],
        }
    }

    /// Adds a further part. `false`: it is none, or there is too much already.
    pub fn add(&mut self, part: Self) -> bool {
        fn join<T>(all: &mut Vec<T>, part: Vec<T>) -> bool {
            let fits = all.len() + part.len() <= MAX_ANSWER;
            if fits {
                all.extend(part);
            }
            fits
        }
        match (self, part) {
            (Self::Links(all), Self::Links(part)) => join(all, part),
            (Self::Cuts(all), Self::Cuts(part)) => join(all, part),
            (Self::Flows(all), Self::Flows(part)) => join(all, part),
            _ => false,
        }
    }
}

/// Flows of one kind that a workload of the node has begun, or tried to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSeen {
    /// Who began them.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// What.
    pub protocol: Protocol,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
    /// Whether they passed.
    pub passed: bool,
}

/// What passed a link, or was denied. A packet that passes is counted once in the mesh, by the node
/// of the workload that sent it; one that is denied, by the node that denied it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets that passed, both directions.
    pub packets: u64,
    /// Bytes that passed, IP headers included.
    pub bytes: u64,
    /// Packets that were denied.
    pub denied: u64,
    /// Packets that passed and would have been denied, were it not for observing.
    pub observed: u64,
}

/// The counters of one ordered pair of identities on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCount {
    /// The network.
    pub network: NetworkName,
    /// Who began the flows.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// The counters.
    pub count: Count,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_frame() {
        let frame = encode(&FromNode::Enforced(Revision(7)));
        let length = body_length(frame[..4].try_into().unwrap(), MAX_FRAME).unwrap();
        assert_eq!(length, frame.len() - 4);
        assert!(matches!(decode(&frame[4..]), Ok(FromNode::Enforced(Revision(7)))));
    }

    #[test]
    fn an_update_of_encoded_changes_is_the_same_message() {
        let change = |at: u32| Change::Forget("shop".parse().unwrap(), crate::IdentityId(at));
        let parts: Vec<Vec<Change>> =
            vec![vec![], vec![change(1), change(300)], vec![change(7); 200]];
        let encoded: Vec<EncodedChanges> =
            parts.iter().map(|part| EncodedChanges::of(part)).collect();
        for (revision, urgent) in [(Revision(0), true), (Revision(1 << 40), false)] {
            let whole = FromCoordinator::Update { revision, changes: parts.concat(), urgent };
            assert_eq!(encode_update(revision, &encoded, urgent), encode(&whole));
        }
    }

    #[test]
    fn what_a_node_has_comes_whole_in_parts_that_fit() {
        let report = |at: u32| WorkloadReport {
            id: format!("w-{at}").parse().unwrap(),
            network: "shop".parse().unwrap(),
            name: "web".parse().unwrap(),
            labels: Labels::default(),
            addresses: vec!["10.42.0.1".parse().unwrap()],
            prefixes: vec![],
            device: None,
            accepts: vec![],
            measurement: None,
            signatures: vec![],
            objection: Some("x".repeat(1000)),
        };
        for count in [0, 1, 600, 5000] {
            let all: Vec<WorkloadReport> = (0..count).map(report).collect();
            let parts = FromNode::has(vec![], all.clone());
            let mut came = vec![];
            for (at, part) in parts.iter().enumerate() {
                let frame = encode(part);
                assert!(frame.len() <= MAX_FRAME);
                let FromNode::Has { workloads, is_last, .. } = decode(&frame[4..]).unwrap() else {
                    panic!()
                };
                assert_eq!(is_last, at + 1 == parts.len());
                came.extend(workloads);
            }
            assert_eq!(came, all);
        }
        let empty = FromNode::shadow(Shadow::new());
        assert!(matches!(&empty[..], [FromNode::Shadow { is_last: true, .. }]));
    }

    #[test]
    fn an_oversized_or_malformed_message_is_refused() {
        assert!(body_length(u32::MAX.to_le_bytes(), MAX_FRAME).is_err());
        assert!(decode::<FromNode>(&[250, 1, 2]).is_err());
    }
}
