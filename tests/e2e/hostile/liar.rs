//! A member that lies in every message that it can send, on the real protocol, and what the others
//! notice of it: nothing.

use super::lies::{Others, endpoint, false_answers, hello};
use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, limited, member, resident};
use meshward_control_proto::{FromCoordinator, FromNode};
use meshward_lab::{CraftedSession, Workload};
use meshward_types::{PublicKey, WorkloadId};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

/// The time in which a lie may take effect.
const WORKING: Duration = Duration::from_millis(150);
/// The limit of the growth of the coordinator's memory, in MiB.
const MOST_GROWN: u64 = 64;

/// A mesh with a trigger, where somebody is quarantined, and a machine that has joined by the
/// rules.
struct Scene {
    shop: Shop,
    held: Workload,
    site: meshward_lab::Site,
    data: PathBuf,
    others: Others,
    memory: u64,
    _config: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let (folder, config) = limited("[nodes]\nsessions_per_minute = 100000.0\n");
        let trigger = "triggers: [{ name: scan, watch: { app: web }, when: { denied_flows: 6, \
            within: 10s }, then: quarantine }]\n";
        let mut shop = Shop::with(&["--config", &config], &(allow("tcp/8080, tcp/9090") + trigger));
        let held = shop.nodes[0].attach("shop", "app=web").unwrap();
        shop.mesh.meshctl(&["quarantine", &held.id]).unwrap();
        let (site, data, base) = member(&mut shop.mesh, "liar");
        let others = Others::of(&shop, base);
        let memory = resident(shop.mesh.coordinator.pid());
        Self { shop, held, site, data, others, memory, _config: folder }
    }

    /// Begins a session with a key and a workload of the liar's own.
    fn session(&self) -> CraftedSession {
        let mut session = CraftedSession::dial(&self.site.netns, &self.data).unwrap();
        session.say(&hello()).unwrap();
        session
    }

    /// Says something in a session of its own, and hears what comes for a while.
    fn say(&self, says: &[FromNode]) {
        let mut session = self.session();
        if !matches!(says[0], FromNode::Inventory { .. }) {
            let has = FromNode::inventory(
                vec![endpoint(PublicKey([9; 32]))],
                vec![self.others.own("liar-0", "app=own")],
            );
            for part in &has {
                session.say(part).unwrap();
            }
            // Where the answer to the question for the view is the lie, it has to be the first.
            if !matches!(says[0], FromNode::ResourceHashes { .. }) {
                let update =
                    |message| matches!(message, FromCoordinator::Update { .. }).then_some(());
                session.hear(PATIENCE, update).unwrap();
            }
        }
        // The session may end meanwhile.
        let _ = says.iter().try_for_each(|message| session.say(message));
        let _ = session.hear(WORKING, |_| None::<()>);
        drop(session);
    }

    /// Returns the coordinator's records of others: their workloads, their nodes without the time
    /// of enforcement, and the quarantines.
    fn recorded(&self) -> Vec<Value> {
        let mesh = &self.shop.mesh;
        let of_liar = |one: &Value| one["node"] == "liar" || one["name"] == "liar";
        let mut all = mesh.read(&["workloads"]).unwrap().as_array().unwrap().clone();
        all.retain(|one| !of_liar(one));
        let nodes = mesh.read(&["nodes"]).unwrap();
        assert!(
            !nodes.to_string().contains("\\u001b"),
            "what it says of itself moves no cursor: {nodes}"
        );
        for node in nodes.as_array().unwrap().iter().filter(|node| !of_liar(node)) {
            let mut node = node.clone();
            node.as_object_mut().unwrap().remove("enforced");
            all.push(node);
        }
        all.extend(mesh.read(&["quarantines"]).unwrap().as_array().unwrap().iter().cloned());
        all
    }

    /// Tells lies, and looks whether anybody else notices: of traffic, sessions, quarantines, and
    /// the coordinator's memory.
    fn unnoticed(&self, what: &str, stream: &Stream, tell: impl FnOnce()) {
        let lost = || {
            let printed = self.shop.nodes.iter().map(meshward_lab::Node::printed);
            printed
                .map(|text| text.matches("no session with the coordinator").count())
                .sum::<usize>()
        };
        let (before, lost_before) = (self.recorded(), lost());
        tell();
        assert_eq!(self.recorded(), before, "{what}");
        assert!(stream.flows(PATIENCE), "{what}: others' traffic goes on");
        assert_eq!(lost(), lost_before, "{what}: others keep their sessions");
        let to = (self.shop.api.v4(), 8080);
        assert!(
            !crate::support::tcp_echoes(
                &self.held.netns,
                to.0,
                to.1,
                8,
                Duration::from_millis(100)
            ),
            "{what}: who is quarantined is quarantined"
        );
        let grown = resident(self.shop.mesh.coordinator.pid()).saturating_sub(self.memory);
        assert!(grown <= MOST_GROWN, "{what}: the coordinator has grown by {grown} MiB");
    }

    /// A quarantine is what it always is.
    fn quarantine_holds(&self, stream: &Stream) {
        self.shop.mesh.meshctl(&["quarantine", &self.shop.web.id]).unwrap();
        assert!(!stream.flows(SILENCE));
    }
}

