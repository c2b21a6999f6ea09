//! A pool of threads for long computations that are not urgent: dry runs, policy tests,
//! explanations.
//!
//! The threads have a lower priority than everything else, and there are fewer of them than cores.
//! Each credential has a fair share: the one that has used the least time recently comes next, the
//! number of requests that wait is bounded for each, and a credential that has used up its time is
//! refused with the time at which to retry.

use meshward_control_state::Refusal;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// The maximum number of threads.
const MAX_THREADS: usize = 4;
/// The nice value of the threads (`nice(2)`).
const NICE: i32 = 10;
/// The maximum number of requests of one credential that wait or run.
const MAX_PENDING: usize = 32;
/// The maximum number of requests that wait, of all credentials.
const MAX_WAITING: usize = 256;
/// The processing time that a credential may use at once.
const BURST: Duration = Duration::from_mins(1);
/// The share of that time that it gets back, in seconds for each second.
const REFILL: f64 = 0.5;

/// The reason why work was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The credential has too much under way.
    #[error(
        "{MAX_PENDING} long requests of this credential are under way already; send this one again \
        when one of them has ended"
    )]
    Pending,
    /// The credential has used up its time.
    #[error(
        "this credential has used up its share of the coordinator's time; send this again in {0} s"
    )]
    Spent(u64),
    /// Too much waits, of all credentials.
    #[error("too many long requests wait at the coordinator; send this one again in a few seconds")]
    Full,
    /// The work has failed.
    #[error("the coordinator failed at this; see its log")]
    Failed,
}

impl Busy {
    /// Returns the number of seconds after which to try again.
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::Spent(seconds) => *seconds,
            Self::Pending | Self::Full | Self::Failed => 2,
        }
    }
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Self {
        Self::Busy { reason: busy.to_string(), retry_after: busy.retry_after() }
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// The account of one credential.
#[derive(Default)]
struct Account {
    waiting: VecDeque<Work>,
    running: usize,
    /// The processing time used, less the refill.
    used: Duration,
    /// The time of the last refill.
    at: Option<Instant>,
}

impl Account {
    fn refill(&mut self, now: Instant) {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.used = self.used.saturating_sub(passed.mul_f64(REFILL));
        self.at = Some(now);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0 && self.used.is_zero()
    }
}

#[derive(Default)]
struct Accounts {
    all: HashMap<String, Account>,
    waiting: usize,
    ended: bool,
}

impl Accounts {
    fn admit(&mut self, who: &str, now: Instant) -> Result<&mut Account, Busy> {
        if self.waiting >= MAX_WAITING {
            return Err(Busy::Full);
        }
        self.all.values_mut().for_each(|account| account.refill(now));
        self.all.retain(|_, account| !account.is_idle());
        let account = self.all.entry(who.to_owned()).or_default();
        account.refill(now);
        if account.waiting.len() + account.running >= MAX_PENDING {
            return Err(Busy::Pending);
        }
        match account.used.checked_sub(BURST) {
            None => Ok(account),
            Some(over) => Err(Busy::Spent((over.as_secs_f64() / REFILL).ceil() as u64 + 1)),
        }
    }

    /// Removes the work that comes next, with its credential: that of the one with the fewest
    /// running requests, and among those, with the least time used.
    fn next(&mut self) -> Option<(String, Work)> {
        let waiting = self.all.iter_mut().filter(|(_, account)| !account.waiting.is_empty());
        let (who, account) = waiting.min_by_key(|(_, account)| (account.running, account.used))?;
        let work = account.waiting.pop_front()?;
        account.running += 1;
        self.waiting -= 1;
        Some((who.clone(), work))
    }

    fn done(&mut self, who: &str, took: Duration) {
        if let Some(account) = self.all.get_mut(who) {
            account.running -= 1;
            account.used += took;
        }
    }
}

#[derive(Default)]
struct Shared {
    accounts: Mutex<Accounts>,
    wake: Condvar,
}

/// The pool.
pub struct Pool(Arc<Shared>);

impl Pool {
    /// Starts the threads: one for every two cores, at most [`MAX_THREADS`].
    ///
    /// # Errors
    /// Fails if a thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((cores / 2).clamp(1, MAX_THREADS))
    }

    fn with_threads(count: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        for at in 0..count {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("pool-{at}")).spawn(move || serve(&shared))?;
        }
        Ok(Self(shared))
    }

    /// Runs work for a credential, and waits for it. Work is dropped if the caller has gone by the
    /// time its turn comes.
    ///
    /// # Errors
    /// Fails with [`Busy`] if too much work waits.
    pub async fn run<T: Send + 'static>(
        &self,
        who: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (answer, answered) = oneshot::channel();
        let work = move || {
            if !answer.is_closed() {
                // The caller may have gone meanwhile.
                let _ = answer.send(work());
            }
        };
        {
            let mut accounts = self.0.accounts.lock();
            accounts.admit(who, Instant::now())?.waiting.push_back(Box::new(work));
            accounts.waiting += 1;
        }
        self.0.wake.notify_one();
        answered.await.map_err(|_| Busy::Failed)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.accounts.lock().ended = true;
        self.0.wake.notify_all();
    }
}

