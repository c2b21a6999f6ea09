//! What one node is told of the mesh, and how it changes.
//!
//! A node's view is a set of resources under keys. The coordinator derives it, the node holds it
//! ([`ViewReplica`]), and both speak of its difference only: a [`Change`] puts or drops resources. Every
//! resource has a hash, so that a node that comes back after any time can say what it has, and is told
//! just what differs, whatever the coordinator remembers.
//!
//! Two things are left to the node, so that one message fits all whom a change concerns: a peer is
//! held as long as a held workload runs on it, and to forget an identity is to forget its
//! workloads.

use ipnet::IpNet;
use meshward_types::{
    AcceptFrom, Acl, Conduct, IdentityId, Labels, NetworkName, NodeName, PublicKey, Revision,
    WorkloadId, trigger::TriggerSpec,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    ops::Deref,
};

/// A network that the node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The network's prefixes.
    pub prefixes: Vec<IpNet>,
    /// The blocks that this node's workloads get their addresses from.
    pub blocks: Vec<IpNet>,
    /// MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
    /// Whether its policy says what workloads have to be to be let in.
    pub admission: bool,
    /// How it treats conversations.
    pub conduct: Conduct,
}

/// Another node's endpoint of the same network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// The endpoint's `WireGuard` key.
    pub public_key: PublicKey,
    /// Where it may be reached, the best guess first.
    pub candidates: Vec<SocketAddr>,
    /// The prefixes that it may send from: its blocks.
    pub prefixes: Vec<IpNet>,
}

/// A label set under a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySpec {
    /// The labels, verified ones included.
    pub labels: Labels,
    /// What its workloads declare about who may reach them.
    pub accepts: Vec<AcceptFrom>,
    /// Whether a quarantine selects it: then no link of it is open.
    pub quarantined: bool,
    /// Whether the TCP connections that the quarantine cuts are reset.
    pub reset: bool,
}

/// A workload that the node runs or may meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// The node that runs it.
    pub node: NodeName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    pub prefixes: Vec<IpNet>,
    /// What policy sees of it.
    pub identity: IdentityId,
    /// Whether it is quarantined by itself.
    pub quarantined: bool,
    /// Whether the TCP connections that the quarantine cuts are reset.
    pub reset: bool,
}

/// One thing in a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// A network of the node.
    Network(NetworkSpec),
    /// A peer of its endpoint.
    Peer(PeerSpec),
    /// An identity that a link needs.
    Identity(IdentitySpec),
    /// A workload that a link needs, or the node's own once it is admitted.
    Workload(WorkloadSpec),
    /// A link's ACL.
    Link(Acl),
    /// A trigger for the node's own workloads.
    Trigger(TriggerSpec),
    /// Why a workload of the node is not let in.
    Refused(String),
}

/// Under what an resource is kept. The order is that in which changes apply.
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
}

impl ResourceKey {
    /// The network that the resource belongs to.
    pub fn network(&self) -> &NetworkName {
        match self {
            Self::Network(network)
            | Self::Peer(network, _)
            | Self::Identity(network, _)
            | Self::Workload(network, _)
            | Self::Link(network, _, _)
            | Self::Trigger(network, _)
            | Self::Refused(network, _) => network,
        }
    }

    fn holds(&self, resource: &Resource) -> bool {
        matches!(
            (self, resource),
            (Self::Network(_), Resource::Network(_))
                | (Self::Peer(..), Resource::Peer(_))
                | (Self::Identity(..), Resource::Identity(_))
                | (Self::Workload(..), Resource::Workload(_))
                | (Self::Link(..), Resource::Link(_))
                | (Self::Trigger(..), Resource::Trigger(_))
                | (Self::Refused(..), Resource::Refused(_))
        )
    }
}

/// One difference between two views.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The resource is there, and is this.
    Put(ResourceKey, Resource),
    /// The resource is no longer there.
    Drop(ResourceKey),
    /// No link needs the identity any more: it goes, and its workloads with it. Never sent to a
    /// node that runs one.
    Forget(NetworkName, IdentityId),
}

impl Change {
    /// The network that it is about.
    pub fn network(&self) -> &NetworkName {
        match self {
            Self::Put(key, _) | Self::Drop(key) => key.network(),
            Self::Forget(network, _) => network,
        }
    }
}

/// A 128-bit hash of an resource under its key: the first half of SHA-256.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hash128([u8; 16]);

impl Hash128 {
    /// The hash of the wire form of a key and its resource.
    pub fn of(key: &ResourceKey, resource: &Resource) -> Self {
        // Encoding plain data into memory has no way to fail.
        let bytes = postcard::to_stdvec(&(key, resource)).expect("resources encode into memory");
        let mut half = [0; 16];
        half.copy_from_slice(&ring::digest::digest(&ring::digest::SHA256, &bytes).as_ref()[..16]);
        Self(half)
    }
}

/// The hashes of the resources under their keys: enough to tell what differs, without the resources.
pub type ResourceHashes = BTreeMap<ResourceKey, Hash128>;

