use super::*;
use meshward_control_proto::ViewReplica;
use meshward_types::{
    Affinity, InstanceStates, Protocol, Revision, Selector, ServicePort, Weight, WeightRule,
};

fn network_name() -> NetworkName {
    "shop".parse().unwrap()
}

/// The workload `w-1` on a node.
fn put_workload(node: &str, states: InstanceStates) -> Change {
    let spec = WorkloadSpec {
        node: node.parse().unwrap(),
        addresses: vec!["10.42.2.1".parse().unwrap()],
        prefixes: vec![],
        identity: IdentityId(1),
        quarantined: false,
        reset: false,
        name: None,
        states,
    };
    let key = ResourceKey::Workload(network_name(), "w-1".parse().unwrap());
    Change::Put(key, Resource::Workload(spec))
}

fn put_identity(id: u32, labels: &str) -> Change {
    let spec = IdentitySpec {
        labels: labels.parse().unwrap(),
        accepts: vec![],
        quarantined: false,
        reset: false,
    };
    Change::Put(ResourceKey::Identity(network_name(), IdentityId(id)), Resource::Identity(spec))
}

fn drop_identity(id: u32) -> Change {
    Change::Drop(ResourceKey::Identity(network_name(), IdentityId(id)))
}

fn put_service(selector: &str) -> Change {
    let spec = ServiceSpec {
        addresses: vec!["10.42.255.7".parse().unwrap()],
        instances: selector.parse::<Selector>().unwrap(),
        ports: vec![ServicePort { protocol: Protocol::Tcp, port: 80, target: 8080 }],
        prefer: vec![],
        health: None,
        affinity: Affinity::None,
        weights: vec![WeightRule {
            instances: "v=2".parse().unwrap(),
            weight: Weight::new(5).unwrap(),
        }],
    };
    Change::Put(service_key(), Resource::Service(spec))
}

fn service_key() -> ResourceKey {
    ResourceKey::Service(network_name(), "api".parse().unwrap())
}

struct Bench {
    view: ViewReplica,
    config: EndpointConfig,
}

impl Bench {
    fn apply(&mut self, changes: &[Change]) -> Vec<ConfigChange> {
        let changes = self.view.apply(Revision(1), changes);
        self.config.changes(self.view.view(), &changes)
    }

    /// Applies changes, and returns the instances' identities if the service is put again.
    fn instances_after(&mut self, changes: &[Change]) -> Option<Vec<u32>> {
        let put = self.apply(changes).into_iter().find_map(|change| match change {
            ConfigChange::PutService(_, config) => Some(config.identities),
            _ => None,
        });
        put.map(|identities| identities.iter().map(|id| id.0).collect())
    }
}

#[test]
fn a_service_is_put_again_when_the_identities_change_that_it_selects() {
    let mut bench =
        Bench { view: ViewReplica::default(), config: EndpointConfig::new(network_name()) };
    let first = [put_service("app=api"), put_identity(1, "app=api"), put_identity(2, "app=web")];
    assert_eq!(bench.instances_after(&first), Some(vec![1]));
    assert_eq!(bench.instances_after(&[put_identity(3, "app=web")]), None);
    assert_eq!(bench.instances_after(&[put_identity(4, "app=api,v=2")]), Some(vec![1, 4]));
    assert_eq!(bench.instances_after(&[put_identity(1, "app=other")]), Some(vec![4]));
    assert_eq!(bench.instances_after(&[drop_identity(4), drop_identity(3)]), Some(vec![]));
    assert_eq!(bench.instances_after(&[put_service("app in (other, web)")]), Some(vec![1, 2]));
    let removed = bench.apply(&[Change::Drop(service_key())]);
    assert_eq!(removed, [ConfigChange::RemoveService("api".parse().unwrap())]);
    assert_eq!(bench.instances_after(&[put_identity(5, "app=web")]), None);
}

