//! A real containerd on a site, with the runtime interface of Kubernetes (CRI), whose pods get
//! their networks by the CNI plugin.

use crate::{
    docker::{busybox, start_containerd},
    internet::Site,
    process::{Process, output},
};
use anyhow::{Context, Result};
use meshward_types::{Labels, measurement::Sha256};
use serde_json::json;
use std::{
    env::consts::ARCH,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// The folder in which distributions put the plugin for loopback interfaces.
const PLUGINS: &str = "/usr/lib/cni";
const PAUSE: &str = "mesh.example/pause:1";

/// A containerd whose state is in a folder of its own; it ends with its owner.
pub struct Containerd {
    site: Site,
    folder: PathBuf,
    _process: Process,
}

impl Containerd {
    /// The image for containers: a busybox.
    pub const IMAGE: &str = "mesh.example/box:1";

    /// Starts one. Its pods are workloads of the network `shop` with these labels. `plugins`: the
    /// folder of the plugin; `node`: the node daemon's socket.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn start(
        site: &Site,
        folder: &Path,
        plugins: &Path,
        node: &Path,
        labels: &Labels,
    ) -> Result<Self> {
        let at = |name: &str| folder.join(name);
        fs::create_dir_all(at("net"))?;
        fs::create_dir_all(at("plugins"))?;
        let loopback = Path::new(PLUGINS).join("loopback");
        anyhow::ensure!(
            loopback.exists(),
            "{} is missing; install containernetworking-plugins, or run: cargo xtask test",
            loopback.display()
        );
        symlink(loopback, at("plugins/loopback"))?;
        symlink(plugins.join("meshward-cni"), at("plugins/meshward-cni"))?;
        let plugin = json!({ "type": "meshward-cni", "socket": node, "labels": labels });
        let network = json!({ "cniVersion": "0.4.0", "name": "shop", "plugins": [plugin] });
        fs::write(at("net/shop.conflist"), network.to_string())?;
        let process = start_containerd(site, folder, &with_cri(folder))?;
        let own = Self { site: site.clone(), folder: folder.to_owned(), _process: process };
        let files = busybox(&at("image"), "pod")?;
        own.import(&files, Self::IMAGE, &["httpd", "-f", "-h", "/www"])?;
        own.import(&files, PAUSE, &["sleep", "1000000"])?;
        Ok(own)
    }

    /// Returns the socket of its API, CRI included.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Makes an image of files: an archive as `docker save` writes it.
    fn import(&self, files: &Path, name: &str, command: &[&str]) -> Result<()> {
        let folder = self.folder.join(name.replace(['/', ':'], "-"));
        fs::create_dir_all(&folder)?;
        let layer = fs::read(files)?;
        let config = json!({
            "architecture": ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            "os": "linux",
            "config": { "Cmd": command, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [Sha256::of(&layer).to_string()] },
        });
        let image = json!({ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] });
        fs::write(folder.join("layer.tar"), layer)?;
        fs::write(folder.join("config.json"), config.to_string())?;
        fs::write(folder.join("manifest.json"), json!([image]).to_string())?;
        let archive = folder.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&folder).arg("-cf").arg(&archive);
        let status = tar.args(["manifest.json", "config.json", "layer.tar"]).status()?;
        anyhow::ensure!(status.success(), "tar failed");
        self.ctr(&["images", "import", &archive.to_string_lossy()]).map(drop)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        let said = output(&self.site.netns, command.args(arguments));
        said.with_context(|| format!("ctr {}", arguments.join(" ")))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let running = self.ctr(&["tasks", "list", "--quiet"]).unwrap_or_default();
        for id in running.split_whitespace() {
            let _ = self.ctr(&["tasks", "delete", "--force", id]);
        }
    }
}

fn with_cri(folder: &Path) -> String {
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/plugins"
conf_dir = "{folder}/net"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#,
        folder = folder.display()
    )
}