/// What two sides compare first: the sum of the hashes of a set of resources, modulo 2¹²⁸. It follows a
/// change without a look at the other resources. Both sides are authenticated: it tells apart what went
/// wrong, not what was forged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(u128);

impl Digest {
    /// An resource has come.
    pub fn add(&mut self, hash: Hash128) {
        self.0 = self.0.wrapping_add(u128::from_le_bytes(hash.0));
    }

    /// An resource has gone.
    pub fn remove(&mut self, hash: Hash128) {
        self.0 = self.0.wrapping_sub(u128::from_le_bytes(hash.0));
    }

    /// Other resources have come, of which this is the digest.
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
    /// The revision that the view is of.
    pub revision: Revision,
    /// The resources.
    pub resources: BTreeMap<ResourceKey, Resource>,
}

impl View {
    /// The hashes of the resources.
    pub fn resource_hashes(&self) -> ResourceHashes {
        self.resources
            .iter()
            .map(|(key, resource)| (key.clone(), Hash128::of(key, resource)))
            .collect()
    }

    /// The digest of the resources.
    pub fn digest(&self) -> Digest {
        self.resources.iter().map(|(key, resource)| Hash128::of(key, resource)).collect()
    }

    /// The changes that lead from a view with this shadow to this one.
    pub fn changes_since(&self, shadow: &ResourceHashes) -> Vec<Change> {
        let dropped = shadow.keys().filter(|key| !self.resources.contains_key(key));
        let put = self
            .resources
            .iter()
            .filter(|(key, resource)| shadow.get(key) != Some(&Hash128::of(key, resource)));
        dropped
            .map(|key| Change::Drop(key.clone()))
            .chain(put.map(|(key, resource)| Change::Put(key.clone(), resource.clone())))
            .collect()
    }

    /// The resources of one network, as changes that put them.
    pub fn network_changes(&self, network: &NetworkName) -> Vec<Change> {
        let own = |(key, resource): (&ResourceKey, &Resource)| {
            (key.network() == network).then(|| Change::Put(key.clone(), resource.clone()))
        };
        self.resources.iter().filter_map(own).collect()
    }

    /// The networks of the node.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkName, &NetworkSpec)> {
        self.resources.iter().filter_map(|(key, resource)| match (key, resource) {
            (ResourceKey::Network(name), Resource::Network(spec)) => Some((name, spec)),
            _ => None,
        })
    }

    /// One network.
    pub fn network(&self, name: &NetworkName) -> Option<&NetworkSpec> {
        match self.resources.get(&ResourceKey::Network(name.clone())) {
            Some(Resource::Network(spec)) => Some(spec),
            _ => None,
        }
    }

    /// One workload.
    pub fn workload(&self, network: &NetworkName, id: &WorkloadId) -> Option<&WorkloadSpec> {
        match self.resources.get(&ResourceKey::Workload(network.clone(), id.clone())) {
            Some(Resource::Workload(spec)) => Some(spec),
            _ => None,
        }
    }

    /// Why a workload of the node is not let in.
    pub fn refusal(&self, network: &NetworkName, id: &WorkloadId) -> Option<&str> {
        match self.resources.get(&ResourceKey::Refused(network.clone(), id.clone())) {
            Some(Resource::Refused(reason)) => Some(reason),
            _ => None,
        }
    }

    /// The triggers of a network.
    pub fn triggers(&self, network: &NetworkName) -> impl Iterator<Item = (&str, &TriggerSpec)> {
        let first = ResourceKey::Trigger(network.clone(), String::new());
        self.resources.range(first..).map_while(move |(key, resource)| match (key, resource) {
            (ResourceKey::Trigger(own, name), Resource::Trigger(spec)) if own == network => {
                Some((name.as_str(), spec))
            }
            _ => None,
        })
    }

    /// The number under which this view knows a label set and what goes with it.
    pub fn identity_of(
        &self,
        network: &NetworkName,
        labels: &Labels,
        accepts: &[AcceptFrom],
    ) -> Option<IdentityId> {
        let first = ResourceKey::Identity(network.clone(), IdentityId(0));
        let own = self
            .resources
            .range(first..)
            .take_while(|(key, _)| matches!(key, ResourceKey::Identity(..)));
        own.filter(|(key, _)| key.network() == network).find_map(|(key, resource)| {
            match (key, resource) {
                (ResourceKey::Identity(_, id), Resource::Identity(spec))
                    if spec.labels == *labels && spec.accepts == accepts =>
                {
                    Some(*id)
                }
                _ => None,
            }
        })
    }
}

type NodeKey = (NetworkName, NodeName);
type IdentityKey = (NetworkName, IdentityId);

/// A view as a node holds it: with its digest, and with what it takes to follow changes.
#[derive(Debug, Clone, Default)]
pub struct ViewReplica {
    view: View,
    digest: Digest,
    /// How many held workloads run on a node.
    on_node: HashMap<NodeKey, usize>,
    of_identity: HashMap<IdentityKey, BTreeSet<WorkloadId>>,
    /// The prefixes behind workloads that are routes of gateways.
    routes: BTreeMap<(NetworkName, WorkloadId), Vec<IpNet>>,
}

