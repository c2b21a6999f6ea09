//! Addresses and prefixes that are claimed twice, beside a naive reader of all claims.

use super::{local_entry::NextHop, state::Tables};
use crate::{
    config::{PeerSite, Quarantine, WorkloadConfig},
    drop_reason::DropReason,
    in_band::vouch::{self, Vouch},
    index::{PeerIndex, WorkloadIndex},
    workload::LocalWorkload,
};
use ipnet::IpNet;
use meshward_types::{IdentityId, InstanceStates, NodeName, WorkloadId};
use proptest::prelude::*;
use std::{net::IpAddr, time::Instant};

#[derive(Debug, Clone)]
enum Step {
    Put { workload: u8, node: u8, identity: u32, addresses: Vec<u8>, prefixes: Vec<u8> },
    Drop { workload: u8 },
    Add { workload: u8, addresses: Vec<u8>, prefixes: Vec<u8> },
    Remove { at: usize },
}

/// A workload by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimant {
    Local(u8),
    Remote(u8),
}

/// A claim as the naive reader keeps it.
#[derive(Debug, Clone)]
struct Naive {
    who: Claimant,
    node: u8,
    identity: u32,
    addresses: Vec<(u8, usize)>,
    prefixes: Vec<u8>,
    index: Option<WorkloadIndex>,
}

impl Naive {
    fn is_local(&self) -> bool {
        matches!(self.who, Claimant::Local(_))
    }
}

fn step() -> impl Strategy<Value = Step> {
    let some = || {
        prop::collection::btree_set(0u8..4, 0..3)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>())
    };
    prop_oneof![
        4 => (0u8..5, 0u8..3, 0u32..3, some(), some()).prop_map(
            |(workload, node, identity, addresses, prefixes)| {
                Step::Put { workload, node, identity, addresses, prefixes }
            }
        ),
        3 => (0u8..5).prop_map(|workload| Step::Drop { workload }),
        2 => (0u8..3, some(), some()).prop_map(|(workload, addresses, prefixes)| {
            Step::Add { workload, addresses, prefixes }
        }),
        2 => (0usize..3).prop_map(|at| Step::Remove { at }),
    ]
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn prefix(number: u8) -> IpNet {
    format!("10.{}.0.0/16", 100 + number).parse().unwrap()
}

fn node(number: u8) -> NodeName {
    format!("n{number}").parse().unwrap()
}