#[test]
fn an_identity_has_the_weight_that_the_service_gives_its_labels() {
    let mut bench =
        Bench { view: ViewReplica::default(), config: EndpointConfig::new(network_name()) };
    let mut weights_after = |changes: &[Change]| -> Option<Vec<(u32, u16)>> {
        let put = bench.apply(changes).into_iter().find_map(|change| match change {
            ConfigChange::PutService(_, config) => Some(config.weights),
            _ => None,
        });
        put.map(|weights| weights.iter().map(|(id, weight)| (id.0, weight.get())).collect())
    };
    let first =
        [put_service("app=api"), put_identity(1, "app=api"), put_identity(2, "app=api,v=2")];
    assert_eq!(weights_after(&first), Some(vec![(2, 5)]));
    assert_eq!(weights_after(&[put_identity(1, "app=api,v=2")]), Some(vec![(1, 5), (2, 5)]));
    assert_eq!(weights_after(&[put_identity(2, "app=api,v=3")]), Some(vec![(1, 5)]));
    assert_eq!(weights_after(&[put_identity(3, "app=web,v=2")]), None);
}

#[test]
fn this_nodes_findings_go_before_the_views_service_by_service() {
    let mut bench =
        Bench { view: ViewReplica::default(), config: EndpointConfig::new(network_name()) };
    let [api, admin, db]: [ServiceName; 3] =
        ["api", "admin", "db"].map(|name| name.parse().unwrap());
    let id: WorkloadId = "w-1".parse().unwrap();
    let put = |states| put_workload("node-a", states);
    let states_of = |change: Option<ConfigChange>| match change {
        Some(ConfigChange::PutWorkload(_, config)) => config.states,
        other => panic!("{other:?}"),
    };
    let unhealthy = |names: [&ServiceName; 2]| names.into_iter().cloned().collect();
    let of_view = InstanceStates { draining: false, unhealthy: unhealthy([&api, &db]) };
    bench.apply(&[put(of_view.clone())]);
    let findings =
        Findings::from([(api.clone(), Health::Healthy), (admin.clone(), Health::Unhealthy)]);
    let mut set = |findings: &Findings| bench.config.set_findings(bench.view.view(), &id, findings);
    assert_eq!(states_of(set(&findings)).unhealthy, unhealthy([&admin, &db]));
    assert_eq!(set(&findings), None, "nothing has changed");
    assert_eq!(states_of(set(&Findings::new())), of_view, "the view's word holds");
    set(&findings);
    // What the view says later changes none of this node's findings, and drains are the view's.
    let drained = InstanceStates { draining: true, ..InstanceStates::default() };
    let states = states_of(bench.apply(&[put(drained)]).pop());
    assert_eq!((states.draining, states.unhealthy), (true, [admin].into()));
}

#[test]
fn peers_are_of_this_site_if_both_sites_are_known_and_the_same() {
    let mut bench =
        Bench { view: ViewReplica::default(), config: EndpointConfig::new(network_name()) };
    let put_network = |site: Option<&str>| {
        let spec = NetworkSpec { site: site.map(str::to_owned), ..NetworkSpec::with_mtu(1420) };
        Change::Put(ResourceKey::Network(network_name()), Resource::Network(spec))
    };
    let put_peer = |site: Option<&str>| {
        let spec = PeerSpec {
            public_key: meshward_types::PublicKey([7; 32]),
            candidates: vec![],
            prefixes: vec![],
            site: site.map(str::to_owned),
        };
        let key = ResourceKey::Peer(network_name(), "node-b".parse().unwrap());
        Change::Put(key, Resource::Peer(spec))
    };
    // A peer is kept as long as a workload of it is known.
    bench.apply(&[put_workload("node-b", InstanceStates::default())]);
    let mut site_after = |changes: &[Change]| {
        let puts = bench.apply(changes);
        puts.into_iter().rev().find_map(|change| match change {
            ConfigChange::PutPeer(_, config) => Some(config.site),
            _ => None,
        })
    };
    assert_eq!(site_after(&[put_network(None), put_peer(None)]), Some(PeerSite::Other));
    assert_eq!(site_after(&[put_peer(Some("rack-1"))]), Some(PeerSite::Other));
    assert_eq!(site_after(&[put_network(Some("rack-1"))]), Some(PeerSite::Same));
    assert_eq!(site_after(&[put_peer(Some("rack-2"))]), Some(PeerSite::Other));
}
