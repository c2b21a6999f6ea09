//! Fragments in any order between nodes, and what is known of what workloads try.

use super::*;

/// A packet to api in pieces of 800 bytes, in order.
fn pieces() -> Vec<Vec<u8>> {
    let whole = packet("10.42.0.1", "10.42.1.1", 6, (4000, 8080), &[7; 3000]);
    let transport = &whole[20..];
    let piece = |at: usize| {
        let part = &transport[at..transport.len().min(at + 800)];
        let more = u16::from(at + 800 < transport.len());
        let mut piece = [&whole[..20], part].concat();
        piece[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        piece[4..6].copy_from_slice(&[0, 9]);
        piece[6..8].copy_from_slice(&((at / 8) as u16 | more << 13).to_be_bytes());
        piece
    };
    (0..transport.len()).step_by(800).map(piece).collect()
}

#[test]
fn fragments_wait_for_the_first_at_both_nodes() {
    let pieces = pieces();
    assert_eq!(pieces.len(), 4);
    for order in [[3, 2, 1, 0], [1, 0, 3, 2], [0, 1, 2, 3]] {
        let mut pair = Pair::new();
        for number in order {
            pair.send(0, &pieces[number]);
        }
        let mut delivered = pair.nodes[1].wire.delivered.clone();
        delivered.sort();
        let mut sent = pieces.clone();
        sent.sort();
        assert_eq!(delivered, sent, "{order:?}");
        assert_eq!(pair.drops(0, DropReason::OrphanFragment), 0);
    }
    // The network between the nodes changes their order.
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    pair.nodes[1].wire.delivered.clear();
    let (now, workload) = (pair.now, pair.nodes[0].workload);
    for piece in &pieces {
        pair.nodes[0].send(now, workload, Offload::None, piece);
    }
    pair.nodes[0].wire.datagrams.reverse();
    pair.carry();
    assert_eq!(pair.nodes[1].wire.delivered.len(), 4);
}

#[test]
fn fragments_whose_first_does_not_come_are_dropped_and_counted() {
    let mut pair = Pair::new();
    let pieces = pieces();
    pair.send(0, &pieces[1]);
    pair.send(0, &pieces[2]);
    pair.wait(Duration::from_secs(3));
    assert_eq!(pair.drops(0, DropReason::OrphanFragment), 2);
    pair.send(0, &pieces[0]);
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
}

#[test]
fn fragments_of_a_quarantined_workload_do_not_wait() {
    let mut pair = Pair::new();
    let workload = pair.nodes[0].workload;
    pair.nodes[0].endpoint.quarantine_locally(workload, true);
    pair.send(0, &pieces()[1]);
    assert_eq!(pair.drops(0, DropReason::Quarantined), 1);
}

#[test]
fn whatever_a_workload_tries_and_does_not_get_is_known() {
    let pair = &mut Pair::new();
    pair.nodes[0].endpoint.watch_denials(true);
    pair.nodes[0].endpoint.add_workload(LocalWorkload {
        prefixes: vec![],
        id: id(8),
        addresses: vec!["10.42.0.8".parse().unwrap()],
        vouched: None,
    });
    // Denied by port, nobody there, and a neighbour that was refused.
    for to in ["10.42.1.1", "10.42.1.99", "10.42.0.8"] {
        pair.send(0, &packet("10.42.0.1", to, 6, (4000, 22), b""));
    }
    pair.send(0, &to_api());
    let tried: Vec<_> = pair.nodes[0].endpoint.take_denials();
    let to: Vec<String> = tried.iter().map(|denial| denial.destination.to_string()).collect();
    assert_eq!(to, ["10.42.1.1", "10.42.1.99", "10.42.0.8"]);
    assert!(
        tried.iter().all(|denial| (denial.port, denial.workload) == (22, pair.nodes[0].workload))
    );
}
