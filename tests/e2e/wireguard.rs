//! A stock WireGuard in a node's place: the wire format is the standard one.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, pings, tcp_echoes};
use anyhow::{Context, Result, ensure};
use meshward_netns::Netns;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

/// A stock `wireguard-go` with a node's key and port.
pub(crate) struct Stock(Child);

impl Stock {
    /// The program's control socket has a fixed path, so it runs in a mount namespace with a `/run`
    /// of its own.
    pub(crate) fn start(netns: &Netns, configuration: &Path) -> Result<Self> {
        let start = || -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
            let mut command = Command::new("wireguard-go");
            let child = command.args(["--foreground", "stock0"]).env("LOG_LEVEL", "error").spawn();
            let stock = Self(child.context(
                "wireguard-go cannot be started; install it: apt-get install wireguard-go",
            )?);
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                let mut wg = Command::new("wg");
                let done = wg.args(["setconf", "stock0"]).arg(configuration).output();
                let done = done
                    .context("wg cannot be started; install it: apt-get install wireguard-tools")?;
                if done.status.success() {
                    return Ok(stock);
                }
                ensure!(Instant::now() < deadline, "wg: {}", String::from_utf8_lossy(&done.stderr));
                thread::sleep(Duration::from_millis(20));
            }
        };
        netns.run(start)?
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stock_wireguard_completes_a_handshake_and_exchanges_traffic() {
    let policy =
        "network: shop\nrules: [{ name: both, from: {}, to: {}, allow: [tcp/8080, icmp] }]";
    let mut shop = Shop::new(policy);
    // The rack's daemon ends, and a stock implementation takes its key, its port and its workload's
    // addresses.
    let folder = shop.mesh.folder().join("rack/data/endpoints");
    let kept: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("shop.port")).unwrap()).unwrap();
    let port = u16::try_from(kept["port"].as_u64().unwrap()).unwrap();
    let key: PathBuf = folder.join("shop.key");
    let secret = base64(&fs::read(key).unwrap());
    let peer = shop.nodes[0].endpoint().unwrap();
    let (peer_key, peer_port) = (peer.public_key, peer.port);
    shop.nodes[1].kill();
    let configuration = shop.mesh.folder().join("stock.conf");
    let text = format!(
        "[Interface]
PrivateKey = {secret}
ListenPort = {port}
[Peer]
PublicKey = {peer_key}
AllowedIPs = 10.42.0.0/16, fd42::/48
Endpoint = {}:{peer_port}
",
        shop.nodes[0].site.v4
    );
    fs::write(&configuration, text).unwrap();
    let rack = &shop.nodes[1].site.netns;
    let _stock = Stock::start(rack, &configuration).unwrap();
    rack.links(async |links| {
        links.set_mtu("stock0", 1420).await?;
        links.add_address("stock0", shop.api.v4(), 32).await?;
        links.add_address("stock0", shop.api.v6(), 128).await?;
        links.set_up("stock0").await?;
        for prefix in ["10.42.0.0/16", "fd42::/48"] {
            links.add_route("stock0", prefix.parse().unwrap(), None, None).await?;
        }
        Ok(())
    })
    .unwrap();
    let _echoes =
        (Echo::start(rack, 8080), Echo::start(&shop.web.netns, 8080), Echo::start(rack, 9090));
    let web = &shop.web.netns;
    for (stock, ours) in [(shop.api.v4(), shop.web.v4()), (shop.api.v6(), shop.web.v6())] {
        assert!(
            tcp_echoes(web, stock, 8080, 1 << 20, Duration::from_secs(15)),
            "from ours to stock at {stock}"
        );
        assert!(pings(web, stock, PATIENCE));
        assert!(tcp_echoes(rack, ours, 8080, 1 << 20, PATIENCE), "from stock to ours at {ours}");
        // The stock side enforces nothing; ours does, for both directions.
        assert!(!tcp_echoes(web, stock, 9090, 64, SILENCE));
        assert!(!tcp_echoes(rack, ours, 22, 64, SILENCE));
    }
    assert!(shop.nodes[0].drops("denied") > 0);
}

fn base64(bytes: &[u8]) -> String {
    meshward_types::PublicKey(bytes.try_into().unwrap()).to_string()
}
