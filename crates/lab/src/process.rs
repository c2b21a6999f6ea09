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

/// Where the project's binaries are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
    /// Whether it is watched what their hosts carry.
    watched: bool,
}

impl Binaries {
    /// Those in a folder.
    ///
    /// # Errors
    /// If one is missing.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        for name in ["meshward-coordinator", "meshward-node", "meshward-cni", "meshctl", "shop"] {
            let path = folder.join(name);
            if !path.exists() {
                bail!("{} is missing; build it with: cargo build --workspace", path.display());
            }
        }
        Ok(Self { folder: folder.to_owned(), watched: false })
    }

    /// Those that were built beside the running test.
    ///
    /// # Errors
    /// If one is missing.
    pub fn beside_this_test() -> Result<Self> {
        let test = std::env::current_exe()?;
        let folder = test.parent().and_then(Path::parent).context("the test has no folder")?;
        Ok(Self { watched: true, ..Self::in_folder(folder)? })
    }

    /// Whether it is watched what their hosts carry: in tests, and not where it would be measured.
    pub fn are_watched(&self) -> bool {
        self.watched
    }

    /// The folder that they are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of one.
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
    /// Starts a process in a namespace; what it prints goes to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(netns: &Netns, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let name = command.get_program().to_string_lossy().into_owned();
        // A child is born into the namespace of the thread that starts it.
        let child =
            netns.run(|| command.spawn())?.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it without warning: SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end with SIGTERM, and kills it if it has not within two seconds.
    pub fn stop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.runs() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it takes longer than `patience`.
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
    /// With what it printed, if it ends or takes longer.
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
