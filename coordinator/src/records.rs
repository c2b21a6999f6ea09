//! What the coordinator keeps. Everything that it knows follows from these records.

use ipnet::IpNet;
use meshward_api_types::{Network, Quarantine, Role};
use meshward_control_proto::WorkloadReport;
use meshward_policy::{Links, Policy, PolicyStep};
use meshward_types::{
    AcceptFrom, IdentityId, Labels, NetworkName, NodeName, PolicyFile, PublicKey, WorkloadId,
    WorkloadName,
    measurement::{ImageSignature, Measurement, Sha256},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: NodeName,
    pub site: Option<String>,
    pub labels: Labels,
    /// The networks that its token allowed; empty: all.
    pub networks: Vec<NetworkName>,
    /// SHA-256 of the public key in its certificate, hexadecimal: an older node of the same name is
    /// another one.
    pub key: String,
    pub endpoints: BTreeMap<NetworkName, EndpointRecord>,
    pub blocks: BTreeMap<NetworkName, Vec<IpNet>>,
    /// Why it has no block of a network that it should serve.
    pub problems: BTreeMap<NetworkName, String>,
    /// Whether it serves no network before it is approved.
    #[serde(default)]
    pub waiting: bool,
    /// After how many seconds without being seen it is removed.
    #[serde(default)]
    pub forget_after: Option<u64>,
}

impl NodeRecord {
    pub fn may_serve(&self, network: &NetworkName) -> bool {
        !self.waiting && (self.networks.is_empty() || self.networks.contains(network))
    }
}

/// A node that was approved by name, whether or not it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedNodeRecord {
    pub name: NodeName,
    /// They stand over those that it joins with.
    pub labels: Labels,
}

/// Where a node's endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub public_key: PublicKey,
    pub candidates: Vec<SocketAddr>,
    /// The key that it had before: still the node's, as long as peers may know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_key: Option<PublicKey>,
}

impl EndpointRecord {
    /// The keys that are the node's by it.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        std::iter::once(self.public_key).chain(self.previous_key)
    }
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: String,
    pub secret_hash: String,
    pub uses_left: u32,
    /// Seconds since the epoch.
    pub expires: i64,
    pub site: Option<String>,
    pub networks: Vec<NetworkName>,
    /// Whether it is for relays.
    #[serde(default)]
    pub relay: bool,
    /// Whether nodes that join with it wait for approval.
    #[serde(default)]
    pub needs_approval: bool,
    /// After how many seconds without being seen nodes that join with it are removed.
    #[serde(default)]
    pub forget_after: Option<u64>,
}

/// A relay that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRecord {
    pub name: NodeName,
    pub number: u16,
    pub site: Option<String>,
    /// SHA-256 of the public key in its certificate, hexadecimal.
    pub key: String,
    /// `HOST:PORT`; none before it has connected.
    pub addresses: Vec<String>,
    pub stun_port: u16,
}

/// That a prefix may be behind a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ApprovalRecord {
    pub network: NetworkName,
    pub node: NodeName,
    pub prefix: IpNet,
}

/// Who may use the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRecord {
    pub name: String,
    pub secret_hash: String,
    pub role: Role,
    /// Where it holds; empty: everywhere.
    pub networks: Vec<NetworkName>,
    /// When it expires, in seconds since 1970; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

impl CredentialRecord {
    /// Whether its time is over.
    pub fn is_over(&self, now: i64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    pub id: WorkloadId,
    pub network: NetworkName,
    pub node: NodeName,
    pub name: WorkloadName,
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpNet>,
    /// Its WireGuard key, if it is a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PublicKey>,
    /// What its owner declared.
    pub declared: Labels,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<AcceptFrom>,
    /// What a trigger gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
    /// What its node has measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Arc<Measurement>>,
    pub identity: IdentityId,
}

/// A workload that is not let in. It has no identity, so no link of it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    pub node: NodeName,
    /// What its node said of it, without the signatures.
    pub report: WorkloadReport,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
    /// Why.
    pub reasons: Vec<String>,
}

impl RefusedRecord {
    /// Why, in one sentence.
    pub fn reason(&self) -> String {
        self.reasons.join("; ")
    }
}

