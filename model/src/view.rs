//! What one node is told of the mesh, and how it changes.
//!
//! A node's view is a set of items under keys. The coordinator derives it, the node keeps it, and both speak of
//! its difference only: a [`Change`] puts or drops one item. Every item has a hash, so that a node that comes
//! back after any time can say what it has, and is told just what differs, whatever the coordinator remembers.

use crate::{
    acl::Acl,
    keys::PublicKey,
    labels::Labels,
    names::{IdentityId, NetworkName, NodeName, Revision, WorkloadId},
};
use ipnet::IpNet;
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
    /// The blocks that this node's workloads get their addresses from.
    pub blocks: Vec<IpNet>,
    /// MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
}

/// Another node's endpoint of the same network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// The endpoint's WireGuard key.
    pub public_key: PublicKey,
    /// Where it may be reached, the best guess first.
    pub candidates: Vec<SocketAddr>,
    /// The prefixes that it may send from: its blocks.
    pub prefixes: Vec<IpNet>,
    /// The identities that its node may vouch for while the coordinator is away.
    pub vouches: Vec<IdentityId>,
}

/// A label set under a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySpec {
    /// The labels, verified ones included.
    pub labels: Labels,
    /// Whether a quarantine selects it: then no link of it is open.
    pub quarantined: bool,
}

/// A workload that the node runs or may meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// The node that runs it.
    pub node: NodeName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What policy sees of it.
    pub identity: IdentityId,
    /// Whether it is quarantined by itself.
    pub quarantined: bool,
}

/// One thing in a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
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
}

/// Under what an item is kept. The order is that in which changes apply.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ItemKey {
    /// [`Item::Network`].
    Network(NetworkName),
    /// [`Item::Peer`].
    Peer(NetworkName, NodeName),
    /// [`Item::Identity`].
    Identity(NetworkName, IdentityId),
    /// [`Item::Workload`].
    Workload(NetworkName, WorkloadId),
    /// [`Item::Link`], from the first identity to the second.
    Link(NetworkName, IdentityId, IdentityId),
}

impl ItemKey {
    /// The network that the item belongs to.
    pub fn network(&self) -> &NetworkName {
        match self {
            Self::Network(network)
            | Self::Peer(network, _)
            | Self::Identity(network, _)
            | Self::Workload(network, _)
            | Self::Link(network, _, _) => network,
        }
    }

    fn holds(&self, item: &Item) -> bool {
        matches!(
            (self, item),
            (Self::Network(_), Item::Network(_))
                | (Self::Peer(..), Item::Peer(_))
                | (Self::Identity(..), Item::Identity(_))
                | (Self::Workload(..), Item::Workload(_))
                | (Self::Link(..), Item::Link(_))
        )
    }
}

/// One difference between two views.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The item is there, and is this.
    Put(ItemKey, Item),
    /// The item is no longer there.
    Drop(ItemKey),
}

impl Change {
    /// The key that changes.
    pub fn key(&self) -> &ItemKey {
        match self {
            Self::Put(key, _) | Self::Drop(key) => key,
        }
    }
}

/// A 128-bit hash: the first half of SHA-256.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hash128([u8; 16]);

impl Hash128 {
    fn of(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        parts.into_iter().for_each(|part| context.update(part.as_ref()));
        let mut half = [0; 16];
        half.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(half)
    }

    /// The hash of an item's wire form.
    pub fn of_item(item: &Item) -> Self {
        // Encoding plain data into memory has no way to fail.
        Self::of([postcard::to_stdvec(item).expect("items encode into memory")])
    }
}

/// The hashes of the items under their keys: enough to tell what differs, without the items.
pub type Shadow = BTreeMap<ItemKey, Hash128>;

/// The hash of a whole shadow, which two sides compare first.
pub fn digest(shadow: &Shadow) -> Hash128 {
    let parts = shadow.iter().map(|(key, hash)| {
        let mut bytes = postcard::to_stdvec(key).expect("keys encode into memory");
        bytes.extend(hash.0);
        bytes
    });
    Hash128::of(parts)
}

/// Everything that one node is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The revision that the view is of.
    pub revision: Revision,
    /// The items.
    pub items: BTreeMap<ItemKey, Item>,
}

