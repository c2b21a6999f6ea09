//! A node's replica of its view.

use super::resources::{Change, Digest, Hash128, Resource, ResourceKey, View};
use ipnet::IpNet;
use meshward_types::{
    IdentityId, NetworkName, NodeName, Revision, WorkloadId, outside::is_default,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Deref,
};

type NodeKey = (NetworkName, NodeName);
type IdentityKey = (NetworkName, IdentityId);

/// A node's replica of its view, with the digest and the indices that changes need.
#[derive(Debug, Clone, Default)]
pub struct ViewReplica {
    view: View,
    pub(super) indices: Indices,
}

/// The digest of a view, and indices of its workloads.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Indices {
    digest: Digest,
    /// The number of known workloads by node; at least 1.
    workloads_on: HashMap<NodeKey, usize>,
    workloads_of: HashMap<IdentityKey, BTreeSet<WorkloadId>>,
    /// The prefixes behind workloads that are routes of gateways.
    routes: BTreeMap<(NetworkName, WorkloadId), Vec<IpNet>>,
}

impl Indices {
    /// Adds a resource that the view did not have under this key.
    fn add(&mut self, key: &ResourceKey, resource: &Resource) {
        self.digest.add(Hash128::of(key, resource));
        let (ResourceKey::Workload(network, id), Resource::Workload(spec)) = (key, resource) else {
            return;
        };
        *self.workloads_on.entry((network.clone(), spec.node.clone())).or_default() += 1;
        let identity = (network.clone(), spec.identity);
        self.workloads_of.entry(identity).or_default().insert(id.clone());
        if !spec.prefixes.is_empty() {
            self.routes.insert((network.clone(), id.clone()), spec.prefixes.clone());
        }
    }

    /// Removes a resource of the view.
    fn remove(&mut self, key: &ResourceKey, resource: &Resource) {
        self.digest.remove(Hash128::of(key, resource));
        let (ResourceKey::Workload(network, id), Resource::Workload(spec)) = (key, resource) else {
            return;
        };
        let node = (network.clone(), spec.node.clone());
        if let Some(count) = self.workloads_on.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.workloads_on.remove(&node);
            }
        }
        let identity = (network.clone(), spec.identity);
        if let Some(ids) = self.workloads_of.get_mut(&identity) {
            ids.remove(id);
            if ids.is_empty() {
                self.workloads_of.remove(&identity);
            }
        }
        if !spec.prefixes.is_empty() {
            self.routes.remove(&(network.clone(), id.clone()));
        }
    }

    /// Returns `true` if a known workload runs on a node.
    pub(super) fn has_workloads_on(&self, node: &NodeKey) -> bool {
        self.workloads_on.contains_key(node)
    }
}

impl Deref for ViewReplica {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

impl From<View> for ViewReplica {
    fn from(view: View) -> Self {
        let mut replica =
            Self { view: View { revision: view.revision, ..View::default() }, ..Self::default() };
        for (key, resource) in view.resources {
            replica.put(key, resource);
        }
        replica
    }
}

impl ViewReplica {
    /// Returns the view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Returns the view alone.
    pub fn into_view(self) -> View {
        self.view
    }

    /// Returns the digest of the resources.
    pub fn digest(&self) -> Digest {
        self.indices.digest
    }

    /// Returns the known prefixes behind gateways of a network, the node's own included, but for
    /// the default routes of egress gateways.
    pub fn routes(&self, network: &NetworkName) -> BTreeSet<IpNet> {
        let all = self.routes_of(network).flat_map(|(_, prefixes)| prefixes).copied();
        all.filter(|prefix| prefix.prefix_len() > 0).collect()
    }

    /// Returns the default routes of the egress gateways of a network, by identity: of those to
    /// which a link leads from it that lets anything pass.
    pub fn default_routes(&self, network: &NetworkName) -> BTreeMap<IdentityId, BTreeSet<IpNet>> {
        let mut routes: BTreeMap<IdentityId, BTreeSet<IpNet>> = BTreeMap::new();
        let mut gateways: BTreeMap<IdentityId, BTreeSet<IpNet>> = BTreeMap::new();
        for (id, prefixes) in self.routes_of(network) {
            let defaults = prefixes.iter().filter(|prefix| is_default(prefix));
            let mut defaults = defaults.peekable();
            if let (Some(_), Some(gateway)) = (defaults.peek(), self.workload(network, id)) {
                gateways.entry(gateway.identity).or_default().extend(defaults);
            }
        }
        if gateways.is_empty() {
            return routes;
        }
        for (from, to, acl) in self.links(network) {
            let open = gateways.get(&to).filter(|_| !acl.is_closed());
            if let Some(defaults) = open {
                routes.entry(from).or_default().extend(defaults);
            }
        }
        routes
    }

    fn routes_of(&self, network: &NetworkName) -> impl Iterator<Item = (&WorkloadId, &Vec<IpNet>)> {
        let own = self.indices.routes.iter().filter(move |((own, _), _)| own == network);
        own.map(|((_, id), prefixes)| (id, prefixes))
    }

    /// Applies changes in their order. Returns every resource that they put or removed, one by one.
    pub fn apply(&mut self, revision: Revision, changes: &[Change]) -> Vec<Change> {
        let (mut done, mut peers) = (Vec::with_capacity(changes.len()), BTreeSet::new());
        for change in changes {
            match change {
                Change::Put(key, resource) if key.fits(resource) => {
                    note_peer(&mut peers, key, Some(resource));
                    let before = self.put(key.clone(), resource.clone());
                    note_peer(&mut peers, key, before.as_ref());
                    done.push(change.clone());
                }
                // A coordinator never sends another kind of resource; keeping the old fails closed.
                Change::Put(..) => {}
                Change::Drop(key) => self.drop(key, &mut peers, &mut done),
                Change::Forget(network, identity) => {
                    self.forget(network, *identity, &mut peers, &mut done);
                }
            }
        }
        for peer in peers {
            if !self.indices.has_workloads_on(&peer) {
                let key = ResourceKey::Peer(peer.0, peer.1);
                self.drop(&key, &mut BTreeSet::new(), &mut done);
            }
        }
        self.view.revision = revision;
        done
    }

    fn put(&mut self, key: ResourceKey, resource: Resource) -> Option<Resource> {
        if let Some(before) = self.view.resources.get(&key) {
            self.indices.remove(&key, before);
        }
        self.indices.add(&key, &resource);
        self.view.resources.insert(key, resource)
    }

    fn drop(&mut self, key: &ResourceKey, peers: &mut BTreeSet<NodeKey>, done: &mut Vec<Change>) {
        let Some(before) = self.view.resources.remove(key) else { return };
        self.indices.remove(key, &before);
        note_peer(peers, key, Some(&before));
        done.push(Change::Drop(key.clone()));
    }

    /// Drops an identity and its workloads.
    fn forget(
        &mut self,
        network: &NetworkName,
        identity: IdentityId,
        peers: &mut BTreeSet<NodeKey>,
        done: &mut Vec<Change>,
    ) {
        let ids = self.indices.workloads_of.get(&(network.clone(), identity)).cloned();
        for id in ids.unwrap_or_default() {
            self.drop(&ResourceKey::Workload(network.clone(), id), peers, done);
        }
        self.drop(&ResourceKey::Identity(network.clone(), identity), peers, done);
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