/// A workload as it stands.
#[derive(Debug, Clone, Copy)]
pub enum Standing<'a> {
    /// It is let in.
    Admitted(&'a WorkloadRecord),
    /// It is not.
    Refused(&'a RefusedRecord),
}

impl<'a> Standing<'a> {
    /// The workload of a record, if it is one of a workload.
    pub fn of(record: &'a Record) -> Option<Self> {
        match record {
            Record::Workload(record) => Some(Self::Admitted(record)),
            Record::Refused(record) => Some(Self::Refused(record)),
            _ => None,
        }
    }

    pub fn is(&self, record: &Record) -> bool {
        match (self, record) {
            (Self::Admitted(own), Record::Workload(other)) => *own == other,
            (Self::Refused(own), Record::Refused(other)) => *own == &**other,
            _ => false,
        }
    }

    pub fn id(&self) -> &'a WorkloadId {
        match self {
            Self::Admitted(record) => &record.id,
            Self::Refused(record) => &record.report.id,
        }
    }

    pub fn network(&self) -> &'a NetworkName {
        match self {
            Self::Admitted(record) => &record.network,
            Self::Refused(record) => &record.report.network,
        }
    }

    pub fn node(&self) -> &'a NodeName {
        match self {
            Self::Admitted(record) => &record.node,
            Self::Refused(record) => &record.node,
        }
    }

    pub fn name(&self) -> &'a WorkloadName {
        match self {
            Self::Admitted(record) => &record.name,
            Self::Refused(record) => &record.report.name,
        }
    }

    pub fn addresses(&self) -> &'a [IpAddr] {
        match self {
            Self::Admitted(record) => &record.addresses,
            Self::Refused(record) => &record.report.addresses,
        }
    }

    pub fn given(&self) -> Option<&'a Given> {
        match self {
            Self::Admitted(record) => record.given.as_ref(),
            Self::Refused(record) => record.given.as_ref(),
        }
    }

    /// Its WireGuard key, if it is a device.
    pub fn device(&self) -> Option<PublicKey> {
        match self {
            Self::Admitted(record) => record.device,
            Self::Refused(record) => record.report.device,
        }
    }

    pub fn labels(&self) -> &'a Labels {
        match self {
            Self::Admitted(record) => &record.declared,
            Self::Refused(record) => &record.report.labels,
        }
    }

    pub fn measurement(&self) -> Option<&'a Measurement> {
        match self {
            Self::Admitted(record) => record.measurement.as_deref(),
            Self::Refused(record) => record.report.measurement.as_deref(),
        }
    }

    pub fn prefixes(&self) -> &'a [IpNet] {
        match self {
            Self::Admitted(record) => &record.prefixes,
            Self::Refused(record) => &record.report.prefixes,
        }
    }

    /// What its node said of it, without the signatures.
    pub fn report(&self) -> WorkloadReport {
        match self {
            Self::Refused(record) => record.report.clone(),
            Self::Admitted(record) => WorkloadReport {
                id: record.id.clone(),
                network: record.network.clone(),
                name: record.name.clone(),
                labels: record.declared.clone(),
                addresses: record.addresses.clone(),
                prefixes: record.prefixes.clone(),
                device: record.device,
                accepts: record.accepts.clone(),
                measurement: record.measurement.clone(),
                signatures: vec![],
                objection: None,
            },
        }
    }
}

/// The signatures of an image that runs or ran somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub digest: Sha256,
    /// Those that are by keys of a network's policy: they prove themselves, whoever has found them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verified: BTreeMap<NetworkName, Vec<ImageSignature>>,
    /// The others, by the node that runs the image and has found them: a policy to come may have
    /// their keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reported: BTreeMap<NodeName, Vec<ImageSignature>>,
    /// What earlier versions kept, whoever had found it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<ImageSignature>,
}

impl ImageRecord {
    /// An image of which nothing is known.
    pub fn new(digest: Sha256) -> Self {
        Self { digest, verified: BTreeMap::new(), reported: BTreeMap::new(), signatures: vec![] }
    }

    /// The signatures that a network's policy is to look at, the verified ones first.
    pub fn for_network(&self, network: &NetworkName) -> impl Iterator<Item = &ImageSignature> {
        let verified = self.verified.get(network).into_iter().flatten();
        verified.chain(self.reported.values().flatten()).chain(&self.signatures)
    }
}

/// Labels that a workload was given by a trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub labels: Labels,
    /// Seconds since the epoch.
    pub until: Option<i64>,
}

/// A label set and its number, which is never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    pub id: IdentityId,
    pub network: NetworkName,
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<AcceptFrom>,
}

/// A network's policy, as its authors wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub network: NetworkName,
    pub files: Arc<Vec<PolicyFile>>,
    /// When connections that it had cut were last to be reset: a number that grows; 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resets: u64,
    /// The same, read: what has just been checked is not read again.
    #[serde(skip)]
    pub read: Read,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What was worked out of a policy's files, if it was.
#[derive(Debug, Clone, Default)]
pub struct Read {
    pub policy: Option<Arc<Policy>>,
    /// What the policy changes.
    pub step: Step,
}

