//! A member that wants more than its share, and what the others notice of it: nothing.

use crate::support::{
    Echo, PATIENCE, Shop, Stream, allow, limited, member, mesh_with, pings, tcp_echoes,
};
use meshward_api_types::Node;
use meshward_control_proto::{EndpointReport, FromCoordinator, FromNode, WorkloadReport};
use meshward_lab::CraftedSession;
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

fn report(at: u32, base: Ipv4Addr, labels: &str) -> WorkloadReport {
    WorkloadReport::of_process(
        format!("w-{at}").parse().unwrap(),
        "shop".parse().unwrap(),
        format!("greedy-{at}").parse().unwrap(),
        labels.parse().unwrap(),
        vec![IpAddr::from(Ipv4Addr::from_bits(base.to_bits() + 2 + at % 200))],
    )
}

#[test]
fn a_node_over_its_budget_hears_which_one_and_has_no_more_than_that() {
    let (_folder, config) = limited("[nodes]\nworkloads = 5\nlabel_sets = 3\n");
    let mut mesh = mesh_with(&["--config", &config]);
    let (site, data, base) = member(&mut mesh, "greedy");
    let all = (0..9).map(|at| report(at, base, &format!("app=a{}", at % 2))).collect();
    let mut session = CraftedSession::begin(&site.netns, &data, all).unwrap();
    let over = |message| match message {
        FromCoordinator::OverBudget { budget } => Some(budget),
        _ => None,
    };
    let said = session.hear(PATIENCE, over).unwrap();
    assert!(said.contains("5 workloads") && said.contains("nodes.workloads"), "{said}");
    mesh.wait(|| mesh.workloads().unwrap().len() == 5).unwrap();
    // It gives some up, and then labels are what it has too many of.
    for at in 0..4 {
        session.say(&FromNode::Stopped(format!("w-{at}").parse().unwrap())).unwrap();
    }
    for at in 20..24 {
        session.say(&FromNode::Started(report(at, base, &format!("app=b{at}")))).unwrap();
    }
    let refused = |message| match message {
        FromCoordinator::Refused { reason, .. } if reason.contains("label_sets") => Some(reason),
        _ => None,
    };
    session.hear(PATIENCE, refused).unwrap();
    let has_problem =
        |node: &Node| node.problems.iter().any(|why| why.contains("nodes.label_sets"));
    mesh.wait(|| mesh.nodes().unwrap().iter().any(has_problem)).unwrap();
    assert!(mesh.workloads().unwrap().len() <= 5);
}

#[test]
fn what_a_noisy_node_says_makes_few_revisions_and_delays_nobodys_quarantine() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let (site, data, base) = member(&mut shop.mesh, "noisy");
    let mut session = CraftedSession::begin(&site.netns, &data, vec![]).unwrap();
    let update = |message| matches!(message, FromCoordinator::Update { .. }).then_some(());
    session.hear(PATIENCE, update).unwrap();
    let before = shop.mesh.revision().unwrap();
    let endpoint = |at: u32| EndpointReport {
        network: "shop".parse().unwrap(),
        public_key: meshward_types::PublicKey([at as u8; 32]),
        port: 1000 + (at % 5000) as u16,
        reflexive: vec![],
        advertised: vec![],
        interfaces: vec![],
        relays: vec![],
    };
    let stream = Stream::start(&shop.web.netns, shop.api.addresses[0], 8080);
    let begun = std::time::Instant::now();
    let mut said = 0u32;
    while begun.elapsed() < Duration::from_secs(4) {
        let message = match said % 2 {
            0 => FromNode::Endpoint(endpoint(said)),
            _ => FromNode::Started(report(said % 100, base, &format!("app=a{}", said % 50))),
        };
        if session.say(&message).is_err() {
            break;
        }
        said += 1;
    }
    assert!(said > 1000, "{said}");
    assert!(stream.flows(PATIENCE));
    shop.mesh.meshctl(&["quarantine", &shop.api.id]).unwrap();
    assert!(!pings(&shop.web.netns, shop.api.addresses[0], Duration::from_millis(300)));
    assert!(!tcp_echoes(
        &shop.web.netns,
        shop.api.addresses[0],
        8080,
        10,
        Duration::from_millis(300)
    ));
    let revisions = shop.mesh.revision().unwrap().0 - before.0;
    assert!(revisions < u64::from(said) / 2 + 2500, "{said} messages, {revisions} revisions");
    assert!(shop.nodes.iter().all(meshward_lab::Node::is_connected));
}

#[test]
fn messages_that_are_too_long_or_none_end_their_session_alone() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let (site, data, _) = member(&mut shop.mesh, "liar");
    for bytes in [
        // A length of 2 MiB, one of 4 GiB, and what is no message.
        &[0, 0, 0x20, 0, 1, 2, 3][..],
        &[0xff, 0xff, 0xff, 0xff],
        &[3, 0, 0, 0, 250, 1, 2],
        // A list that says it has 2^28 elements.
        &[8, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0],
    ] {
        let mut session = CraftedSession::begin(&site.netns, &data, vec![]).unwrap();
        let _ = session.say_bytes(bytes);
        let ended = session.hear(PATIENCE, |_| None::<()>).unwrap_err().to_string();
        assert!(!ended.contains("nothing of the kind"), "{bytes:?}: {ended}");
    }
    assert!(shop.nodes.iter().all(meshward_lab::Node::is_connected));
}