#[test]
fn what_a_member_says_of_others_changes_nothing_for_them() {
    let scene = Scene::new();
    let _echo = Echo::start(&scene.shop.api.netns, 8080);
    let stream = Stream::start(&scene.shop.web.netns, scene.shop.api.v4(), 8080);
    let (mut kind, mut kinds) = (Some(hello()), 0);
    while let Some(one) = kind {
        let (lies, next) = scene.others.lies(&one);
        let all: Vec<&str> = lies.iter().map(|lie| lie.what).collect();
        scene.unnoticed(&format!("one of {all:?}"), &stream, || {
            for lie in &lies {
                scene.say(&lie.says);
            }
        });
        (kind, kinds) = (next, kinds + 1);
    }
    assert_eq!(kinds, 14, "each kind of message");
    // A session that does not begin with a hello.
    scene.unnoticed("no hello", &stream, || {
        let mut session = CraftedSession::dial(&scene.site.netns, &scene.data).unwrap();
        let _ = session.say(&FromNode::Stopped(scene.shop.web.id.parse().unwrap()));
        let _ = session.hear(WORKING, |_| None::<()>);
    });
    scene.quarantine_holds(&stream);
}

#[test]
fn what_a_member_answers_about_others_is_not_taken() {
    let scene = Scene::new();
    let _echo = Echo::start(&scene.shop.api.netns, 8080);
    let stream = Stream::start(&scene.shop.web.netns, scene.shop.api.v4(), 8080);
    let mut session = scene.session();
    let web: WorkloadId = scene.shop.web.id.parse().unwrap();
    let own = web.clone();
    session.answer(move |question| false_answers(question, &own));
    for part in FromNode::inventory(
        vec![endpoint(PublicKey([9; 32]))],
        vec![scene.others.own("liar-0", "app=own")],
    ) {
        session.say(&part).unwrap();
    }
    let update = |message| matches!(message, FromCoordinator::Update { .. }).then_some(());
    session.hear(PATIENCE, update).unwrap();
    let mesh = &scene.shop.mesh;
    scene.unnoticed("false answers", &stream, || {
        for link in mesh.links().unwrap().items {
            let lies = [link.packets, link.bytes].map(|count| count > u64::MAX / 4);
            let is_own = [&link.from, &link.to].iter().any(|end| end.to_string().contains("own"));
            assert!(
                is_own || lies == [false; 2],
                "what others' workloads have sent is not its to say: {link:?}"
            );
        }
        let suggested = mesh.meshctl(&["policy", "suggest", "--network", "shop"]).unwrap();
        assert!(suggested.contains("8080"), "what is so is in it: {suggested}");
        // A rule each, named after who begins the flow.
        let rules = suggested.split("- name: ").filter(|rule| rule.contains("6666"));
        let others = rules.filter(|rule| !rule.starts_with("own-"));
        assert_eq!(others.count(), 0, "nobody's flows but its own: {suggested}");
        let file = mesh.folder().join("closed.yaml");
        std::fs::write(&file, allow("tcp/9090")).unwrap();
        let planned = mesh.meshctl(&["policy", "diff", "--file", &file.to_string_lossy()]).unwrap();
        assert!(!planned.contains("18446744073709551615"), "{planned}");
    });
    drop(session);
    scene.quarantine_holds(&stream);
}
