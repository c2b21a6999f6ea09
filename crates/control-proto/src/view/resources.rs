//! Resources and their keys, hashes and changes, and the view that they make up.

use ipnet::IpNet;
use meshward_types::{
    AcceptFrom, Acl, Affinity, Conduct, DnsSettings, HealthCheck, IdentityId, InstanceStates,
    Labels, Nearness, NetworkName, NodeName, PublicKey, Revision, Selector, ServiceName,
    ServicePort, WeightRule, WorkloadId, WorkloadName, selector, trigger::TriggerSpec,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// A network that the node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The network's prefixes.
    pub prefixes: Vec<IpNet>,
    /// The blocks from which this node's workloads get addresses.
    pub blocks: Vec<IpNet>,
    /// The MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
    /// `true` if its policy has requirements for admission.
    pub admission: bool,
    /// The treatment of conversations.
    pub conduct: Conduct,
    /// The site of this node.
    pub site: Option<String>,
    /// The blocks from which services get virtual addresses. No workload has an address in them.
    pub service_blocks: Vec<IpNet>,
    /// The addresses at which this node answers DNS: at most one of each address family.
    pub resolver: Vec<IpAddr>,
    /// The settings of name resolution.
    pub dns: DnsSettings,
}

impl NetworkSpec {
    /// A network with this MTU in bytes, without prefixes and admission, of the usual conduct and
    /// settings.
    pub fn with_mtu(mtu: u16) -> Self {
        Self {
            prefixes: vec![],
            blocks: vec![],
            mtu,
            admission: false,
            conduct: Conduct::default(),
            site: None,
            service_blocks: vec![],
            resolver: vec![],
            dns: DnsSettings::default(),
        }
    }
}

/// Another node's endpoint of the same network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// The endpoint's WireGuard key.
    pub public_key: PublicKey,
    /// The addresses at which it may be reached, the most likely first.
    pub candidates: Vec<SocketAddr>,
    /// The prefixes that it may send from: its blocks.
    pub prefixes: Vec<IpNet>,
    /// The site of its node.
    pub site: Option<String>,
}

/// An identity: a label set and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySpec {
    /// The labels, verified ones included.
    pub labels: Labels,
    /// The workloads that its workloads let reach them.
    pub accepts: Vec<AcceptFrom>,
    /// `true` if a quarantine selects it, so that none of its links is open.
    pub quarantined: bool,
    /// `true` if the quarantine resets the TCP connections that it cuts.
    pub reset: bool,
}

/// A workload of this node, or one that a link leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// The node that runs it.
    pub node: NodeName,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is the route of a gateway.
    pub prefixes: Vec<IpNet>,
    /// The workload's identity.
    pub identity: IdentityId,
    /// `true` if it is quarantined by its id.
    pub quarantined: bool,
    /// `true` if the quarantine resets the TCP connections that it cuts.
    pub reset: bool,
    /// The workload's name, if its identity owns the name in the network.
    pub name: Option<WorkloadName>,
    /// The workload's states as an instance of services.
    pub states: InstanceStates,
}

/// A service that the node's workloads use or are instances of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The virtual addresses: at most one of each address family.
    pub addresses: Vec<IpAddr>,
    /// The instances, by the labels of their identities.
    #[serde(with = "selector::as_text")]
    pub instances: Selector,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// The kinds of nearness by which instances are preferred, the first one first.
    pub prefer: Vec<Nearness>,
    /// The check that the node makes of its own instances.
    pub health: Option<HealthCheck>,
    /// The choice of instances for the later connections of a client.
    pub affinity: Affinity,
    /// The weights of instances, of which the first that selects one counts.
    pub weights: Vec<WeightRule>,
}

/// A resource in a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// A network that the node belongs to.
    Network(NetworkSpec),
    /// A peer of the node's endpoint.
    Peer(PeerSpec),
    /// An identity at an end of a link.
    Identity(IdentitySpec),
    /// A workload at an end of a link, or an admitted one of the node.
    Workload(WorkloadSpec),
    /// A link's ACL.
    Link(Acl),
    /// A trigger for the node's own workloads.
    Trigger(TriggerSpec),
    /// The reason why a workload of the node is refused.
    Refused(String),
    /// A service.
    Service(ServiceSpec),
}

/// The key of a resource. Changes apply in the order of keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ResourceKey {
    /// [`Resource::Network`].
    Network(NetworkName),
    /// [`Resource::Peer`].
    Peer(NetworkName, NodeName),
    /// [`Resource::Identity`].
    Identity(NetworkName, IdentityId),
    /// [`Resource::Workload`].
    Workload(NetworkName, WorkloadId),
    /// [`Resource::Link`], from the first identity to the second.
    Link(NetworkName, IdentityId, IdentityId),
    /// [`Resource::Trigger`].
    Trigger(NetworkName, String),
    /// [`Resource::Refused`].
    Refused(NetworkName, WorkloadId),
    /// [`Resource::Service`].
    Service(NetworkName, ServiceName),
}

