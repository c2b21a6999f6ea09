//! Real binaries in namespaces.

use anyhow::{Context, Result, bail};
use meshward_netns::Netns;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The project's binaries.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
    /// `true` if the packets of the processes' hosts are captured.
    watched: bool,
}

impl Binaries {
    /// Returns the binaries in a folder.
    ///
    /// # Errors
    /// Fails if one is missing.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        for name in ["meshward-coordinator", "meshward-node", "meshward-cni", "meshctl", "shop"] {
            let path = folder.join(name);
            if !path.exists() {
                bail!("{} is missing; build it with: cargo build --workspace", path.display());
            }
        }
        Ok(Self { folder: folder.to_owned(), watched: false })
    }

    /// Returns the binaries that were built beside the running test.
    ///
    /// # Errors
    /// Fails if one is missing.
    pub fn beside_this_test() -> Result<Self> {
        let test = std::env::current_exe()?;
        let folder = test.parent().and_then(Path::parent).context("the test has no folder")?;
        Ok(Self { watched: true, ..Self::in_folder(folder)? })
    }

    /// Returns `true` if the packets of their hosts are captured: in tests, but not in benchmarks,
    /// which that would distort.
    pub fn are_watched(&self) -> bool {
        self.watched
    }

    /// Returns the folder that they are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of a binary.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// A process that ends with its owner.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts a process in a namespace; its output goes to `log`.
    ///
    /// # Errors
    /// Fails if it cannot be started.
    pub fn start(netns: &Netns, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let name = command.get_program().to_string_lossy().into_owned();
        // A child is born into the namespace of the thread that starts it.
        let child =
            netns.run(|| command.spawn())?.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns `true` if the process runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the output so far.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills the process (SIGKILL).
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends the process with SIGTERM, and kills it if it still runs after two seconds.
    pub fn stop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.runs() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// Fails if it takes longer than `patience`.
    pub fn wait_until_ended(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.runs() {
            if Instant::now() > deadline {
                bail!("{} does not end:\n{}", self.name, self.printed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until `ready`, for at most ten seconds.
    ///
    /// # Errors
    /// Fails with its output if it ends or takes longer.
    pub fn wait_until(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ready() {
            if !self.runs() {
                bail!("{} ended:\n{}", self.name, self.printed());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after 10 s:\n{}", self.name, self.printed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            self.stop();
        }
    }
}

/// Runs a command in a namespace to its end and gives its standard output.
///
/// # Errors
/// With its standard error, if it fails.
pub fn output(netns: &Netns, command: &mut Command) -> Result<String> {
    let out = netns.run(|| command.stdin(Stdio::null()).output())??;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}
