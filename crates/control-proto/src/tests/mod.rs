//! Tests of the encoding, and of messages in parts.

mod wire_form;

use crate::*;
use meshward_types::*;

#[test]
fn a_message_survives_its_frame() {
    let frame = encode(&FromNode::Enforced(Revision(7)));
    let length = body_length(frame[..4].try_into().unwrap(), MAX_FRAME).unwrap();
    assert_eq!(length, frame.len() - 4);
    assert!(matches!(decode(&frame[4..]), Ok(FromNode::Enforced(Revision(7)))));
}

#[test]
fn an_update_of_encoded_changes_is_the_same_message() {
    let change = |at: u32| Change::Forget("shop".parse().unwrap(), IdentityId(at));
    let parts: Vec<Vec<Change>> = vec![vec![], vec![change(1), change(300)], vec![change(7); 200]];
    let encoded: Vec<EncodedChanges> = parts.iter().map(|part| EncodedChanges::of(part)).collect();
    for (revision, urgent) in [(Revision(0), true), (Revision(1 << 40), false)] {
        let whole = FromCoordinator::Update { revision, changes: parts.concat(), urgent };
        assert_eq!(encode_update(revision, &encoded, urgent), encode(&whole));
    }
}

#[test]
fn what_a_node_has_comes_whole_in_parts_that_fit() {
    let report = |at: u32| WorkloadReport {
        id: format!("w-{at}").parse().unwrap(),
        network: "shop".parse().unwrap(),
        name: "web".parse().unwrap(),
        labels: Labels::default(),
        addresses: vec!["10.42.0.1".parse().unwrap()],
        prefixes: vec![],
        device: None,
        accepts: vec![],
        measurement: None,
        signatures: vec![],
        objection: Some("x".repeat(1000)),
        unhealthy: vec![],
    };
    for count in [0, 1, 600, 5000] {
        let all: Vec<WorkloadReport> = (0..count).map(report).collect();
        let parts = FromNode::inventory(vec![], all.clone());
        let mut came = vec![];
        for (at, part) in parts.iter().enumerate() {
            let frame = encode(part);
            assert!(frame.len() <= MAX_FRAME);
            let FromNode::Inventory { workloads, is_last, .. } = decode(&frame[4..]).unwrap()
            else {
                panic!()
            };
            assert_eq!(is_last, at + 1 == parts.len());
            came.extend(workloads);
        }
        assert_eq!(came, all);
    }
    let empty = FromNode::resource_hashes(view::ResourceHashes::new());
    assert!(matches!(&empty[..], [FromNode::ResourceHashes { is_last: true, .. }]));
}

#[test]
fn an_oversized_or_malformed_message_is_refused() {
    assert!(body_length(u32::MAX.to_le_bytes(), MAX_FRAME).is_err());
    assert!(decode::<FromNode>(&[250, 1, 2]).is_err());
}
