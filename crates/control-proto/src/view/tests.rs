use super::*;
use meshward_types::{
    Acl, AclEntry, Affinity, HealthCheck, HealthProbe, IdentityId, InstanceStates, Nearness,
    NetworkName, NodeName, PortRange, Protocol, PublicKey, Revision, Selector, ServicePort,
    trigger::TriggerSpec,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn network() -> NetworkName {
    "shop".parse().unwrap()
}

fn node(at: u32) -> NodeName {
    format!("node-{at}").parse().unwrap()
}

fn service(instances: Selector) -> ServiceSpec {
    ServiceSpec {
        addresses: vec!["10.0.255.1".parse().unwrap()],
        instances,
        ports: vec![ServicePort { protocol: Protocol::Tcp, port: 80, target: 8080 }],
        prefer: vec![Nearness::Node, Nearness::Site],
        health: None,
        affinity: Affinity::None,
        weights: vec![],
    }
}

/// Generates resources with small numbers, so that keys collide, and workloads run on nodes that
/// may be peers.
fn resource() -> impl Strategy<Value = (ResourceKey, Resource)> {
    (0u32..4, 0u32..4, 0u32..4, any::<bool>()).prop_map(|(a, b, kind, flag)| match kind {
        0 => {
            let labels = format!("app=a{b}").parse().unwrap();
            let spec = IdentitySpec { labels, accepts: vec![], quarantined: flag, reset: false };
            (ResourceKey::Identity(network(), IdentityId(a)), Resource::Identity(spec))
        }
        1 => {
            let spec = PeerSpec {
                public_key: PublicKey([b as u8; 32]),
                candidates: vec![],
                prefixes: vec![],
                site: flag.then(|| "eu".into()),
            };
            (ResourceKey::Peer(network(), node(a)), Resource::Peer(spec))
        }
        2 => {
            let name = format!("s{a}").parse().unwrap();
            let spec = service(format!("app=a{b}").parse().unwrap());
            (ResourceKey::Service(network(), name), Resource::Service(spec))
        }
        _ => {
            let spec = WorkloadSpec {
                prefixes: vec![],
                node: node(b),
                addresses: vec![],
                identity: IdentityId(b % 3),
                quarantined: flag,
                reset: false,
                name: flag.then(|| "web".parse().unwrap()),
                states: InstanceStates { draining: flag, ..InstanceStates::default() },
            };
            let id = format!("w{a}").parse().unwrap();
            (ResourceKey::Workload(network(), id), Resource::Workload(spec))
        }
    })
}

/// Generates a view as a coordinator derives it: every peer has a workload.
fn view() -> impl Strategy<Value = View> {
    prop::collection::vec(resource(), 0..12).prop_map(|resources| {
        let mut resources: BTreeMap<_, _> = resources.into_iter().collect();
        let nodes: BTreeSet<_> = resources
            .values()
            .filter_map(|resource| match resource {
                Resource::Workload(spec) => Some(spec.node.clone()),
                _ => None,
            })
            .collect();
        resources.retain(|key, _| match key {
            ResourceKey::Peer(_, node) => nodes.contains(node),
            _ => true,
        });
        View { revision: Revision(1), resources }
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => resource().prop_map(|(key, resource)| Change::Put(key, resource)),
        1 => resource().prop_map(|(key, _)| Change::Drop(key)),
        1 => (0u32..3).prop_map(|identity| Change::Forget(network(), IdentityId(identity))),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_deltas_ends_at_the_snapshot(views in prop::collection::vec(view(), 1..8)) {
        let mut node = ViewReplica::default();
        for (at, target) in views.iter().enumerate() {
            node.apply(Revision(at as u64), &target.changes_since(&node.resource_hashes()));
            prop_assert_eq!(&node.resources, &target.resources);
            prop_assert_eq!(node.digest(), target.digest());
        }
        let mut fresh = ViewReplica::default();
        let last = views.last().unwrap();
        fresh.apply(Revision(0), &last.changes_since(&ResourceHashes::new()));
        prop_assert_eq!(&fresh.resources, &node.resources);
    }

    #[test]
    fn equal_views_have_no_difference(view in view()) {
        prop_assert!(view.changes_since(&view.resource_hashes()).is_empty());
    }

    #[test]
    fn a_replica_says_all_that_follows_and_keeps_its_digest(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..12),
    ) {
        let (mut replica, mut told) = (ViewReplica::default(), BTreeMap::new());
        for changes in steps {
            for change in replica.apply(Revision(1), &changes) {
                match change {
                    Change::Put(key, resource) => {
                        told.insert(key, resource);
                    }
                    Change::Drop(key) => {
                        told.remove(&key);
                    }
                    Change::Forget(..) => prop_assert!(false, "it is said resource by resource"),
                }
            }
            prop_assert_eq!(&told, &replica.resources);
            prop_assert_eq!(replica.digest(), replica.view().digest());
            let again = ViewReplica::from(replica.view().clone());
            prop_assert_eq!(&again.indices, &replica.indices);
            for key in replica.resources.keys() {
                if let ResourceKey::Peer(network, node) = key {
                    prop_assert!(
                        replica.indices.has_workloads_on(&(network.clone(), node.clone()))
                    );
                }
            }
        }
    }
}

#[test]
fn every_resource_survives_the_wire() {
    let accepts = vec!["app=web, port=tcp/80".parse().unwrap(), "".parse().unwrap()];
    let trigger = TriggerSpec {
        watch: "app in (a,b),!old".parse().unwrap(),
        denied_flows: Some(1),
        distinct_ports: None,
        distinct_addresses: Some(3),
        within: std::time::Duration::from_secs(9),
        alone: true,
        seconds: None,
    };
    let everyone = TriggerSpec { watch: meshward_types::Selector::default(), ..trigger.clone() };
    let entry = AclEntry { protocol: Protocol::Tcp, ports: PortRange::ALL };
    let acl = Acl::new(vec![entry]).with_observed(vec![entry]).with_forensics(vec![entry]);
    let workload = WorkloadSpec {
        prefixes: vec![],
        node: node(1),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        identity: IdentityId(1),
        quarantined: true,
        reset: false,
        name: Some("web".parse().unwrap()),
        states: InstanceStates { draining: false, unhealthy: ["api".parse().unwrap()].into() },
    };
    let peer = PeerSpec {
        public_key: PublicKey([1; 32]),
        candidates: vec!["192.0.2.1:1".parse().unwrap()],
        prefixes: vec!["10.0.0.0/24".parse().unwrap()],
        site: Some("eu".into()),
    };
    let checked = ServiceSpec {
        health: Some(HealthCheck {
            probe: HealthProbe::Exec(vec!["true".into()]),
            port: None,
            every: HealthCheck::EVERY,
            timeout: HealthCheck::TIMEOUT,
            failures: HealthCheck::FAILURES,
        }),
        ..service("app in (a,b),!old".parse().unwrap())
    };
    let labels = "app=web".parse().unwrap();
    let resources = [
        Resource::Network(NetworkSpec::with_mtu(1420)),
        Resource::Peer(peer),
        Resource::Identity(IdentitySpec { labels, accepts, quarantined: false, reset: false }),
        Resource::Workload(workload),
        Resource::Link(acl),
        Resource::Trigger(trigger),
        Resource::Trigger(everyone),
        Resource::Refused("unsigned".into()),
        Resource::Service(checked),
        Resource::Service(service(Selector::default())),
    ];
    for resource in resources {
        let bytes = postcard::to_stdvec(&resource).unwrap();
        assert_eq!(postcard::from_bytes::<Resource>(&bytes).unwrap(), resource);
    }
}

#[test]
fn a_key_with_another_keys_resource_is_not_kept() {
    let mut view = ViewReplica::default();
    let key = ResourceKey::Network(network());
    view.apply(Revision(1), &[Change::Put(key, Resource::Link(Acl::default()))]);
    assert!(view.resources.is_empty());
}

#[test]
fn the_services_of_a_network_are_those_of_no_other() {
    let put = |network: &str, name: &str| {
        let key = ResourceKey::Service(network.parse().unwrap(), name.parse().unwrap());
        Change::Put(key, Resource::Service(service(Selector::default())))
    };
    let mut view = ViewReplica::default();
    let all = [put("lab", "api"), put("shop", "db"), put("shop", "api"), put("zoo", "api")];
    view.apply(Revision(1), &all);
    let names = |network: &str| -> BTreeSet<String> {
        view.services(&network.parse().unwrap()).map(|(name, _)| name.to_string()).collect()
    };
    assert_eq!(names("shop"), ["api".to_owned(), "db".to_owned()].into());
    assert_eq!(names("none"), BTreeSet::new());
}
