//! Every command of the user guide, run as it is written.

use anyhow::{Result, ensure};
use meshward_lab::{Binaries, Internet, Site};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

/// A block of the guide: on which machine, and what.
struct Block {
    machine: String,
    script: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(machine) = line.strip_prefix("```sh ") else { continue };
        let script: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(Block { machine: machine.trim().to_owned(), script: script.join("\n") });
    }
    blocks
}

/// A machine: a network namespace, and folders of its own where the daemons' defaults point.
struct Machine {
    site: Site,
    mounts: File,
}

impl Machine {
    fn new(site: Site) -> Result<Self> {
        let (made, mounts) = mpsc::channel();
        thread::spawn(move || {
            let private = || -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNS)?;
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                for folder in ["/run", "/var/lib"] {
                    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none)?;
                }
                Ok(File::open("/proc/thread-self/ns/mnt")?)
            };
            let _ = made.send(private());
        });
        Ok(Self { site, mounts: mounts.recv()?? })
    }

    fn run(&self, script: &str, environment: &BTreeMap<&str, String>) -> Result<String> {
        let run = || -> Result<String> {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
            // Into a file: a daemon that is left running would hold a pipe open.
            let printed = Path::new(&environment["HOME"]).join("printed");
            let file = File::create(&printed)?;
            let status = Command::new("bash")
                .args(["-euo", "pipefail", "-c", script])
                .envs(environment)
                .current_dir(&environment["HOME"])
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file)
                .status()?;
            let said = fs::read_to_string(&printed)?;
            ensure!(status.success(), "{} failed:\n{script}\n{said}", self.site.name);
            Ok(said)
        };
        self.site.netns.run(run)?
    }
}

impl Drop for Machine {
    /// Ends what the guide leaves running: every process of the machine's mount namespace.
    fn drop(&mut self) {
        let own = self.mounts.metadata().unwrap().ino();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
            let theirs = fs::metadata(process.path().join("ns/mnt"));
            if theirs.is_ok_and(|theirs| theirs.ino() == own) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }
}

#[test]
fn every_command_of_the_guide_runs_as_it_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let guide = fs::read_to_string(root.join("docs/guide.md")).unwrap();
    let blocks = blocks(&guide);
    assert!(blocks.len() > 8, "the guide has lost its commands");
    let binaries = Binaries::beside_this_test().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", binaries.path("").display(), std::env::var("PATH").unwrap());
    let mut internet = Internet::new().unwrap();
    internet.watch().unwrap();
    for prefix in ["10.42.0.0/16", "fd42::/48"] {
        internet.watched().unwrap().add(prefix.parse().unwrap()).unwrap();
    }
    let mut machines: BTreeMap<String, Machine> = BTreeMap::new();
    // The order of the sites gives them the addresses that the guide names.
    for name in ["coordinator", "cloud", "rack"] {
        machines.insert(name.into(), Machine::new(internet.site(name).unwrap()).unwrap());
    }
    // One folder for all: the files that the reader carries from machine to machine are there
    // already.
    let environment =
        BTreeMap::from([("PATH", path), ("HOME", folder.path().display().to_string())]);
    fs::copy(root.join("examples/shop/policy.yaml"), folder.path().join("policy.yaml")).unwrap();
    for block in &blocks {
        let machine = machines
            .get(&block.machine)
            .unwrap_or_else(|| panic!("no machine is called {}", block.machine));
        machine.run(&block.script, &environment).unwrap();
    }
}
