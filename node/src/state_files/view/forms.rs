//! The structures of the newest format: copies of those of the control protocol with serde's
//! `remote` attribute. One that gets a field there does not compile here any more, and somebody
//! decides how it is kept.

use super::{
    acl::{LinkConversion, OnDenyForm},
    selector_text::SelectorText,
    services::ServiceConversion,
};
use ipnet::IpNet;
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec, WorkloadSpec},
};
use meshward_types::{
    AcceptFrom, Acl, Conduct, DnsSettings, DomainName, IdentityId, InstanceStates, Labels,
    NetworkName, NodeName, OnDeny, OnRevoke, PublicKey, Selector, ServiceName, Upstream,
    WorkloadId, WorkloadName, trigger::TriggerSpec,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
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
    Link(#[serde(with = "LinkConversion")] Acl),
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
    #[serde(with = "InstanceStatesForm")]
    states: InstanceStates,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "InstanceStates")]
pub(super) struct InstanceStatesForm {
    draining: bool,
    unhealthy: BTreeSet<ServiceName>,
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