impl ResourceKey {
    /// Returns the network that the resource belongs to.
    pub fn network(&self) -> &NetworkName {
        match self {
            Self::Network(network)
            | Self::Peer(network, _)
            | Self::Identity(network, _)
            | Self::Workload(network, _)
            | Self::Link(network, _, _)
            | Self::Trigger(network, _)
            | Self::Refused(network, _)
            | Self::Service(network, _) => network,
        }
    }

    /// Returns `true` if a resource is of the kind that the key names.
    pub(super) fn fits(&self, resource: &Resource) -> bool {
        matches!(
            (self, resource),
            (Self::Network(_), Resource::Network(_))
                | (Self::Peer(..), Resource::Peer(_))
                | (Self::Identity(..), Resource::Identity(_))
                | (Self::Workload(..), Resource::Workload(_))
                | (Self::Link(..), Resource::Link(_))
                | (Self::Trigger(..), Resource::Trigger(_))
                | (Self::Refused(..), Resource::Refused(_))
                | (Self::Service(..), Resource::Service(_))
        )
    }
}

/// A difference between two views.
#[expect(clippy::large_enum_variant, reason = "nearly all changes put a resource")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The resource exists, with this value.
    Put(ResourceKey, Resource),
    /// The resource no longer exists.
    Drop(ResourceKey),
    /// No link needs the identity and its workloads. Never sent to a node that runs one of them.
    Forget(NetworkName, IdentityId),
}

impl Change {
    /// Returns the network that it belongs to.
    pub fn network(&self) -> &NetworkName {
        match self {
            Self::Put(key, _) | Self::Drop(key) => key.network(),
            Self::Forget(network, _) => network,
        }
    }
}

/// A hash of a key and its resource: the first 128 bits of SHA-256.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hash128([u8; 16]);

impl Hash128 {
    /// Returns the hash of the wire form of a key and its resource.
    ///
    /// # Panics
    /// Never: encoding plain data into memory cannot fail.
    pub fn of(key: &ResourceKey, resource: &Resource) -> Self {
        // Encoding plain data into memory cannot fail.
        let bytes = postcard::to_stdvec(&(key, resource)).expect("resources encode into memory");
        let mut half = [0; 16];
        half.copy_from_slice(&ring::digest::digest(&ring::digest::SHA256, &bytes).as_ref()[..16]);
        Self(half)
    }
}

/// The hashes of the resources by key: enough to find differences without the resources.
pub type ResourceHashes = BTreeMap<ResourceKey, Hash128>;

/// The digest of a set of resources: the sum of their hashes modulo 2¹²⁸, which can be updated in
/// steps. Both sides are authenticated, so it needs to detect errors, not forgeries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(u128);

impl Digest {
    /// Adds a resource.
    pub fn add(&mut self, hash: Hash128) {
        self.0 = self.0.wrapping_add(u128::from_le_bytes(hash.0));
    }

    /// Removes a resource.
    pub fn remove(&mut self, hash: Hash128) {
        self.0 = self.0.wrapping_sub(u128::from_le_bytes(hash.0));
    }

    /// Adds the resources of another digest.
    pub fn join(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl FromIterator<Hash128> for Digest {
    fn from_iter<T: IntoIterator<Item = Hash128>>(hashes: T) -> Self {
        let mut digest = Self::default();
        hashes.into_iter().for_each(|hash| digest.add(hash));
        digest
    }
}

/// Everything that one node is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The view's revision.
    pub revision: Revision,
    /// The resources by key.
    pub resources: BTreeMap<ResourceKey, Resource>,
}

impl View {
    /// Returns the hashes of the resources.
    pub fn resource_hashes(&self) -> ResourceHashes {
        self.resources
            .iter()
            .map(|(key, resource)| (key.clone(), Hash128::of(key, resource)))
            .collect()
    }

    /// Returns the digest of the resources.
    pub fn digest(&self) -> Digest {
        self.resources.iter().map(|(key, resource)| Hash128::of(key, resource)).collect()
    }

    /// Returns the changes that lead to this view from one with these hashes.
    pub fn changes_since(&self, hashes: &ResourceHashes) -> Vec<Change> {
        let dropped = hashes.keys().filter(|key| !self.resources.contains_key(key));
        let put = self
            .resources
            .iter()
            .filter(|(key, resource)| hashes.get(key) != Some(&Hash128::of(key, resource)));
        dropped
            .map(|key| Change::Drop(key.clone()))
            .chain(put.map(|(key, resource)| Change::Put(key.clone(), resource.clone())))
            .collect()
    }

