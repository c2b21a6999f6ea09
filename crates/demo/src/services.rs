//! The demo's part about services: what clients notice while instances slow down, die and come.

use super::{Workload, get, millis, start_part, step};
use anyhow::{Context, Result, ensure};
use meshward_lab::{Mesh, Node};
use meshward_netns::Netns;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The services of the example, which are added to its policy.
const SERVICES: &str = include_str!("../../../examples/shop/services.yaml");
/// The port of the service, and that of its instances.
const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// The pause between two requests of the client.
const PAUSE: Duration = Duration::from_millis(4);
/// The time after which a request has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// The time for which requests are counted, after each change.
const PHASE: Duration = Duration::from_secs(3);
/// The time for which a slow instance answers late.
const LATE: Duration = Duration::from_millis(200);

/// A request: when it was begun, how long its answer took, and which instance gave it.
struct Request {
    begun: Instant,
    took: Duration,
    /// `None`: there was no answer.
    by: Option<String>,
}

/// A client that asks the service all the time, on a connection each.
struct Client {
    ended: Arc<AtomicBool>,
    requests: mpsc::Receiver<Request>,
    thread: JoinHandle<()>,
}

impl Client {
    fn start(netns: &Netns, to: IpAddr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (sender, requests) = mpsc::channel();
        let (netns, end) = (netns.clone(), ended.clone());
        let thread = thread::spawn(move || {
            let _ = netns.run(|| {
                while !end.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let by = get(SocketAddr::new(to, PORT), "/", PATIENCE);
                    let request = Request { begun, took: begun.elapsed(), by };
                    if sender.send(request).is_err() {
                        return;
                    }
                    thread::sleep(PAUSE);
                }
            });
        });
        Self { ended, requests, thread }
    }

    /// Returns what was asked within a phase that begins now.
    fn phase(&self) -> Vec<Request> {
        let begun = Instant::now();
        thread::sleep(PHASE);
        self.requests.try_iter().filter(|request| request.begun >= begun).collect()
    }

    /// Waits for requests that are as wanted.
    fn wait_until(&self, wanted: impl Fn(&[Request]) -> bool) -> Result<()> {
        let (mut requests, until) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        while !wanted(&requests) {
            ensure!(Instant::now() < until, "the requests are not as wanted after 20 s");
            requests.extend(self.requests.recv_timeout(PATIENCE * 2));
        }
        Ok(())
    }

    fn end(self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

/// Prints a phase: how many requests there were, how long they took, and who answered.
fn print(what: &str, requests: &[Request]) {
    let mut times: Vec<Duration> = requests.iter().map(|request| request.took).collect();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let [median, tail] = [50, 99].map(|share| millis(at(share), Duration::ZERO));
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for by in requests.iter().filter_map(|request| request.by.as_deref()) {
        *shares.entry(by).or_default() += 1;
    }
    let shares: Vec<String> = shares
        .iter()
        .map(|(by, count)| format!("{by} {} %", count * 100 / requests.len().max(1)))
        .collect();
    println!(
        "  {what:34} {:5} requests, {} failed, p50 {median:5.1} ms, p99 {tail:6.1} ms: {}",
        requests.len(),
        failed(requests),
        shares.join(", ")
    );
}

fn failed(requests: &[Request]) -> usize {
    requests.iter().filter(|request| request.by.is_none()).count()
}

/// Returns the share of requests that an instance has answered.
fn share(requests: &[Request], name: &str) -> f64 {
    let own = requests.iter().filter(|request| request.by.as_deref() == Some(name)).count();
    own as f64 / requests.len().max(1) as f64
}

/// Shows the service `api`, with three instances on two sites, as `web` uses it.
pub(super) fn show(mesh: &mut Mesh, nodes: &[Node], shop: &Path, web: &Workload) -> Result<()> {
    println!("\nThe service api.shop.mesh: three instances at two sites");
    let start = |name: &str, node: &Node| start_part(node, shop, name, "app=api,env=prod", TARGET);
    let second = step("api-2 starts at private-cloud", || start("api-2", &nodes[1]))?;
    let mut third = step("api-3 starts at rack", || start("api-3", &nodes[2]))?;
    step("examples/shop/services.yaml is added to the policy", || {
        mesh.apply(&format!("{}\n{SERVICES}", super::POLICY))
    })?;
    let to = step("its address is asked from the node's resolver", || virtual_address(web))?;
    let client = Client::start(&web.netns, to);
    let is_used = |name: &str| client.wait_until(|own| share(own, name) > 0.0);
    for name in ["api", "api-2", "api-3"] {
        is_used(name).with_context(|| format!("{name} gets no request"))?;
    }
    println!();
    let phase = |what: &str| {
        let requests = client.phase();
        print(what, &requests);
        requests
    };
    let well = phase("all are well");
    set_delay(&second, LATE)?;
    phase("api-2 answers 200 ms late");
    let late = phase("(3 s later)");
    set_delay(&second, Duration::ZERO)?;
    third.process.take().context("api-3 is no process")?.kill();
    let died = phase("api-2 is well, api-3 dies");
    let fourth = start("api-4", &nodes[2])?;
    phase("api-4 starts at rack");
    let added = phase("(3 s later)");
    client.end();
    ensure!(failed(&well) + failed(&late) + failed(&added) == 0, "requests have failed");
    ensure!(failed(&died) <= 1, "{} requests have failed", failed(&died));
    ensure!(share(&late, "api-2") < 0.15, "the slow instance is still used");
    ensure!(share(&added, "api-4") > 0.1, "the new instance is not used");
    drop((second, third, fourth));
    step("the instances are gone, and the policy is as before", || mesh.apply(super::POLICY))?;
    Ok(())
}

/// Has an instance answer late from now on.
fn set_delay(instance: &Workload, delay: Duration) -> Result<()> {
    let path = format!("/delay/{}", delay.as_millis());
    let own = SocketAddr::new(instance.v4(), TARGET);
    let said = instance.netns.run(|| get(own, &path, PATIENCE))?;
    said.map(drop).context("the instance does not answer itself")
}

/// Returns the virtual address of the service, as a program in a workload resolves its name.
fn virtual_address(workload: &Workload) -> Result<IpAddr> {
    let process = workload.process.as_ref().context("web is no process")?;
    let within = ["--target", &process.pid().to_string(), "--mount", "--net"];
    let found = Command::new("nsenter")
        .args(within)
        .args(["getent", "ahostsv4", "api.shop.mesh"])
        .output()
        .context("cannot run nsenter")?;
    let said = String::from_utf8_lossy(&found.stdout);
    let first = said.split_whitespace().next();
    let stderr = || format!("no address: {}", String::from_utf8_lossy(&found.stderr));
    Ok(first.with_context(stderr)?.parse()?)
}
