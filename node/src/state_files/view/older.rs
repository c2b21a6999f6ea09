//! The structures of formats 1 and 2, which are read alone: as in [`super::forms`], without
//! services, names and sites.

use super::{
    acl::AclConversion,
    forms::{ConductForm, IdentityForm, KeyForm, TriggerForm},
};
use ipnet::IpNet;
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec, WorkloadSpec},
};
use meshward_types::{
    Acl, Conduct, DnsSettings, IdentityId, InstanceStates, NetworkName, NodeName, PublicKey,
    WorkloadName, trigger::TriggerSpec,
};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

#[derive(Deserialize)]
pub(super) struct ReadEntry(
    #[serde(with = "KeyForm")] ResourceKey,
    #[serde(with = "ResourceForm")] Resource,
);

impl From<ReadEntry> for (ResourceKey, Resource) {
    fn from(ReadEntry(key, resource): ReadEntry) -> Self {
        (key, resource)
    }
}

#[derive(Deserialize)]
pub(super) struct ReadChange(#[serde(with = "ChangeForm")] Change);

impl From<ReadChange> for Change {
    fn from(ReadChange(change): ReadChange) -> Self {
        change
    }
}

#[expect(clippy::large_enum_variant, reason = "it is the shape of what it stands for")]
#[derive(Deserialize)]
#[serde(remote = "Change")]
enum ChangeForm {
    Put(#[serde(with = "KeyForm")] ResourceKey, #[serde(with = "ResourceForm")] Resource),
    Drop(#[serde(with = "KeyForm")] ResourceKey),
    Forget(NetworkName, IdentityId),
}

#[derive(Deserialize)]
#[serde(remote = "Resource")]
enum ResourceForm {
    Network(#[serde(with = "NetworkForm")] NetworkSpec),
    Peer(#[serde(with = "PeerForm")] PeerSpec),
    Identity(#[serde(with = "IdentityForm")] IdentitySpec),
    Workload(#[serde(with = "WorkloadForm")] WorkloadSpec),
    Link(#[serde(with = "AclConversion")] Acl),
    Trigger(#[serde(with = "TriggerForm")] TriggerSpec),
    Refused(String),
    #[serde(skip)]
    Service(ServiceSpec),
}

#[derive(Deserialize)]
#[serde(remote = "NetworkSpec")]
struct NetworkForm {
    prefixes: Vec<IpNet>,
    blocks: Vec<IpNet>,
    mtu: u16,
    admission: bool,
    #[serde(with = "ConductForm")]
    conduct: Conduct,
    #[serde(skip)]
    site: Option<String>,
    #[serde(skip)]
    service_blocks: Vec<IpNet>,
    #[serde(skip)]
    resolver: Vec<IpAddr>,
    #[serde(skip)]
    dns: DnsSettings,
}

#[derive(Deserialize)]
#[serde(remote = "PeerSpec")]
struct PeerForm {
    public_key: PublicKey,
    candidates: Vec<SocketAddr>,
    prefixes: Vec<IpNet>,
    #[serde(skip)]
    site: Option<String>,
}

#[derive(Deserialize)]
#[serde(remote = "WorkloadSpec")]
struct WorkloadForm {
    node: NodeName,
    addresses: Vec<IpAddr>,
    prefixes: Vec<IpNet>,
    identity: IdentityId,
    quarantined: bool,
    reset: bool,
    #[serde(skip)]
    name: Option<WorkloadName>,
    #[serde(skip)]
    states: InstanceStates,
}
