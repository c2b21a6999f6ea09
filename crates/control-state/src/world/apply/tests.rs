use crate::{
    plan::PolicyUpdates,
    records::{Mutation, NodeRecord, Record},
    world::World,
};
use meshward_types::{Labels, Revision};
use std::collections::BTreeMap;

fn node(key: &str) -> Record {
    Record::Node(NodeRecord {
        name: "rack".parse().unwrap(),
        site: None,
        labels: Labels::default(),
        networks: vec![],
        key: key.into(),
        endpoints: BTreeMap::new(),
        blocks: BTreeMap::new(),
        problems: BTreeMap::new(),
        waiting: false,
        forget_after: None,
    })
}

#[test]
fn relays_are_sent_nodes_that_come_go_or_get_another_key() {
    let mut world = World::default();
    let mut told = |mutation: Mutation| -> Vec<String> {
        let deltas = world.apply(Revision(1), &[mutation], &PolicyUpdates::new());
        deltas.relays.iter().map(|delta| format!("{delta:?}")).collect()
    };
    assert_eq!(told(Mutation::Put(node("a"))).len(), 1);
    assert_eq!(told(Mutation::Put(node("a"))), Vec::<String>::new(), "nothing has changed");
    assert!(told(Mutation::Put(node("b")))[0].contains("Admit"));
    assert!(told(Mutation::Delete(node("b").key()))[0].contains("Expel"));
}
