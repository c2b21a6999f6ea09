use super::{FanOuts, Loads, SHRINKS_AFTER, Subset, desired};
use meshward_control_proto::{InstanceLoad, MAX_LOADS};
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use std::time::Duration;

const BOUNDS: FanOuts = FanOuts { least: 20, most: 100, instances: 100 };

fn network() -> NetworkName {
    "shop".parse().unwrap()
}

fn service() -> ServiceName {
    "api".parse().unwrap()
}

fn node() -> NodeName {
    "client".parse().unwrap()
}

fn instance(at: usize) -> WorkloadId {
    format!("api-{at}").parse().unwrap()
}

fn load(at: usize, open: u32, connect_time: Option<Duration>) -> InstanceLoad {
    InstanceLoad {
        network: network(),
        service: service(),
        instance: instance(at),
        open,
        begun: 0,
        connect_time,
    }
}

/// A client whose flows spread over its subset, the first instances of a hundred.
struct Client {
    loads: Loads,
    fan_out: usize,
}

impl Client {
    /// Lets a second pass with so many open flows. Returns the fan-out after it.
    fn second(&mut self, at: u64, flows: u32) -> usize {
        let each = flows / self.fan_out as u32;
        self.loads.report(&node(), (0..self.fan_out).map(|at| load(at, each, None)).collect());
        let (ids, name): (Vec<WorkloadId>, NodeName) =
            ((0..self.fan_out).map(instance).collect(), node());
        let subset = Subset { node: &name, fan_out: self.fan_out, instances: ids.iter().collect() };
        let (network, service) = (network(), service());
        let now = Duration::from_secs(at);
        let changes = self.loads.decide((&network, &service), std::iter::once(subset), BOUNDS, now);
        for change in changes {
            assert_eq!((change.network, change.service), (network.clone(), service.clone()));
            self.fan_out = change.fan_out;
        }
        self.fan_out
    }
}

#[test]
fn a_subset_grows_when_its_load_doubles_and_shrinks_when_it_idles() {
    let mut client = Client { loads: Loads::default(), fan_out: 20 };
    for at in 0..60 {
        assert_eq!(client.second(at, 20 * 128), 20, "half of the limit");
    }
    let grown = client.second(60, 40 * 128);
    assert!(grown > 30, "{grown} instances within a second");
    for at in 61..120 {
        assert_eq!(client.second(at, 40 * 128), grown, "and then it stays");
    }
    let shrunk = (120..120 + 4 * SHRINKS_AFTER.as_secs()).map(|at| client.second(at, 100)).last();
    assert_eq!(shrunk, Some(20));
}

#[test]
fn no_subset_grows_beyond_the_instances() {
    let mut client = Client { loads: Loads::default(), fan_out: 20 };
    let last = (0..30).map(|at| client.second(at, 1_000_000)).last();
    assert_eq!(last, Some(100));
}

#[test]
fn no_subset_grows_if_all_instances_are_used_alike() {
    let mut client = Client { loads: Loads::default(), fan_out: 20 };
    let other: NodeName = "other".parse().unwrap();
    client.loads.report(&other, (20..100).map(|at| load(at, 250, None)).collect());
    assert_eq!((0..30).map(|at| client.second(at, 20 * 250)).last(), Some(20));
    client.loads.report(&other, (20..100).map(|at| load(at, 100, None)).collect());
    assert!(client.second(30, 20 * 250) > 20);
}

#[test]
fn a_report_without_room_for_all_instances_says_nothing_of_the_others() {
    let mut loads = Loads::default();
    loads.report(&node(), (0..MAX_LOADS).map(|at| load(at, 1, None)).collect());
    assert!(loads.may_have_flows((&network(), &service()), &node(), &instance(MAX_LOADS)));
}

#[test]
fn instances_that_have_become_slow_count_as_used() {
    let mut loads = Loads::default();
    loads.report(&node(), vec![load(0, 1, Some(Duration::from_millis(10)))]);
    assert!(loads.of(&network(), &service())[&instance(0)].used < 0.1);
    loads.report(&node(), vec![load(0, 1, Some(Duration::from_millis(80)))]);
    assert!(loads.of(&network(), &service())[&instance(0)].used > 1.0);
    // One that always was far away is not slow.
    loads.report(&node(), vec![load(1, 1, Some(Duration::from_millis(80)))]);
    assert!(loads.of(&network(), &service())[&instance(1)].used < 0.5);
}

#[test]
fn loads_without_bounds_are_counted_with_bounds() {
    let mut loads = Loads::default();
    for at in 0..3 {
        let node: NodeName = format!("client-{at}").parse().unwrap();
        let most = InstanceLoad { begun: u32::MAX, ..load(0, u32::MAX, Some(Duration::MAX)) };
        loads.report(&node, vec![most]);
    }
    let all = loads.of(&network(), &service());
    assert_eq!(all[&instance(0)].open, 3 * u64::from(u32::MAX));
    assert_eq!(all[&instance(0)].connect_time, Some(Duration::from_mins(5)));
    assert!(desired(&all) < 100_000_000);
}

#[test]
fn loads_are_the_sums_of_what_nodes_report_now() {
    let other: NodeName = "other".parse().unwrap();
    let mut loads = Loads::default();
    let open = |loads: &Loads| -> Vec<u64> {
        loads.of(&network(), &service()).values().map(|load| load.open).collect()
    };
    loads.report(&node(), vec![load(0, 5, None), load(1, 7, None), load(1, 9, None)]);
    loads.report(&other, vec![load(1, 3, Some(Duration::from_millis(2)))]);
    assert_eq!(open(&loads), [5, 10]);
    loads.report(&node(), vec![load(1, 1, None)]);
    assert_eq!(open(&loads), [4]);
    let may_have_flows =
        |loads: &Loads, at| loads.may_have_flows((&network(), &service()), &node(), &instance(at));
    assert!(may_have_flows(&loads, 1) && !may_have_flows(&loads, 0));
    loads.forget(&other);
    loads.forget(&node());
    assert!(open(&loads).is_empty() && loads.services.is_empty() && loads.by_node.is_empty());
}

#[test]
fn twice_the_load_wants_twice_the_instances() {
    let mut loads = Loads::default();
    let wanted = |loads: &Loads| desired(&loads.of(&network(), &service()));
    assert_eq!(wanted(&loads), 1);
    loads.report(&node(), (0..10).map(|at| load(at, 179, None)).collect());
    assert_eq!(wanted(&loads), 10);
    loads.report(&node(), (0..10).map(|at| load(at, 358, None)).collect());
    assert_eq!(wanted(&loads), 20);
}