    /// Returns the resources of a network, as changes that put them.
    pub fn network_changes(&self, network: &NetworkName) -> Vec<Change> {
        let own = |(key, resource): (&ResourceKey, &Resource)| {
            (key.network() == network).then(|| Change::Put(key.clone(), resource.clone()))
        };
        self.resources.iter().filter_map(own).collect()
    }

    /// Returns the networks of the node.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkName, &NetworkSpec)> {
        self.resources.iter().filter_map(|(key, resource)| match (key, resource) {
            (ResourceKey::Network(name), Resource::Network(spec)) => Some((name, spec)),
            _ => None,
        })
    }

    /// Returns a network.
    pub fn network(&self, name: &NetworkName) -> Option<&NetworkSpec> {
        match self.resources.get(&ResourceKey::Network(name.clone())) {
            Some(Resource::Network(spec)) => Some(spec),
            _ => None,
        }
    }

    /// Returns a workload.
    pub fn workload(&self, network: &NetworkName, id: &WorkloadId) -> Option<&WorkloadSpec> {
        match self.resources.get(&ResourceKey::Workload(network.clone(), id.clone())) {
            Some(Resource::Workload(spec)) => Some(spec),
            _ => None,
        }
    }

    /// Returns the reason why a workload of the node is refused.
    pub fn refusal(&self, network: &NetworkName, id: &WorkloadId) -> Option<&str> {
        match self.resources.get(&ResourceKey::Refused(network.clone(), id.clone())) {
            Some(Resource::Refused(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Returns an identity.
    pub fn identity(&self, network: &NetworkName, id: IdentityId) -> Option<&IdentitySpec> {
        match self.resources.get(&ResourceKey::Identity(network.clone(), id)) {
            Some(Resource::Identity(spec)) => Some(spec),
            _ => None,
        }
    }

    /// Returns the identities of a network.
    pub fn identities(
        &self,
        network: &NetworkName,
    ) -> impl Iterator<Item = (IdentityId, &IdentitySpec)> {
        let first = ResourceKey::Identity(network.clone(), IdentityId(0));
        self.resources.range(first..).map_while(move |(key, resource)| match (key, resource) {
            (ResourceKey::Identity(own, id), Resource::Identity(spec)) if own == network => {
                Some((*id, spec))
            }
            _ => None,
        })
    }

    /// Returns a service.
    pub fn service(&self, network: &NetworkName, name: &ServiceName) -> Option<&ServiceSpec> {
        match self.resources.get(&ResourceKey::Service(network.clone(), name.clone())) {
            Some(Resource::Service(spec)) => Some(spec),
            _ => None,
        }
    }

    /// Returns the links of a network: the identities at their ends, and the ACL.
    pub fn links(
        &self,
        network: &NetworkName,
    ) -> impl Iterator<Item = (IdentityId, IdentityId, &Acl)> {
        let first = ResourceKey::Link(network.clone(), IdentityId(0), IdentityId(0));
        self.resources.range(first..).map_while(move |(key, resource)| match (key, resource) {
            (ResourceKey::Link(own, from, to), Resource::Link(acl)) if own == network => {
                Some((*from, *to, acl))
            }
            _ => None,
        })
    }

    /// Returns the triggers of a network.
    pub fn triggers(&self, network: &NetworkName) -> impl Iterator<Item = (&str, &TriggerSpec)> {
        let first = ResourceKey::Trigger(network.clone(), String::new());
        self.resources.range(first..).map_while(move |(key, resource)| match (key, resource) {
            (ResourceKey::Trigger(own, name), Resource::Trigger(spec)) if own == network => {
                Some((name.as_str(), spec))
            }
            _ => None,
        })
    }

    /// Returns the services of a network, by name.
    pub fn services(
        &self,
        network: &NetworkName,
    ) -> impl Iterator<Item = (&ServiceName, &ServiceSpec)> {
        // Services are the last of the keys, those of a network side by side.
        let others = self.resources.iter().rev().take_while(|(key, _)| {
            matches!(key, ResourceKey::Service(..)) && key.network() >= network
        });
        others.filter_map(move |(key, resource)| match (key, resource) {
            (ResourceKey::Service(own, name), Resource::Service(spec)) if own == network => {
                Some((name, spec))
            }
            _ => None,
        })
    }

    /// Returns the number of an identity in this view.
    pub fn identity_of(
        &self,
        network: &NetworkName,
        labels: &Labels,
        accepts: &[AcceptFrom],
    ) -> Option<IdentityId> {
        let is_same = |spec: &IdentitySpec| spec.labels == *labels && spec.accepts == accepts;
        self.identities(network).find(|(_, spec)| is_same(spec)).map(|(id, _)| id)
    }
}