fn spec(node_number: u8, identity: u32, addresses: &[u8], prefixes: &[u8]) -> WorkloadConfig {
    WorkloadConfig {
        node: node(node_number),
        addresses: addresses.iter().copied().map(address).collect(),
        prefixes: prefixes.iter().copied().map(prefix).collect(),
        identity: IdentityId(identity),
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_first_claim_that_stands_has_an_address_and_a_prefix(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut tables = Tables::new("own".parse().unwrap());
        for number in 0..3 {
            tables.put_peer(&node(number), vec![], PeerSite::Other);
        }
        let (mut all, mut clock) = (Vec::<Naive>::new(), 0);
        for step in steps {
            clock += 1;
            match step {
                Step::Put { workload, node, identity, addresses, prefixes } => {
                    let id: WorkloadId = format!("w-{workload}").parse().unwrap();
                    tables.put_workload(&id, Some(spec(node, identity, &addresses, &prefixes)));
                    let before = all
                        .iter()
                        .position(|own| own.who == Claimant::Remote(workload))
                        .map(|at| all.remove(at));
                    let since = |address: u8| {
                        let had = before
                            .as_ref()
                            .and_then(|own| own.addresses.iter().find(|own| own.0 == address));
                        had.map_or(clock, |own| own.1)
                    };
                    let addresses =
                        addresses.iter().map(|address| (*address, since(*address))).collect();
                    all.push(Naive {
                        who: Claimant::Remote(workload),
                        node,
                        identity,
                        addresses,
                        prefixes,
                        index: None,
                    });
                }
                Step::Drop { workload } => {
                    tables.put_workload(&format!("w-{workload}").parse().unwrap(), None);
                    all.retain(|own| own.who != Claimant::Remote(workload));
                }
                Step::Add { workload, addresses, prefixes } => {
                    if all.iter().any(|own| own.who == Claimant::Local(workload)) {
                        continue;
                    }
                    let local = LocalWorkload {
                        id: format!("l-{workload}").parse().unwrap(),
                        addresses: addresses.iter().copied().map(address).collect(),
                        prefixes: prefixes.iter().copied().map(prefix).collect(),
                        vouched: Some(IdentityId(9)),
                    };
                    let index = Some(tables.add_workload(local));
                    let addresses = addresses.into_iter().map(|address| (address, clock)).collect();
                    all.push(Naive {
                        who: Claimant::Local(workload),
                        node: 9,
                        identity: 9,
                        addresses,
                        prefixes,
                        index,
                    });
                }
                Step::Remove { at } => {
                    let locals: Vec<usize> =
                        (0..all.len()).filter(|at| all[*at].is_local()).collect();
                    let Some(at) = locals.get(at) else { continue };
                    let gone = all.remove(*at);
                    tables.remove_workload(gone.index.unwrap());
                }
            }
            check(&tables, &all)?;
        }
        for own in all.clone() {
            match own.who {
                Claimant::Local(_) => drop(tables.remove_workload(own.index.unwrap())),
                Claimant::Remote(number) => {
                    tables.put_workload(&format!("w-{number}").parse().unwrap(), None);
                }
            }
        }
        check(&tables, &[])?;
        prop_assert!(tables.hosted.is_empty());
    }
}

fn check(tables: &Tables, all: &[Naive]) -> Result<(), TestCaseError> {
    let now = Instant::now();
    for number in 0..4 {
        // Workloads of this node first, then who was there first.
        let claims = all.iter().filter_map(|own| {
            let (_, since) = own.addresses.iter().find(|own| own.0 == number)?;
            Some(((!own.is_local(), *since), own))
        });
        let holder = claims.min_by_key(|(rank, _)| *rank).map(|(_, own)| own);
        let found = tables.route(now, &address(number)).ok();
        prop_assert_eq!(
            found.map(|route| (route.next_hop, route.party.identity.0)),
            holder.map(expected_route)
        );

        let behind: Vec<&Naive> = all.iter().filter(|own| own.prefixes.contains(&number)).collect();
        let found = tables.route(now, &IpAddr::from([10, 100 + number, 0, 1])).ok();
        let local = behind.iter().any(|own| own.is_local());
        match found.map(|route| (route.next_hop, route.party)) {
            None => prop_assert!(behind.is_empty()),
            Some((NextHop::Workload(index), _)) => {
                prop_assert!(behind.iter().any(|own| own.index == Some(index)));
            }
            Some((NextHop::Device(_), _)) => prop_assert!(false, "there are no devices"),
            Some((NextHop::Peer(PeerIndex(place)), party)) => {
                prop_assert!(!local, "what is behind this node needs no other");
                let first = behind.iter().map(|own| own.node).min();
                prop_assert_eq!(first, Some(place as u8));
                prop_assert!(
                    behind
                        .iter()
                        .any(|own| own.node == place as u8 && own.identity == party.identity.0)
                );
            }
        }
    }
    Ok(())
}

fn expected_route(own: &Naive) -> (NextHop, u32) {
    let peer = NextHop::Peer(PeerIndex(own.node.into()));
    (own.index.map_or(peer, NextHop::Workload), own.identity)
}

#[test]
fn a_vouch_does_not_take_an_address_from_the_peer_that_vouched_first() {
    let mut tables = Tables::new("own".parse().unwrap());
    let start = Instant::now();
    let vouch_for = |identity| Vouch { identity: IdentityId(identity), address: address(1) };
    let next_hop = |tables: &Tables, now| tables.route(now, &address(1)).unwrap().next_hop;
    tables.accept_vouch(start, PeerIndex(1), vouch_for(1));
    tables.accept_vouch(start, PeerIndex(2), vouch_for(2));
    assert_eq!(next_hop(&tables, start), NextHop::Peer(PeerIndex(1)));
    let later = start + vouch::LIFETIME;
    tables.accept_vouch(later, PeerIndex(2), vouch_for(2));
    assert_eq!(next_hop(&tables, later), NextHop::Peer(PeerIndex(2)));
}

#[test]
fn a_default_route_leads_to_no_address_of_the_network() {
    let mut tables = Tables::new("own".parse().unwrap());
    tables.prefixes = vec!["10.42.0.0/16".parse().unwrap()];
    let gateway = |id: &str, node_number, prefix: &str| {
        let prefixes = vec![prefix.parse().unwrap()];
        let config = WorkloadConfig { prefixes, ..spec(node_number, 7, &[], &[]) };
        (id.parse().unwrap(), Some(config))
    };
    for (id, config) in
        [gateway("w-000000000001", 1, "0.0.0.0/0"), gateway("w-000000000002", 2, "10.8.0.0/24")]
    {
        tables.put_workload(&id, config);
    }
    let now = Instant::now();
    let next_hop = |address: &str| {
        tables.route(now, &address.parse().unwrap()).ok().map(|route| route.next_hop)
    };
    assert_eq!(next_hop("10.42.0.9"), None);
    assert_eq!(next_hop("10.8.0.9"), Some(NextHop::Peer(PeerIndex(1))));
    assert_eq!(next_hop("192.0.2.9"), Some(NextHop::Peer(PeerIndex(0))));
    let sender = |peer, address: &str| {
        tables.sender(now, PeerIndex(peer), &address.parse().unwrap()).map(|_| ())
    };
    assert_eq!(sender(0, "192.0.2.9"), Ok(()));
    assert_eq!(sender(0, "10.42.0.9"), Err(DropReason::SpoofedByPeer));
    assert_eq!(sender(0, "10.8.0.9"), Err(DropReason::SpoofedByPeer));
    // Errors of routers that only the default route leads to come from any gateway.
    let quoted = "10.8.0.9".parse().unwrap();
    let behind = tables.route(now, &quoted).unwrap().party;
    assert!(tables.is_source_of_error(now, behind, "172.16.0.1".parse().unwrap(), quoted));
    assert!(!tables.is_source_of_error(now, behind, "10.42.0.1".parse().unwrap(), quoted));
}