fn serve(shared: &Shared) {
    let thread = rustix::thread::gettid();
    // Without the permission, it keeps the priority that it has.
    let _ = rustix::process::setpriority_process(Some(thread), NICE);
    let mut accounts = shared.accounts.lock();
    loop {
        if accounts.ended {
            return;
        }
        let Some((who, work)) = accounts.next() else {
            shared.wake.wait(&mut accounts);
            continue;
        };
        parking_lot::MutexGuard::unlocked(&mut accounts, || {
            let begun = Instant::now();
            // Work that panics drops its answer channel; the hook has logged it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let took = begun.elapsed();
            shared.accounts.lock().done(&who, took);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    /// A pool of one thread that is busy until `go` is sent.
    async fn busy_pool() -> (Arc<Pool>, mpsc::Sender<()>, tokio::task::JoinHandle<Result<(), Busy>>)
    {
        let pool = Arc::new(Pool::with_threads(1).unwrap());
        let (go, wait) = mpsc::channel();
        let (begun, running) = oneshot::channel();
        let working = pool.clone();
        let busy = tokio::spawn(async move {
            let work = move || {
                let _ = begun.send(());
                let _ = wait.recv();
            };
            working.run("first", work).await
        });
        running.await.unwrap();
        (pool, go, busy)
    }

    #[tokio::test]
    async fn whoever_asks_a_lot_waits_behind_whoever_asks_once() {
        let (pool, go, busy) = busy_pool().await;
        let done = Arc::new(AtomicUsize::new(0));
        let ask = |who: &'static str| {
            let (pool, done) = (pool.clone(), done.clone());
            tokio::spawn(
                async move { pool.run(who, move || done.fetch_add(1, Ordering::SeqCst)).await },
            )
        };
        // One runs already and counts.
        let many: Vec<_> = (1..MAX_PENDING).map(|_| ask("first")).collect();
        tokio::task::yield_now().await;
        let once = ask("second");
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        assert_eq!(once.await.unwrap(), Ok(0), "it came last and is done first");
        for one in many {
            one.await.unwrap().unwrap();
        }
        busy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_credential_has_only_so_much_under_way() {
        let (pool, go, busy) = busy_pool().await;
        let ask = || {
            let pool = pool.clone();
            tokio::spawn(async move { pool.run("first", || ()).await })
        };
        let fine: Vec<_> = (1..MAX_PENDING).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        assert_eq!(pool.run("first", || ()).await, Err(Busy::Pending));
        go.send(()).unwrap();
        for one in fine {
            one.await.unwrap().unwrap();
        }
        busy.await.unwrap().unwrap();
        assert_eq!(pool.run("first", || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn what_panics_is_an_answer_and_the_thread_lives() {
        let pool = Pool::with_threads(1).unwrap();
        assert_eq!(pool.run::<()>("a", || panic!("on purpose")).await, Err(Busy::Failed));
        assert_eq!(pool.run("a", || 1).await, Ok(1));
    }

    #[test]
    fn time_that_was_used_up_comes_back() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        accounts.admit("a", now).unwrap().running += 1;
        accounts.done("a", BURST + Duration::from_secs(5));
        assert_eq!(accounts.admit("a", now).err(), Some(Busy::Spent(11)));
        assert!(accounts.admit("b", now).is_ok(), "others have theirs");
        assert!(accounts.admit("a", now + Duration::from_secs(11)).is_ok());
        accounts.admit("c", now + Duration::from_secs(1000)).unwrap();
        assert_eq!(accounts.all.len(), 1, "nothing is kept of those who have used nothing");
    }
}
