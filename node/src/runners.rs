//! Runners: each `meshctl run` that runs commands of health checks beside its own command. The node
//! itself starts no program: a runner has the user, the limits and the files of the workload.
//!
//! A runner asks for commands over the local API, and waits for them there.

use meshward_api_types::local::{CommandEnd, RunnerCommand};
use meshward_types::WorkloadId;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

/// The time for which a request for commands waits for one.
const WAIT: Duration = Duration::from_secs(10);
/// The time for which a runner counts as there between two requests.
const BETWEEN: Duration = Duration::from_secs(5);

/// The runners of this node's workloads.
#[derive(Default)]
pub struct Runners {
    all: Mutex<BTreeMap<WorkloadId, Runner>>,
    /// Notified when there is a command.
    changed: Notify,
}

struct Runner {
    /// The requests that wait for commands now.
    requests: usize,
    /// The end of the last request.
    last: Instant,
    /// The number of the last command.
    number: u64,
    /// The commands that it has not been given yet.
    waiting: Vec<RunnerCommand>,
    /// Where the ends of commands are told.
    begun: BTreeMap<u64, oneshot::Sender<CommandEnd>>,
}

impl Runners {
    /// Has a workload's runner run a command; `None` if there is no runner. Dropped before its end,
    /// the end is forgotten; the runner kills a command after its time.
    pub(crate) async fn run(
        &self,
        id: &WorkloadId,
        command: &[String],
        timeout: Duration,
    ) -> Option<CommandEnd> {
        let (number, end) = self.begin(id, command, timeout)?;
        let _forgotten = Forgotten { runners: self, id, number };
        end.await.ok()
    }

    fn begin(
        &self,
        id: &WorkloadId,
        command: &[String],
        timeout: Duration,
    ) -> Option<(u64, oneshot::Receiver<CommandEnd>)> {
        let mut all = self.all.lock();
        let runner = all.get_mut(id).filter(|runner| runner.is_there())?;
        runner.number += 1;
        let (sender, end) = oneshot::channel();
        runner.begun.insert(runner.number, sender);
        runner.waiting.push(RunnerCommand {
            number: runner.number,
            command: command.to_vec(),
            timeout_millis: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        });
        let number = runner.number;
        drop(all);
        self.changed.notify_waiters();
        Some((number, end))
    }

    /// Returns the commands that a workload's runner is to run. Waits for a while for one.
    pub(crate) async fn next(&self, id: &WorkloadId) -> Vec<RunnerCommand> {
        let _request = Request::begin(self, id);
        let commands = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let taken = self.all.lock().get_mut(id).map(|own| std::mem::take(&mut own.waiting));
                match taken {
                    Some(taken) if taken.is_empty() => changed.await,
                    taken => return taken.unwrap_or_default(),
                }
            }
        };
        timeout(WAIT, commands).await.unwrap_or_default()
    }

    /// Notes the end of a command. Nobody may wait for it any more.
    pub(crate) fn ended(&self, id: &WorkloadId, number: u64, end: CommandEnd) {
        let mut all = self.all.lock();
        if let Some(waiting) = all.get_mut(id).and_then(|runner| runner.begun.remove(&number)) {
            let _ = waiting.send(end);
        }
    }
}

impl Runner {
    fn is_there(&self) -> bool {
        self.requests > 0 || self.last.elapsed() < BETWEEN
    }
}

/// A request of a runner, while it waits.
struct Request<'a> {
    runners: &'a Runners,
    id: &'a WorkloadId,
}

impl<'a> Request<'a> {
    fn begin(runners: &'a Runners, id: &'a WorkloadId) -> Self {
        let mut all = runners.all.lock();
        all.retain(|_, runner| runner.is_there());
        let new = || Runner {
            requests: 0,
            last: Instant::now(),
            number: 0,
            waiting: vec![],
            begun: BTreeMap::new(),
        };
        all.entry(id.clone()).or_insert_with(new).requests += 1;
        Self { runners, id }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Some(runner) = self.runners.all.lock().get_mut(self.id) {
            runner.requests -= 1;
            runner.last = Instant::now();
        }
    }
}

/// A command whose end nobody waits for any more, when this is dropped.
struct Forgotten<'a> {
    runners: &'a Runners,
    id: &'a WorkloadId,
    number: u64,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        if let Some(runner) = self.runners.all.lock().get_mut(self.id) {
            runner.begun.remove(&self.number);
            runner.waiting.retain(|command| command.number != self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(1);

    fn id() -> WorkloadId {
        "w-1".parse().unwrap()
    }

    #[tokio::test]
    async fn a_command_is_run_by_the_runner_that_waits_and_by_none_if_there_is_none() {
        let (runners, id) = (Runners::default(), id());
        let command = ["true".to_owned()];
        assert_eq!(runners.run(&id, &command, TIME).await, None);
        let (given, end) = tokio::join!(runners.next(&id), async {
            tokio::task::yield_now().await;
            let run = runners.run(&id, &command, TIME);
            let tell = async {
                tokio::task::yield_now().await;
                runners.ended(&id, 1, CommandEnd::Status(7));
            };
            tokio::join!(run, tell).0
        });
        assert_eq!(
            (given.len(), &given[0].command[..], given[0].timeout_millis),
            (1, &command[..], 1000)
        );
        assert_eq!(end, Some(CommandEnd::Status(7)));
        let other: WorkloadId = "w-2".parse().unwrap();
        assert_eq!(runners.run(&other, &command, TIME).await, None);
    }

    #[tokio::test]
    async fn a_command_that_nobody_waits_for_is_not_given_out_and_leaves_nothing() {
        let (runners, id) = (Runners::default(), id());
        drop(Request::begin(&runners, &id));
        let command = ["sleep".to_owned()];
        let run = runners.run(&id, &command, TIME);
        assert!(timeout(Duration::from_millis(10), run).await.is_err());
        let all = runners.all.lock();
        assert!(all[&id].waiting.is_empty() && all[&id].begun.is_empty());
    }
}
