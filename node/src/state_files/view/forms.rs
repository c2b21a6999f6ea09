//! The structures of the newest format: copies of those of the control protocol with serde's
//! `remote` attribute. One that gets a field there does not compile here any more, and somebody
//! decides how it is kept.

use ipnet::IpNet;
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec, WorkloadSpec},
};
use meshward_types::{
    AcceptFrom, Acl, AclEntry, Affinity, Conduct, DnsSettings, DomainName, HealthCheck,
    HealthProbe, IdentityId, Labels, Nearness, NetworkName, NodeName, OnDeny, OnRevoke, PortRange,
    Protocol, PublicKey, Selector, ServiceName, ServicePort, Serving, Upstream, Weight, WeightRule,
    WorkloadId, WorkloadName, trigger::TriggerSpec,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

#[expect(clippy::large_enum_variant, reason = "it is the shape of what it stands for")]
#[derive(Serialize, Deserialize)]
#[serde(remote = "Change")]
pub(super) enum ChangeForm {
    Put(#[serde(with = "KeyForm")] ResourceKey, #[serde(with = "ResourceForm")] Resource),
    Drop(#[serde(with = "KeyForm")] ResourceKey),
    Forget(NetworkName, IdentityId),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ResourceKey")]
pub(super) enum KeyForm {
    Network(NetworkName),
    Peer(NetworkName, NodeName),
    Identity(NetworkName, IdentityId),
    Workload(NetworkName, WorkloadId),
    Link(NetworkName, IdentityId, IdentityId),
    Trigger(NetworkName, String),
    Refused(NetworkName, WorkloadId),
    Service(NetworkName, ServiceName),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Resource")]
pub(super) enum ResourceForm {
    Network(#[serde(with = "NetworkForm")] NetworkSpec),
    Peer(#[serde(with = "PeerForm")] PeerSpec),
    Identity(#[serde(with = "IdentityForm")] IdentitySpec),
    Workload(#[serde(with = "WorkloadForm")] WorkloadSpec),
    Link(#[serde(with = "AclConversion")] Acl),
    Trigger(#[serde(with = "TriggerForm")] TriggerSpec),
    Refused(String),
    Service(#[serde(with = "ServiceConversion")] ServiceSpec),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "NetworkSpec")]
pub(super) struct NetworkForm {
    prefixes: Vec<IpNet>,
    blocks: Vec<IpNet>,
    mtu: u16,
    admission: bool,
    #[serde(with = "ConductForm")]
    conduct: Conduct,
    site: Option<String>,
    service_blocks: Vec<IpNet>,
    resolver: Vec<IpAddr>,
    #[serde(with = "DnsForm")]
    dns: DnsSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "DnsSettings")]
pub(super) struct DnsForm {
    zone: DomainName,
    zones: BTreeMap<DomainName, Vec<Upstream>>,
    upstreams: Vec<Upstream>,
    intercept: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Conduct")]
pub(super) struct ConductForm {
    #[serde(with = "OnDenyForm")]
    on_deny: OnDeny,
    #[serde(with = "OnDenyForm")]
    on_quarantine: OnDeny,
    #[serde(with = "OnRevokeForm")]
    on_revoke: OnRevoke,
    timeouts: [Option<u32>; 4],
    resets: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "OnDeny")]
pub(super) enum OnDenyForm {
    Drop,
    Reject,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "OnRevoke")]
pub(super) enum OnRevokeForm {
    Drop,
    Reset,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "PeerSpec")]
pub(super) struct PeerForm {
    public_key: PublicKey,
    candidates: Vec<SocketAddr>,
    prefixes: Vec<IpNet>,
    site: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "IdentitySpec")]
pub(super) struct IdentityForm {
    labels: Labels,
    accepts: Vec<AcceptFrom>,
    quarantined: bool,
    reset: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "WorkloadSpec")]
pub(super) struct WorkloadForm {
    node: NodeName,
    addresses: Vec<IpAddr>,
    prefixes: Vec<IpNet>,
    identity: IdentityId,
    quarantined: bool,
    reset: bool,
    name: Option<WorkloadName>,
    #[serde(with = "ServingForm")]
    serving: Serving,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Serving")]
pub(super) enum ServingForm {
    Ready,
    Draining,
    Unhealthy,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "TriggerSpec")]
pub(super) struct TriggerForm {
    #[serde(with = "SelectorText")]
    watch: Selector,
    denied_flows: Option<u32>,
    distinct_ports: Option<u32>,
    distinct_addresses: Option<u32>,
    within: Duration,
    alone: bool,
    seconds: Option<u64>,
}

/// The conversion of selectors, which are kept as text.
pub(super) struct SelectorText;

impl SelectorText {
    pub(super) fn serialize<S: Serializer>(selector: &Selector, to: S) -> Result<S::Ok, S::Error> {
        let text = if selector.is_empty() { String::new() } else { selector.to_string() };
        text.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Selector, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct AclForm {
    allowed: Vec<EntryForm>,
    observed: Vec<EntryForm>,
    forensic: Vec<EntryForm>,
    rejected: Vec<EntryForm>,
    dropped: Vec<EntryForm>,
    otherwise: Option<AnswerForm>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EntryForm {
    #[serde(with = "ProtocolForm")]
    protocol: Protocol,
    first: u16,
    last: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Protocol")]
pub(super) enum ProtocolForm {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Other,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AnswerForm(#[serde(with = "OnDenyForm")] OnDeny);

impl From<&AclEntry> for EntryForm {
    fn from(entry: &AclEntry) -> Self {
        let AclEntry { protocol, ports: PortRange { first, last } } = *entry;
        Self { protocol, first, last }
    }
}

impl From<EntryForm> for AclEntry {
    fn from(form: EntryForm) -> Self {
        let EntryForm { protocol, first, last } = form;
        Self { protocol, ports: PortRange { first, last } }
    }
}

/// The conversion of ACLs, which are made anew from their ranges, so that they are sorted and
/// merged whatever a file says.
pub(super) struct AclConversion;

impl AclConversion {
    pub(super) fn serialize<S: Serializer>(acl: &Acl, to: S) -> Result<S::Ok, S::Error> {
        let forms = |entries: &[AclEntry]| entries.iter().map(EntryForm::from).collect();
        AclForm {
            allowed: forms(acl.entries()),
            observed: forms(acl.observed()),
            forensic: forms(acl.forensic()),
            rejected: forms(acl.rejected()),
            dropped: forms(acl.dropped()),
            otherwise: acl.otherwise().map(AnswerForm),
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Acl, D::Error> {
        let entries = |forms: Vec<EntryForm>| forms.into_iter().map(AclEntry::from).collect();
        let form = AclForm::deserialize(from)?;
        Ok(Acl::new(entries(form.allowed))
            .with_observed(entries(form.observed))
            .with_forensics(entries(form.forensic))
            .with_answers(
                entries(form.rejected),
                entries(form.dropped),
                form.otherwise.map(|AnswerForm(answer)| answer),
            ))
    }
}

#[derive(Serialize, Deserialize)]
struct ServiceForm {
    addresses: Vec<IpAddr>,
    #[serde(with = "SelectorText")]
    instances: Selector,
    ports: Vec<PortForm>,
    prefer: Vec<NearnessForm>,
    health: Option<HealthForm>,
    /// The time of an affinity by client.
    affinity: Option<Duration>,
    weights: Vec<WeightForm>,
}

#[derive(Serialize, Deserialize)]
struct WeightForm {
    #[serde(with = "SelectorText")]
    instances: Selector,
    weight: u16,
}

#[derive(Serialize, Deserialize)]
struct PortForm {
    #[serde(with = "ProtocolForm")]
    protocol: Protocol,
    port: u16,
    target: u16,
}

#[derive(Serialize, Deserialize)]
enum NearnessForm {
    Node,
    Site,
}

#[derive(Serialize, Deserialize)]
struct HealthForm {
    #[serde(with = "ProbeForm")]
    probe: HealthProbe,
    port: Option<u16>,
    every: Duration,
    timeout: Duration,
    failures: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "HealthProbe")]
enum ProbeForm {
    Http(String),
    Tcp,
    Grpc(String),
    Exec(Vec<String>),
}

impl From<&ServiceSpec> for ServiceForm {
    fn from(spec: &ServiceSpec) -> Self {
        let ServiceSpec { addresses, instances, ports, prefer, health, affinity, weights } =
            spec.clone();
        let weight =
            |WeightRule { instances, weight }| WeightForm { instances, weight: weight.get() };
        let port = |port| {
            let ServicePort { protocol, port, target } = port;
            PortForm { protocol, port, target }
        };
        let nearness = |nearness| match nearness {
            Nearness::Node => NearnessForm::Node,
            Nearness::Site => NearnessForm::Site,
        };
        let check = |check| {
            let HealthCheck { probe, port, every, timeout, failures } = check;
            HealthForm { probe, port, every, timeout, failures }
        };
        Self {
            addresses,
            instances,
            ports: ports.into_iter().map(port).collect(),
            prefer: prefer.into_iter().map(nearness).collect(),
            health: health.map(check),
            affinity: match affinity {
                Affinity::None => None,
                Affinity::Client(time) => Some(time),
            },
            weights: weights.into_iter().map(weight).collect(),
        }
    }
}

impl From<ServiceForm> for ServiceSpec {
    fn from(form: ServiceForm) -> Self {
        let ServiceForm { addresses, instances, ports, prefer, health, affinity, weights } = form;
        let weight = |WeightForm { instances, weight }| WeightRule {
            instances,
            weight: Weight::new(weight).unwrap_or_default(),
        };
        let port = |PortForm { protocol, port, target }| ServicePort { protocol, port, target };
        let nearness = |form| match form {
            NearnessForm::Node => Nearness::Node,
            NearnessForm::Site => Nearness::Site,
        };
        let check = |HealthForm { probe, port, every, timeout, failures }| HealthCheck {
            probe,
            port,
            every,
            timeout,
            failures,
        };
        Self {
            addresses,
            instances,
            ports: ports.into_iter().map(port).collect(),
            prefer: prefer.into_iter().map(nearness).collect(),
            health: health.map(check),
            affinity: affinity.map_or(Affinity::None, Affinity::Client),
            weights: weights.into_iter().map(weight).collect(),
        }
    }
}

/// The conversion of services.
pub(super) struct ServiceConversion;

impl ServiceConversion {
    pub(super) fn serialize<S: Serializer>(spec: &ServiceSpec, to: S) -> Result<S::Ok, S::Error> {
        ServiceForm::from(spec).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ServiceSpec, D::Error> {
        ServiceForm::deserialize(from).map(ServiceSpec::from)
    }
}
