//! The behaviour of `--watch` when something happens to the watched objects, to the daemon that
//! answers, or to the reader.

use crate::support::{PATIENCE, Shop, allow, mesh};
use meshward_lab::Mesh;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

/// A command that goes on, and what it prints, line by line.
struct Watch {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    receive
}

impl Watch {
    fn begin(mesh: &Mesh, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = mesh.site.netns.run(|| command.spawn()).unwrap().unwrap();
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    fn of(mesh: &Mesh, arguments: &[&str]) -> Self {
        Self::begin(mesh, mesh.meshctl_command(arguments))
    }

    #[track_caller]
    fn prints(&self, text: &str) {
        until(&self.out, text, PATIENCE);
    }

    #[track_caller]
    fn says(&self, text: &str, patience: Duration) {
        until(&self.err, text, patience);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end. Returns the exit status, and the rest of standard error.
    fn end(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status, self.err.iter().collect())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn until(lines: &Receiver<String>, text: &str, patience: Duration) {
    let mut seen = Vec::new();
    while let Ok(line) = lines.recv_timeout(patience) {
        if line.contains(text) {
            return;
        }
        seen.push(line);
    }
    panic!("nothing with `{text}` came, but {seen:?}");
}

#[test]
fn a_watch_goes_on_while_its_coordinator_hangs_or_is_away_and_says_so_once() {
    let mut mesh = mesh();
    let watch = Watch::of(&mesh, &["networks", "--watch"]);
    watch.prints("shop");
    mesh.meshctl(&["network", "create", "two", "--cidr", "10.9.0.0/16"]).unwrap();
    watch.prints("two");

    let coordinator = Pid::from_raw(mesh.coordinator.pid() as i32);
    kill(coordinator, Signal::SIGSTOP).unwrap();
    watch.says("no answer for 10 s; still watching", Duration::from_secs(15));
    kill(coordinator, Signal::SIGCONT).unwrap();
    watch.says("there is an answer again", Duration::from_secs(15));
    mesh.meshctl(&["network", "delete", "two"]).unwrap();
    watch.prints("shop");

    mesh.coordinator.kill();
    watch.says("cannot reach the coordinator", PATIENCE);
    // For some rounds more nothing is said.
    assert!(watch.err.recv_timeout(Duration::from_millis(2500)).is_err());
    mesh.restart_coordinator().unwrap();
    watch.says("there is an answer again", PATIENCE);
    // What is watched goes: a list without entries is one, too.
    mesh.meshctl(&["network", "delete", "shop"]).unwrap();
    watch.says("no networks", PATIENCE);

    watch.signal(Signal::SIGINT);
    let (status, said) = watch.end();
    assert_eq!((status.signal(), said), (Some(2), vec![]), "^C ends it quietly, as shells know it");
}

#[test]
fn a_status_that_is_watched_tells_of_node_and_mesh_by_themselves() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let mut command = shop.nodes[0].meshctl_command(&["status", "--watch", "-o", "json"]);
    command.arg("--context").arg(shop.mesh.context());
    let watch = Watch::begin(&shop.mesh, command);
    watch.prints("\"nodes_connected\": 2");
    shop.nodes[1].kill();
    watch.prints("\"nodes_connected\": 1");
    shop.mesh.coordinator.kill();
    watch.prints("\"mesh\": null");
    watch.prints("\"mesh_problem\": \"cannot reach the coordinator");
    shop.nodes[0].kill();
    watch.says("still watching", PATIENCE);
    shop.mesh.restart_coordinator().unwrap();
    shop.nodes[0].start().unwrap();
    watch.prints("\"nodes_connected\": 1");
}

#[test]
fn a_watch_ends_with_its_credential_and_with_its_reader() {
    let mesh = mesh();
    let context = mesh.folder().join("guest.json");
    std::fs::write(
        &context,
        mesh.meshctl(&["credential", "create", "guest", "--role", "viewer"]).unwrap(),
    )
    .unwrap();
    let mut command = Command::new(mesh.binaries.path("meshctl"));
    command.arg("--context").arg(&context).args(["nodes", "--watch"]);
    let watch = Watch::begin(&mesh, command);
    watch.says("no nodes", PATIENCE);
    mesh.meshctl(&["credential", "revoke", "guest"]).unwrap();
    watch.says("unknown", PATIENCE);
    assert_eq!(watch.end().0.code(), Some(2));
}
