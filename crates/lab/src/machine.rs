//! Machines with a systemd of their own: everything that this one has, and what they change in
//! memory alone.

use crate::{Process, Site};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

/// Makes the root of the machine and becomes its first process. `$1`: a folder for it. `$2`: what
/// it has at `/mnt`.
///
/// The root is this machine's, below a layer in memory. Nothing of the kernel's settings can be
/// written, no device of the machine is there but TUN, and none of its services starts.
const BOOT: &str = r#"
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
rm -rf etc/systemd/system/*.wants etc/fstab var/lib/cloud var/lib/meshward var/log/journal
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm
for device in null zero full random urandom tty net/tun; do
  : > "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mkdir sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd 2> /dev/null ||
  mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p mnt
mount --bind "$2" mnt
mount -o remount,bind,ro mnt
exec chroot . /usr/bin/env -i container=lab PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=basic.target --log-target=console --show-status=false
"#;

/// A running machine on a site. It ends with its owner: with the first process of a namespace all
/// others end, and their mounts.
pub struct Machine {
    process: Process,
    systemd: u32,
}

impl Machine {
    /// Starts one. `folder` must be there, and is where its root is put together; `shared` is at
    /// `/mnt`, to be read. What is below `/tmp` here is not there: a machine that starts has an
    /// empty one.
    ///
    /// # Errors
    /// Fails with its output if it does not come up.
    pub fn start(site: &Site, folder: &Path, shared: &Path) -> Result<Self> {
        ensure!(
            Path::new("/lib/systemd/systemd").exists(),
            "systemd is needed: apt-get install systemd"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL"]);
        command.args(["sh", "-c", BOOT, "boot"]).args([folder, shared]);
        let mut process = Process::start(&site.netns, &mut command, &folder.with_extension("log"))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(systemd) = child_of(process.pid()) {
                let machine = Self { process, systemd };
                if machine.run(&["systemctl", "is-active", "basic.target"]).is_ok() {
                    return Ok(machine);
                }
                process = machine.process;
            }
            if Instant::now() > deadline || !process.runs() {
                bail!("the machine does not come up:\n{}", process.printed());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a command on the machine, and returns its output.
    ///
    /// # Errors
    /// Fails if it cannot be started.
    pub fn output(&self, command: &[&str]) -> Result<Output> {
        let mut enter = Command::new("nsenter");
        enter.args([
            "--target",
            &self.systemd.to_string(),
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
        ]);
        enter
            .args(["--root", "--wd"])
            .args(command)
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        enter.output().context("cannot run nsenter")
    }

    /// Runs a command on the machine to its good end and gives what it printed.
    ///
    /// # Errors
    /// Fails with the command's message.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let out = self.output(command)?;
        let (printed, said) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "{command:?}: {}\n{printed}{said}", out.status);
        Ok(printed.into_owned())
    }

    /// Writes a file on the machine, for its root alone.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let folder = Path::new(path).parent().context("a file is in a folder")?;
        self.run(&["mkdir", "-p", &folder.to_string_lossy()])?;
        self.run(&["sh", "-c", "umask 077; printf %s \"$2\" > \"$1\"", "write", path, text])
            .map(drop)
    }
}

/// The one child of a process, once it is systemd.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then_some(child)
}