/// What a policy changes, worked out once: who takes it has it.
#[derive(Debug, Clone, Default)]
pub struct Step(Arc<Mutex<Option<PolicyStep>>>, u64);

impl Step {
    pub fn of(step: PolicyStep) -> Self {
        let generation = step.generation();
        Self(Arc::new(Mutex::new(Some(step))), generation)
    }

    /// Whether it was worked out on links as they are now.
    pub fn is_on(&self, links: &Links) -> bool {
        links.ground().generation() == self.1
    }

    pub fn take(&self) -> Option<PolicyStep> {
        self.0.lock().take()
    }
}

impl PartialEq for Read {
    /// What was read follows from the files.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Read {}

impl PolicyRecord {
    /// The policy that the files are.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn policy(&self) -> Result<Arc<Policy>, String> {
        if let Some(policy) = &self.read.policy {
            return Ok(policy.clone());
        }
        // Files that are about other networks, too, need not have all of theirs here.
        let own = meshward_policy::read_own(&self.files, &self.network)
            .map_err(|error| error.to_string())?;
        own.written
            .map(|own| Arc::new(own.policy))
            .ok_or_else(|| format!("no file is about network {}", self.network))
    }
}

/// One thing that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    Network(Network),
    Node(NodeRecord),
    ApprovedNode(ApprovedNodeRecord),
    Relay(RelayRecord),
    /// Of a route.
    Approval(ApprovalRecord),
    Token(TokenRecord),
    Credential(CredentialRecord),
    Identity(IdentityRecord),
    Workload(WorkloadRecord),
    /// Kept in the place of a [`Record::Workload`].
    Refused(Box<RefusedRecord>),
    Image(ImageRecord),
    Policy(PolicyRecord),
    Quarantine(Quarantine),
}

/// Under what a record is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKey {
    Network(NetworkName),
    Node(NodeName),
    ApprovedNode(NodeName),
    Relay(NodeName),
    Approval(ApprovalRecord),
    Token(String),
    Credential(String),
    Identity(IdentityId),
    Workload(WorkloadId),
    Image(Sha256),
    Policy(NetworkName),
    Quarantine(String),
}

impl Record {
    /// In which order records are taken up: each after those that it names.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Network(_) | Self::Quarantine(_) | Self::Image(_) => 0,
            Self::Node(_) | Self::ApprovedNode(_) | Self::Relay(_) | Self::Approval(_) => 1,
            Self::Identity(_) | Self::Policy(_) => 2,
            Self::Token(_) | Self::Credential(_) | Self::Workload(_) | Self::Refused(_) => 3,
        }
    }

    pub fn key(&self) -> RecordKey {
        match self {
            Self::Network(record) => RecordKey::Network(record.name.clone()),
            Self::Node(record) => RecordKey::Node(record.name.clone()),
            Self::ApprovedNode(record) => RecordKey::ApprovedNode(record.name.clone()),
            Self::Relay(record) => RecordKey::Relay(record.name.clone()),
            Self::Approval(record) => RecordKey::Approval(record.clone()),
            Self::Token(record) => RecordKey::Token(record.id.clone()),
            Self::Credential(record) => RecordKey::Credential(record.name.clone()),
            Self::Identity(record) => RecordKey::Identity(record.id),
            Self::Workload(record) => RecordKey::Workload(record.id.clone()),
            Self::Refused(record) => RecordKey::Workload(record.report.id.clone()),
            Self::Image(record) => RecordKey::Image(record.digest),
            Self::Policy(record) => RecordKey::Policy(record.network.clone()),
            Self::Quarantine(record) => RecordKey::Quarantine(record.id.clone()),
        }
    }
}

impl RecordKey {
    /// Whether every state is kept, for the log and for questions about the past.
    pub fn is_kept_for_ever(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Quarantine(_))
    }

    /// The key as the store has it: a kind, and a name within the kind.
    pub fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Network(name) => ("network", name.to_string()),
            Self::Node(name) => ("node", name.to_string()),
            Self::ApprovedNode(name) => ("approved-node", name.to_string()),
            Self::Relay(name) => ("relay", name.to_string()),
            Self::Approval(ApprovalRecord { network, node, prefix }) => {
                ("approval", format!("{network}/{node}/{prefix}"))
            }
            Self::Token(id) => ("token", id.clone()),
            Self::Credential(name) => ("credential", name.clone()),
            Self::Identity(id) => ("identity", id.to_string()),
            Self::Workload(id) => ("workload", id.to_string()),
            Self::Image(digest) => ("image", digest.to_string()),
            Self::Policy(network) => ("policy", network.to_string()),
            Self::Quarantine(id) => ("quarantine", id.clone()),
        }
    }
}

/// One change of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    Put(Record),
    Delete(RecordKey),
}
