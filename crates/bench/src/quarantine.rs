//! How soon a quarantine stops a running TCP connection, on the real data path: three nodes, real
//! daemons, real packets.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
};
use anyhow::{Result, ensure};
use meshward_api_client::{Client, Error};
use meshward_lab::Mesh;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 8080;
/// For how long a stopped connection is watched.
const WATCHED: Duration = Duration::from_millis(150);

/// Quarantines the receiver of a running connection, again and again. `quick` does so three times.
///
/// # Errors
/// If a daemon does not start, or the connection does not run.
pub fn quarantine(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let mut mesh = Mesh::start(tools.ours.clone(), &[])?;
    mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"])?;
    let nodes = ["cloud", "rack", "edge"].map(|name| mesh.node(name));
    let [cloud, rack, edge] = nodes;
    let (cloud, rack, edge) = (cloud?, rack?, edge?);
    let web = cloud.attach("shop", "app=web")?;
    let api = rack.attach("shop", "app=api")?;
    let _other = edge.attach("shop", "app=web")?;
    mesh.apply(&format!(
        "network: shop\n\
         rules: [{{ name: a, from: {{ app: web }}, to: {{ app: api }}, allow: [tcp/{PORT}] }}]\n"
    ))?;
    let received = Received::listen(&api.netns)?;
    let to = SocketAddr::new(api.v4(), PORT);
    let mut stream =
        web.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    thread::spawn(move || while stream.write_all(&[0x5a; 16 << 10]).is_ok() {});
    let (mut after, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 3 } else { 100 } {
        received.wait_running()?;
        let begun = Instant::now();
        mesh.meshctl(&["quarantine", &api.id])?;
        let returned = Instant::now();
        thread::sleep(WATCHED);
        let last = received.last();
        ensure!(last + WATCHED / 2 < Instant::now(), "the connection goes on under quarantine");
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        after.push(milliseconds(last.saturating_duration_since(returned)));
        whole.push(milliseconds(last.saturating_duration_since(begun)));
        mesh.meshctl(&["release", &api.id])?;
    }
    let beside = beside_viewers(&mesh, &api.id, if quick { 5 } else { 100 })?;
    let case = format!("3 nodes, {} times", after.len());
    let row = |metric, ours: &[f64], target| {
        Figures { bench: "quarantine", case: case.clone(), metric, unit: "ms", ours }
            .absolute(target)
    };
    Ok(vec![
        row(
            "from the command's return to the last packet, p99",
            &[crate::report::p99(&after)],
            Target::AtMost(50.0),
        ),
        row("from the command's return to the last packet", &after, Target::None),
        row("from the command's start to the last packet", &whole, Target::None),
        row("enforced everywhere, on an idle coordinator, p99", &[beside.idle], Target::None),
        row(
            "more than that while four viewers run the largest dry runs that are allowed, p99",
            &[beside.busy - beside.idle],
            Target::AtMost(50.0),
        ),
    ])
}

/// Milliseconds until a quarantine is enforced, p99.
struct Beside {
    idle: f64,
    busy: f64,
}

/// Rules and tests of the largest dry run that is allowed: each test is judged by all rules.
const RULES: usize = 4000;
const TESTS: usize = 3500;
const VIEWERS: usize = 4;

fn largest() -> String {
    let mut text = "network: shop\nrules:\n".to_owned();
    for at in 1..=RULES {
        let _ = writeln!(text, "  - {{ name: r{at}, from: {{}}, to: {{}}, allow: [tcp/{at}] }}");
    }
    text += "tests:\n";
    for at in 1..=TESTS {
        let _ = writeln!(text, "  - {{ from: {{}}, to: {{}}, port: tcp/{at}, expect: allow }}");
    }
    text
}

/// Quarantines while nobody asks for anything, and while viewers run dry runs one after the other.
fn beside_viewers(mesh: &Mesh, workload: &str, times: usize) -> Result<Beside> {
    let context =
        |path: &Path| -> Result<_> { Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?) };
    let admin = Client::coordinator(context(&mesh.context())?);
    // As `meshctl` does in this benchmark, from the coordinator's site: its address means something
    // else elsewhere.
    let site = &mesh.site.netns;
    let idle = site.run(|| quarantine_times(&admin, workload, times))??;
    let (stop, runs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let body =
        Arc::new(json!({ "files": [{ "name": "shop.yaml", "text": largest() }], "prune": false }));
    let mut viewers = Vec::new();
    for at in 0..VIEWERS {
        let printed =
            mesh.meshctl(&["credential", "create", &format!("viewer-{at}"), "--role", "viewer"])?;
        let client = Client::coordinator(serde_json::from_str(&printed)?).dry(true);
        let (stop, runs, body, site) = (stop.clone(), runs.clone(), body.clone(), site.clone());
        let run = move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            while !stop.load(Relaxed) {
                match runtime.block_on(client.post::<Value>("/v1/policies", &*body)) {
                    Ok(_) => runs.fetch_add(1, Relaxed),
                    // Its share of time is used up for now: that is how it is meant.
                    Err(Error::Refused { status: Some(429), .. }) => {
                        thread::sleep(Duration::from_millis(100));
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            Ok(())
        };
        viewers.push(thread::spawn(move || site.run(run)?));
    }
    // They are at it.
    thread::sleep(Duration::from_secs(1));
    let busy = site.run(|| quarantine_times(&admin, workload, times))??;
    stop.store(true, Relaxed);
    for viewer in viewers {
        viewer.join().map_err(|_| anyhow::anyhow!("a viewer panicked"))??;
    }
    ensure!(runs.load(Relaxed) > 0, "no dry run came to its end");
    Ok(Beside { idle, busy })
}

fn quarantine_times(client: &Client, workload: &str, times: usize) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut taken = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        let _: Value =
            runtime.block_on(client.post("/v1/quarantines", &json!({ "workload": workload })))?;
        taken.push(begun.elapsed().as_secs_f64() * 1000.0);
        let _: Value = runtime
            .block_on(client.post("/v1/quarantines/release", &json!({ "workload": workload })))?;
    }
    Ok(crate::report::p99(&taken))
}

/// What the receiver of the connection has seen.
struct Received {
    start: Instant,
    /// Microseconds from the start to the last bytes.
    last: Arc<AtomicU64>,
}

impl Received {
    fn listen(netns: &meshward_netns::Netns) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
        let (start, last) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let seen = last.clone();
        thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = vec![0; 256 << 10];
            while let Ok(1..) = stream.read(&mut buffer) {
                seen.store(start.elapsed().as_micros() as u64, Relaxed);
            }
        });
        Ok(Self { start, last })
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_micros(self.last.load(Relaxed))
    }

    fn wait_running(&self) -> Result<()> {
        let begun = Instant::now();
        while self.last() < begun + Duration::from_millis(20) {
            ensure!(begun.elapsed() < Duration::from_secs(20), "the connection does not run");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}
