//! The thread of names: it asks upstreams, and listens for queries by TCP. It is a thread of its
//! own, so that no number of queries delays the session with the coordinator.

use super::{
    context::Context,
    outside,
    resolver::{self, Question, Task, Tasks},
    streams::Streams,
};
use crate::workers::send_answer;
use meshward_types::NetworkName;
use std::{collections::HashMap, io, sync::Arc, thread, time::Duration};
use tokio::sync::mpsc;
use tracing::warn;

/// The time between two looks at all networks: for those whose listener could not be made, and that
/// are gone.
const RETRY: Duration = Duration::from_secs(30);

/// Starts the thread, which ends with the process. Returns the queue of its tasks.
///
/// # Errors
/// Fails if the kernel gives no thread.
pub(crate) fn start(context: Context) -> io::Result<Tasks> {
    let (queue, tasks) = resolver::queue();
    let service = Service { context: Arc::new(context), streams: HashMap::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || runtime.block_on(service.run(tasks));
    thread::Builder::new().name("names".into()).spawn(run)?;
    Ok(queue)
}

struct Service {
    context: Arc<Context>,
    streams: HashMap<NetworkName, Streams>,
}

impl Service {
    async fn run(mut self, mut tasks: mpsc::Receiver<Task>) {
        let mut retry = tokio::time::interval(RETRY);
        loop {
            tokio::select! {
                task = tasks.recv() => match task {
                    Some(Task::Ask(question)) => {
                        tokio::spawn(answer(self.context.clone(), question));
                    }
                    Some(Task::AskForPeer(question)) => {
                        tokio::spawn(outside::answer_peer(self.context.clone(), question));
                    }
                    Some(Task::Configure(network)) => self.configure(&network).await,
                    None => return,
                },
                _ = retry.tick() => self.configure_all().await,
            }
        }
    }

    async fn configure_all(&mut self) {
        let served = self.context.enforcement.endpoints();
        for (network, _) in &served {
            self.configure(network).await;
        }
        self.streams.retain(|network, _| served.iter().any(|(own, _)| own == network));
        self.context.forget_stopped();
    }

    /// Makes the listener of a network what the settings say.
    async fn configure(&mut self, network: &NetworkName) {
        let Self { context, streams } = self;
        let Some(served) = context.enforcement.endpoint(network) else {
            streams.remove(network);
            return;
        };
        let settings = served.resolver.settings();
        if streams.get(network).is_some_and(|own| own.is_current(&served, &settings)) {
            return;
        }
        streams.remove(network);
        if settings.addresses.is_empty() {
            return;
        }
        match Streams::open(context, network, &served, settings).await {
            Ok(own) => {
                streams.insert(network.clone(), own);
            }
            Err(error) => warn!(%network, "queries by TCP are not answered: {error:#}"),
        }
    }
}

/// Asks an upstream, and sends a workload the answer.
async fn answer(context: Arc<Context>, question: Question) {
    let Question { network, asker, ends, query, permit } = question;
    let Some(served) = context.enforcement.endpoint(&network) else { return };
    let mut answer = Vec::new();
    outside::ask(&context, &network, &served, (ends.asker.ip(), &query), &mut answer).await;
    send_answer(&served, asker, &ends, &answer);
    drop(permit);
}