impl Deref for ViewReplica {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

impl From<View> for ViewReplica {
    fn from(view: View) -> Self {
        let mut held =
            Self { view: View { revision: view.revision, ..View::default() }, ..Self::default() };
        for (key, resource) in view.resources {
            held.put(key, resource);
        }
        held
    }
}

impl ViewReplica {
    /// The view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The digest of the resources.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The prefixes behind gateways of a network that the node may meet, its own included.
    pub fn routes(&self, network: &NetworkName) -> BTreeSet<IpNet> {
        let own = self.routes.iter().filter(|((own, _), _)| own == network);
        own.flat_map(|(_, prefixes)| prefixes).copied().collect()
    }

    /// Applies changes in their order, and gives what follows: every resource that is put or dropped by
    /// them, one by one.
    pub fn apply(&mut self, revision: Revision, changes: &[Change]) -> Vec<Change> {
        let (mut done, mut peers) = (Vec::with_capacity(changes.len()), BTreeSet::new());
        for change in changes {
            match change {
                Change::Put(key, resource) if key.holds(resource) => {
                    note_peer(&mut peers, key, Some(resource));
                    let before = self.put(key.clone(), resource.clone());
                    note_peer(&mut peers, key, before.as_ref());
                    done.push(change.clone());
                }
                // A coordinator never sends a key with another key's resource; keeping what was is the
                // closed side.
                Change::Put(..) => {}
                Change::Drop(key) => self.drop(key, &mut peers, &mut done),
                Change::Forget(network, identity) => {
                    let own =
                        self.of_identity.remove(&(network.clone(), *identity)).unwrap_or_default();
                    for id in own {
                        self.drop(
                            &ResourceKey::Workload(network.clone(), id),
                            &mut peers,
                            &mut done,
                        );
                    }
                    self.drop(
                        &ResourceKey::Identity(network.clone(), *identity),
                        &mut peers,
                        &mut done,
                    );
                }
            }
        }
        for peer in peers {
            if !self.on_node.contains_key(&peer) {
                let key = ResourceKey::Peer(peer.0, peer.1);
                self.drop(&key, &mut BTreeSet::new(), &mut done);
            }
        }
        self.view.revision = revision;
        done
    }

    fn put(&mut self, key: ResourceKey, resource: Resource) -> Option<Resource> {
        self.digest.add(Hash128::of(&key, &resource));
        if let (ResourceKey::Workload(network, id), Resource::Workload(spec)) = (&key, &resource) {
            *self.on_node.entry((network.clone(), spec.node.clone())).or_default() += 1;
            self.of_identity
                .entry((network.clone(), spec.identity))
                .or_default()
                .insert(id.clone());
            if spec.prefixes.is_empty() {
                self.routes.remove(&(network.clone(), id.clone()));
            } else {
                self.routes.insert((network.clone(), id.clone()), spec.prefixes.clone());
            }
        }
        let before = self.view.resources.insert(key.clone(), resource);
        if let Some(before) = &before {
            let same_identity = matches!((before, &self.view.resources[&key]), (Resource::Workload(a), Resource::Workload(b)) if a.identity == b.identity);
            self.gone(&key, before, same_identity);
        }
        before
    }

    fn drop(&mut self, key: &ResourceKey, peers: &mut BTreeSet<NodeKey>, done: &mut Vec<Change>) {
        let Some(before) = self.view.resources.remove(key) else { return };
        if let (ResourceKey::Workload(network, id), Resource::Workload(spec)) = (key, &before)
            && !spec.prefixes.is_empty()
        {
            self.routes.remove(&(network.clone(), id.clone()));
        }
        self.gone(key, &before, false);
        note_peer(peers, key, Some(&before));
        done.push(Change::Drop(key.clone()));
    }

    /// Follows that an resource is not there any more, or not as it was.
    fn gone(&mut self, key: &ResourceKey, resource: &Resource, same_identity: bool) {
        self.digest.remove(Hash128::of(key, resource));
        let (ResourceKey::Workload(network, id), Resource::Workload(spec)) = (key, resource) else {
            return;
        };
        let node = (network.clone(), spec.node.clone());
        if let Some(count) = self.on_node.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.on_node.remove(&node);
            }
        }
        let identity = (network.clone(), spec.identity);
        if !same_identity && let Some(own) = self.of_identity.get_mut(&identity) {
            own.remove(id);
            if own.is_empty() {
                self.of_identity.remove(&identity);
            }
        }
    }
}

/// Notes a peer that may have lost its last workload, or come without one.
fn note_peer(peers: &mut BTreeSet<NodeKey>, key: &ResourceKey, resource: Option<&Resource>) {
    match (key, resource) {
        (ResourceKey::Workload(network, _), Some(Resource::Workload(spec))) => {
            peers.insert((network.clone(), spec.node.clone()));
        }
        (ResourceKey::Peer(network, node), _) => {
            peers.insert((network.clone(), node.clone()));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
