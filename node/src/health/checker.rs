//! The thread that makes the checks.

use super::{
    check::{CheckState, Outcome},
    probes::Prober,
    wanted::{Subject, WantedCheck, wanted},
};
use crate::{app::Node, attachment::Findings};
use meshward_api_types::local::{CheckState as ShownState, LocalCheck};
use meshward_runtime::random;
use meshward_types::{Health, HealthProbe, ServiceName, WorkloadId};
use parking_lot::Mutex;
use std::{collections::BTreeMap, io, sync::Arc, thread, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::info;

/// The shortest time between two looks at the view, however often it changes.
const LOOK: Duration = Duration::from_millis(200);
/// The longest time between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The bound on the first pause of checks that are taken up again after a restart, so that they do
/// not all begin at once.
const SPREAD: Duration = Duration::from_secs(5);
/// The time between the begins of checks that begin together, on average.
const SPACING: Duration = Duration::from_millis(1);

/// Starts the thread, which ends with the process.
///
/// # Errors
/// Fails if the kernel gives no thread.
pub fn start(node: Arc<Node>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let prober = Arc::new(Prober::new(&node.config, node.runners.clone())?);
    let checker = Checker { node, prober, checked: BTreeMap::new() };
    thread::Builder::new().name("health".into()).spawn(move || runtime.block_on(checker.run()))?;
    Ok(())
}

/// The checks that are made now.
struct Checker {
    node: Arc<Node>,
    prober: Arc<Prober>,
    checked: BTreeMap<WorkloadId, Checked>,
}

/// A workload that is checked; its tasks end with it.
struct Checked {
    states: Arc<States>,
    _tasks: JoinSet<()>,
}

/// What is known of a workload.
struct States {
    node: Arc<Node>,
    id: WorkloadId,
    subject: Subject,
    /// The state of each of its checks.
    all: Mutex<Vec<CheckState>>,
}

impl Checker {
    async fn run(mut self) {
        loop {
            let node = self.node.clone();
            let changed = node.enforcement.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.look();
            let _ = timeout(LOOK_AGAIN, changed).await;
            sleep(LOOK).await;
        }
    }

    /// Begins and ends checks as the view says.
    fn look(&mut self) {
        let node = self.node.clone();
        let wanted = wanted(&node.enforcement, &node.workloads);
        self.checked.retain(|id, _| {
            let is_wanted = wanted.contains_key(id);
            if !is_wanted {
                node.workloads.note_findings(id, Findings::new(), vec![]);
            }
            is_wanted
        });
        let is_new = |(id, subject): &(WorkloadId, Subject)| {
            !self.checked.get(id).is_some_and(|own| {
                let own = &own.states.subject;
                own.checks == subject.checks && own.is_at(&subject.attachment)
            })
        };
        let new: Vec<(WorkloadId, Subject)> = wanted.into_iter().filter(is_new).collect();
        let count: usize = new.iter().map(|(_, subject)| subject.checks.len()).sum();
        let spread = SPREAD.min(SPACING * u32::try_from(count).unwrap_or(u32::MAX));
        for (id, subject) in new {
            let before = self.checked.get(&id).map(|own| own.states.clone());
            let begun = self.begin(id.clone(), subject, before.as_deref(), spread);
            self.checked.insert(id, begun);
        }
        // An endpoint that was started anew does not know the findings.
        for own in self.checked.values() {
            own.states.tell();
        }
    }

    /// Begins the checks of a workload, spread over some time. Those that were made before go on as
    /// they were.
    fn begin(
        &self,
        id: WorkloadId,
        subject: Subject,
        before: Option<&States>,
        spread: Duration,
    ) -> Checked {
        let known = &subject.attachment.findings;
        let state = |own: &WantedCheck| match before {
            None => {
                let mut found = own.services.iter().filter_map(|service| known.get(service));
                CheckState::restored(found.next().copied())
            }
            Some(before) => {
                let all = before.all.lock();
                let mut known = before.subject.checks.iter().zip(&*all);
                let same = known.find(|(wanted, _)| wanted.check == own.check);
                same.map(|(_, state)| state.clone()).unwrap_or_default()
            }
        };
        let all: Vec<CheckState> = subject.checks.iter().map(state).collect();
        let node = self.node.clone();
        let states = Arc::new(States { node, id, subject, all: Mutex::new(all) });
        let mut tasks = JoinSet::new();
        for number in 0..states.subject.checks.len() {
            tasks.spawn(states.clone().keep(number, self.prober.clone(), spread));
        }
        Checked { states, _tasks: tasks }
    }
}

impl States {
    /// Makes a check, for ever.
    async fn keep(self: Arc<Self>, number: usize, prober: Arc<Prober>, spread: Duration) {
        let Some(WantedCheck { check, port, services }) = self.subject.checks.get(number) else {
            return;
        };
        let mut probe = prober.probe(&self.subject.attachment, check, *port);
        let is_known = self.all.lock()[number].health.is_some();
        let spread = if is_known { SPREAD } else { spread };
        sleep(spread.min(check.every).mul_f64(f64::from(turn()) / f64::from(u16::MAX))).await;
        loop {
            let begun = Instant::now();
            let outcome = probe.attempt().await;
            self.node.workloads.count_probe(kind(&check.probe), word(&outcome));
            let (is_changed, pause) = {
                let state = &mut self.all.lock()[number];
                let before = state.clone();
                state.note(outcome, check);
                self.log(services, before.health.unwrap_or_default(), state);
                (*state != before, state.pause(check, turn()))
            };
            if is_changed {
                self.tell();
            }
            sleep_until(begun + pause).await;
        }
    }

    fn log(&self, services: &[ServiceName], before: Health, state: &CheckState) {
        let CheckState { health, problem, .. } = state;
        let workload = &self.id;
        let services = in_a_row(services);
        match (before, health.unwrap_or_default()) {
            (Health::Healthy, Health::Unhealthy) => {
                let problem = problem.as_deref().unwrap_or_default();
                info!(%workload, services, "unhealthy: {problem}");
            }
            (Health::Unhealthy, Health::Healthy) => info!(%workload, services, "healthy again"),
            _ => {}
        }
    }

    /// Has the findings enforced and reported, if they are others than before.
    fn tell(&self) {
        let all = self.all.lock();
        let shown = |(wanted, state): (&WantedCheck, &CheckState)| LocalCheck {
            probe: in_words(wanted),
            services: wanted.services.clone(),
            state: match state.health {
                None => ShownState::Unknown,
                Some(Health::Healthy) => ShownState::Healthy,
                Some(Health::Unhealthy) => ShownState::Unhealthy,
            },
            failures: state.failures,
            problem: state.problem.clone(),
        };
        let checks = self.subject.checks.iter().zip(&*all).map(shown).collect();
        let findings = findings(self.subject.checks.iter().zip(&*all));
        self.node.workloads.note_findings(&self.id, findings, checks);
    }
}

/// Returns the findings, by service. A service has none before its check has one.
fn findings<'a>(checks: impl Iterator<Item = (&'a WantedCheck, &'a CheckState)>) -> Findings {
    let found = checks.filter_map(|(wanted, state)| Some((wanted, state.health?)));
    found
        .flat_map(|(wanted, health)| wanted.services.iter().map(move |own| (own.clone(), health)))
        .collect()
}

fn in_a_row(services: &[ServiceName]) -> String {
    services.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" ")
}

fn turn() -> u16 {
    u16::from_be_bytes(random())
}

/// Returns the kind of a probe, as metrics call it.
fn kind(probe: &HealthProbe) -> &'static str {
    match probe {
        HealthProbe::Http(_) => "http",
        HealthProbe::Tcp => "tcp",
        HealthProbe::Grpc(_) => "grpc",
        HealthProbe::Exec(_) => "exec",
    }
}

/// Returns a probe's outcome, as metrics call it.
fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "failed",
        Outcome::TimedOut => "timed_out",
        Outcome::Impossible(_) => "impossible",
    }
}

/// Returns a check as people are shown it.
fn in_words(WantedCheck { check, port, .. }: &WantedCheck) -> String {
    match &check.probe {
        HealthProbe::Http(path) => format!("http :{port}{path}"),
        HealthProbe::Tcp => format!("tcp :{port}"),
        HealthProbe::Grpc(service) if service.is_empty() => format!("grpc :{port}"),
        HealthProbe::Grpc(service) => format!("grpc :{port} {service}"),
        HealthProbe::Exec(command) => format!("exec {}", command.join(" ")),
    }
}
