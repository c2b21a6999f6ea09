//! SIGKILL at any moment.

use super::witness::Witness;
use crate::support::{Dice, Shop, allow};
use meshward_api_types::Credential;
use meshward_lab::{Node, Workload};
use std::{
    collections::BTreeSet,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// The number of kills; `TEST_KILLS` overrides it.
const KILLS: u64 = 200;
/// The number of kills between two checks that everything comes back.
const BETWEEN_LOOKS: u64 = 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A client that writes to the coordinator without pause, and remembers what was acknowledged.
struct Writer {
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(shop: &Shop) -> Self {
        let (acknowledged, ended) =
            (Arc::<Mutex<BTreeSet<String>>>::default(), Arc::<AtomicBool>::default());
        let (netns, program) = (shop.mesh.site.netns.clone(), shop.mesh.binaries.path("meshctl"));
        let (context, done, end) = (shop.mesh.context(), acknowledged.clone(), ended.clone());
        let thread = thread::spawn(move || {
            for at in 0.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let name = format!("written-{at}");
                let mut command = Command::new(&program);
                command.arg("--context").arg(&context);
                command.args(["credential", "create", &name, "--role", "viewer"]);
                match meshward_lab::output(&netns, &mut command) {
                    Ok(_) => drop(done.lock().unwrap().insert(name)),
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Self { acknowledged, ended, thread: Some(thread) }
    }

    fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().unwrap().clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The mesh that is killed, and what has to hold.
struct Victims {
    shop: Shop,
    quarantined: Workload,
    /// The workloads that the first node has acknowledged besides.
    more: Vec<Workload>,
}

impl Victims {
    fn new() -> Self {
        let shop = Shop::new(&allow("udp/7000, tcp/8080"));
        let quarantined = shop.nodes[0].attach("shop", "app=web").unwrap();
        shop.mesh.meshctl(&["quarantine", &quarantined.id]).unwrap();
        Self { shop, quarantined, more: vec![] }
    }

    /// Ends one of them in the middle of whatever it does, sometimes while it starts, and starts it
    /// again.
    fn kill(&mut self, dice: &mut Dice) {
        let pause = Duration::from_millis(dice.below(250));
        match dice.below(4) {
            0 | 1 => {
                thread::sleep(pause);
                self.shop.mesh.coordinator.kill();
                self.shop.mesh.begin_coordinator().unwrap();
            }
            at => {
                let node = &mut self.shop.nodes[at as usize - 2];
                if at == 2 && dice.below(8) == 0 && runs(node) {
                    // Acknowledged, and then at once forgotten?
                    self.more.extend(node.attach("shop", "app=more"));
                } else {
                    thread::sleep(pause);
                }
                node.kill();
                node.begin().unwrap();
            }
        }
    }

    /// Checks that everything comes back by itself, as it was.
    fn look(&mut self, writer: &Writer, witness: &Witness) {
        let (shop, acknowledged) = (&self.shop, writer.acknowledged());
        // Nodes may not have noticed yet that their sessions are gone.
        shop.mesh.wait(|| shop.mesh.meshctl(&["nodes"]).is_ok()).unwrap();
        shop.mesh.wait(|| shop.nodes.iter().all(Node::is_connected)).unwrap();
        let listed: Vec<Credential> = shop.mesh.list("credentials").unwrap();
        let names: BTreeSet<String> = listed.into_iter().map(|one| one.name).collect();
        let lost: Vec<&String> = acknowledged.difference(&names).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let attached = shop.nodes[0].attached().unwrap();
        for Workload { id, .. } in self.more.iter().chain([&shop.web, &self.quarantined]) {
            assert!(
                attached.iter().any(|own| own.id.as_str() == id),
                "{id} is not attached any more"
            );
        }
        let before = witness.count();
        shop.mesh.wait(|| witness.count() > before).unwrap();
        assert_eq!(witness.arrived(), [(shop.web.v4(), 7000)], "only this was ever allowed");
    }
}

/// Returns `true` if the daemon answers.
fn runs(node: &Node) -> bool {
    node.status().is_ok()
}

#[test]
fn after_two_hundred_kills_nothing_acknowledged_is_lost_and_nothing_denied_has_passed() {
    let (mut dice, mut victims) = (Dice::new(), Victims::new());
    let Victims { shop, quarantined, .. } = &victims;
    let witness = Witness::start(&shop.api, &[7000, 7001], &[&shop.web, quarantined]);
    let writer = Writer::start(shop);
    for kill in 1..=number("TEST_KILLS").unwrap_or(KILLS) {
        victims.kill(&mut dice);
        if kill % BETWEEN_LOOKS == 0 {
            victims.look(&writer, &witness);
            println!("{kill} kills, {} writes acknowledged", writer.acknowledged().len());
        }
    }
    assert!(writer.acknowledged().len() > 20, "there was something to lose");
}
