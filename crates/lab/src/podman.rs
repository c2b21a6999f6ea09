//! A real Podman on a site, whose networks are made by the CNI plugin.

use crate::{
    docker::busybox,
    internet::Site,
    process::{Process, output},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Podman's containers and images in a folder of their own; they end with their owner.
pub struct Podman {
    site: Site,
    folder: PathBuf,
    _service: Process,
}

impl Podman {
    /// Makes one with a network `shop` of the mesh's `shop`, and the image `box`. `plugins`: the
    /// folder of the plugin; `node`: the node daemon's socket.
    ///
    /// # Errors
    /// Fails with Podman's message.
    pub fn start(site: &Site, folder: &Path, plugins: &Path, node: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("net"))?;
        let socket = folder.join("podman.sock");
        let config = format!(
            r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["{}"]
network_config_dir = "{}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"#,
            plugins.display(),
            folder.join("net").display()
        );
        fs::write(folder.join("containers.conf"), config)?;
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "shop",
            "plugins": [{ "type": "meshward-cni", "socket": node, "engine": socket }],
        });
        fs::write(folder.join("net/shop.conflist"), network.to_string())?;
        let mut service = podman(folder, &["system", "service", "--time", "0"]);
        service.arg(format!("unix://{}", socket.display()));
        let mut service = Process::start(&site.netns, &mut service, &folder.join("log"))?;
        service.wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        let podman = Self { site: site.clone(), folder: folder.to_owned(), _service: service };
        let tree = busybox(&folder.join("image"), "podman")?;
        let command = r#"CMD ["httpd", "-f", "-h", "/www"]"#;
        podman.run(&["import", "--change", command, &tree.to_string_lossy(), "box"])?;
        Ok(podman)
    }

    /// Runs `podman` to its end and gives what it printed.
    ///
    /// # Errors
    /// Fails with the command's message.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let said = output(&self.site.netns, &mut podman(&self.folder, arguments));
        Ok(said.with_context(|| format!("podman {}", arguments.join(" ")))?.trim().to_owned())
    }
}

fn podman(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.env("CONTAINERS_CONF", folder.join("containers.conf"));
    command
        .arg("--root")
        .arg(folder.join("root"))
        .arg("--runroot")
        .arg(folder.join("run"))
        .args(arguments);
    command
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        // Images are mounted; a folder with mounts in it does not go.
        let _ = self.run(&["rmi", "--all", "--force"]);
    }
}
