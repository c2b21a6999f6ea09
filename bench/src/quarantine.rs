//! How soon a quarantine stops a running TCP connection, on the real data path: three nodes, real daemons, real packets.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
};
use anyhow::{Result, ensure};
use meshward_lab::Mesh;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
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
        "network: shop\nrules: [{{ name: a, from: {{ app: web }}, to: {{ app: api }}, allow: [tcp/{PORT}] }}]\n"
    ))?;
    let received = Received::listen(&api.netns)?;
    let to = SocketAddr::new(api.v4(), PORT);
    let mut stream = web.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
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
    let case = format!("3 nodes, {} times", after.len());
    let row = |metric, ours: &[f64], target| {
        Figures { bench: "quarantine", case: case.clone(), metric, unit: "ms", ours }.absolute(target)
    };
    Ok(vec![
        row(
            "from the command's return to the last packet, p99",
            &[crate::report::p99(&after)],
            Target::AtMost(50.0),
        ),
        row("from the command's return to the last packet", &after, Target::None),
        row("from the command's start to the last packet", &whole, Target::None),
    ])
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