impl View {
    /// Applies changes in their order.
    pub fn apply(&mut self, revision: Revision, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put(key, item) if key.holds(item) => {
                    self.items.insert(key.clone(), item.clone());
                }
                // A coordinator never sends a key with another key's item; keeping what was is the closed side.
                Change::Put(..) => {}
                Change::Drop(key) => {
                    self.items.remove(key);
                }
            }
        }
        self.revision = revision;
    }

    /// The hashes of the items.
    pub fn shadow(&self) -> Shadow {
        self.items.iter().map(|(key, item)| (key.clone(), Hash128::of_item(item))).collect()
    }

    /// The changes that lead from a view with this shadow to this one.
    pub fn changes_since(&self, shadow: &Shadow) -> Vec<Change> {
        let dropped = shadow.keys().filter(|key| !self.items.contains_key(key));
        let put = self.items.iter().filter(|(key, item)| shadow.get(key) != Some(&Hash128::of_item(item)));
        dropped
            .map(|key| Change::Drop(key.clone()))
            .chain(put.map(|(key, item)| Change::Put(key.clone(), item.clone())))
            .collect()
    }

    /// The items of one network, as changes that put them.
    pub fn network_changes(&self, network: &NetworkName) -> Vec<Change> {
        let own = |(key, item): (&ItemKey, &Item)| {
            (key.network() == network).then(|| Change::Put(key.clone(), item.clone()))
        };
        self.items.iter().filter_map(own).collect()
    }

    /// The networks of the node.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkName, &NetworkSpec)> {
        self.items.iter().filter_map(|(key, item)| match (key, item) {
            (ItemKey::Network(name), Item::Network(spec)) => Some((name, spec)),
            _ => None,
        })
    }

    /// One network.
    pub fn network(&self, name: &NetworkName) -> Option<&NetworkSpec> {
        match self.items.get(&ItemKey::Network(name.clone())) {
            Some(Item::Network(spec)) => Some(spec),
            _ => None,
        }
    }

    /// One workload.
    pub fn workload(&self, network: &NetworkName, id: &WorkloadId) -> Option<&WorkloadSpec> {
        match self.items.get(&ItemKey::Workload(network.clone(), id.clone())) {
            Some(Item::Workload(spec)) => Some(spec),
            _ => None,
        }
    }

    /// The number under which this view knows a label set.
    pub fn identity_of(&self, network: &NetworkName, labels: &Labels) -> Option<IdentityId> {
        self.items.iter().find_map(|(key, item)| match (key, item) {
            (ItemKey::Identity(own, id), Item::Identity(spec))
                if own == network && spec.labels == *labels =>
            {
                Some(*id)
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item() -> impl Strategy<Value = (ItemKey, Item)> {
        let network = prop_oneof![Just("shop"), Just("lab")].prop_map(|n| n.parse().unwrap());
        (network, 0u32..6, 0u32..4, any::<bool>()).prop_map(
            |(network, a, b, link): (NetworkName, u32, u32, bool)| {
                if link {
                    let entry = crate::AclEntry {
                        protocol: crate::Protocol::Tcp,
                        ports: crate::PortRange { first: b as u16, last: b as u16 },
                    };
                    let key = ItemKey::Link(network, IdentityId(a), IdentityId(a));
                    (key, Item::Link(Acl::new(vec![entry])))
                } else {
                    let labels = format!("app=a{b}").parse().unwrap();
                    let spec = IdentitySpec { labels, quarantined: b == 0 };
                    (ItemKey::Identity(network, IdentityId(a)), Item::Identity(spec))
                }
            },
        )
    }

    fn view() -> impl Strategy<Value = View> {
        prop::collection::btree_map(item(), Just(()), 0..12).prop_map(|items| {
            let items = items.into_keys().collect();
            View { revision: Revision(1), items }
        })
    }

    impl PartialOrd for Item {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Item {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            format!("{self:?}").cmp(&format!("{other:?}"))
        }
    }

    proptest! {
        #[test]
        fn any_sequence_of_deltas_ends_at_the_snapshot(views in prop::collection::vec(view(), 1..8)) {
            let mut node = View::default();
            for (at, target) in views.iter().enumerate() {
                let changes = target.changes_since(&node.shadow());
                node.apply(Revision(at as u64), &changes);
                prop_assert_eq!(&node.items, &target.items);
                prop_assert_eq!(digest(&node.shadow()), digest(&target.shadow()));
            }
            let mut fresh = View::default();
            let last = views.last().unwrap();
            fresh.apply(Revision(0), &last.changes_since(&Shadow::new()));
            prop_assert_eq!(&fresh.items, &node.items);
        }

        #[test]
        fn equal_views_have_no_difference(view in view()) {
            prop_assert!(view.changes_since(&view.shadow()).is_empty());
        }
    }

    #[test]
    fn a_key_with_another_keys_item_is_not_kept() {
        let mut view = View::default();
        let key = ItemKey::Network("shop".parse().unwrap());
        view.apply(Revision(1), &[Change::Put(key, Item::Link(Acl::default()))]);
        assert!(view.items.is_empty());
    }
}
