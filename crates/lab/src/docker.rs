//! A real dockerd on a site, with images that are made here.

use crate::{
    internet::Site,
    process::{Process, output},
};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// The address of registries, each in its site's namespace, which dockerd talks to without TLS.
pub(crate) const REGISTRY: &str = "localhost:5000";
/// The programs of the image `box`.
const PROGRAMS: [&str; 8] = ["sh", "httpd", "wget", "sleep", "ip", "nslookup", "cat", "ls"];

/// The part of containerd's configuration that dockerd needs.
const WITHOUT_CRI: &str = "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";

/// A dockerd that ends with its owner, and its containers with it.
pub struct Docker {
    site: Site,
    folder: PathBuf,
    /// The name of the plugin of the site's node in this test: all dockerds of a machine look for
    /// plugins in one folder.
    pub plugin: String,
    process: Option<Process>,
    /// It outlives a dockerd that is killed, as it does where the service manager starts it.
    _containerd: Process,
}

impl Docker {
    /// Flags for the node daemon of the same site, by which it serves this dockerd.
    pub fn node_flags(&self) -> Vec<String> {
        let plugin = format!("/run/docker/plugins/{}.sock", self.plugin);
        let socket = self.socket().to_string_lossy().into_owned();
        let registry = ["--insecure-registry".into(), REGISTRY.into()];
        [["--docker-plugin".into(), plugin], ["--docker-socket".into(), socket], registry].concat()
    }

    /// Starts one, with the image `box`: a busybox that serves `/www` with `httpd -f -h /www`.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn start(site: &Site, folder: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let plugin = format!("meshward-{}-{number}", std::process::id());
        fs::create_dir_all(folder)?;
        let mut docker = Self {
            site: site.clone(),
            folder: folder.to_owned(),
            plugin,
            process: None,
            _containerd: start_containerd(site, folder, WITHOUT_CRI)?,
        };
        docker.restart()?;
        docker.import("box", "box")?;
        Ok(docker)
    }

    /// Makes an image that serves a page with this content.
    ///
    /// # Errors
    /// Fails with Docker's message.
    pub fn import(&self, name: &str, content: &str) -> Result<()> {
        let tree = busybox(&self.folder.join("image"), content)?;
        let file = tree.to_string_lossy().into_owned();
        let command = r#"CMD ["httpd", "-f", "-h", "/www"]"#;
        self.run(&["import", "--change", command, &file, name]).map(drop)
    }

    /// Starts it, for the first time or again.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn restart(&mut self) -> Result<()> {
        let at = |name: &str| self.folder.join(name);
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
        command
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()));
        command.arg("--containerd").arg(at("containerd.sock"));
        command.args(["--default-ulimit", "nofile=1024:1024", "--live-restore"]);
        let _ = fs::remove_file(at("pid"));
        let mut process = Process::start(&self.site.netns, &mut command, &at("log"))?;
        let ready = || output(&self.site.netns, &mut self.command(&["version"])).is_ok();
        process.wait_until(ready)?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it with SIGKILL; the containers go on.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    /// The `docker` command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments);
        command
    }

    /// `docker-compose` in a folder.
    pub fn compose_command(&self, folder: &Path) -> Command {
        let mut command = Command::new("docker-compose");
        command
            .current_dir(folder)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command
    }

    /// Runs `docker` to its end and gives what it printed.
    ///
    /// # Errors
    /// Fails with the command's message.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let said = output(&self.site.netns, &mut self.command(arguments));
        Ok(said.with_context(|| format!("docker {}", arguments.join(" ")))?.trim().to_owned())
    }

    /// Makes a network of Docker's that is one of the mesh.
    ///
    /// # Errors
    /// Fails with the command's message.
    pub fn create_network(&self, network: &str) -> Result<String> {
        let (option, ipam) = (format!("network={network}"), format!("network={network}"));
        let driver = self.plugin.as_str();
        self.run(&[
            "network",
            "create",
            "-d",
            driver,
            "-o",
            &option,
            "--ipam-driver",
            driver,
            "--ipam-opt",
            &ipam,
            network,
        ])
    }
}

/// Starts containerd with a configuration, whose version is the second. Its socket is
/// `containerd.sock` in the folder.
///
/// # Errors
/// Fails with its output if it does not start.
pub(crate) fn start_containerd(site: &Site, folder: &Path, config: &str) -> Result<Process> {
    let at = |name: &str| folder.join(name);
    let (root, state) = (at("cd"), at("cd-state"));
    let (root, state) = (root.display(), state.display());
    let config = format!("version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n{config}");
    fs::write(at("containerd.toml"), config)?;
    let mut command = Command::new("containerd");
    command.arg("--config").arg(at("containerd.toml")).arg("--address").arg(at("containerd.sock"));
    let mut process = Process::start(&site.netns, &mut command, &at("containerd.log"))?;
    process.wait_until(|| at("containerd.sock").exists())?;
    Ok(process)
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.process.is_none() && self.restart().is_err() {
            return;
        }
        if let Ok(all) = self.run(&["ps", "-aq"]) {
            let ids: Vec<&str> = all.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = self.run(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
        // dockerd mounts it onto itself, and leaves that when it is to keep containers alive.
        let _ = umount2(&self.folder.join("data"), MntFlags::MNT_DETACH);
    }
}

/// Makes an image's files: a static busybox, and a page that says `content`. Returns the archive.
///
/// # Errors
/// Fails if busybox is missing, or files cannot be made.
pub fn busybox(folder: &Path, content: &str) -> Result<PathBuf> {
    let bin = folder.join("tree/bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(folder.join("tree/www"))?;
    fs::create_dir_all(folder.join("tree/tmp"))?;
    fs::copy("/bin/busybox", bin.join("busybox"))
        .context("/bin/busybox is missing; install busybox-static, or run: cargo xtask test")?;
    for program in PROGRAMS {
        let _ = fs::remove_file(bin.join(program));
        symlink("busybox", bin.join(program))?;
    }
    fs::write(folder.join("tree/www/index.html"), format!("{content}\n"))?;
    let archive = folder.join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(folder.join("tree")).arg("-cf").arg(&archive).arg(".");
    let status = tar.status().context("tar is missing")?;
    anyhow::ensure!(status.success(), "tar failed");
    Ok(archive)
}
