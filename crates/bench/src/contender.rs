//! The contenders: our daemons, and other userspace implementations of WireGuard.

use crate::measure::Tunnel;
use anyhow::{Context, Result, ensure};
use meshward_lab::{Binaries, Internet, Mesh, Process, Site, output};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Programs that the benchmarks run, and the Debian packages that have them.
pub const PROGRAMS: [(&str, &str); 10] = [
    ("iperf3", "iperf3"),
    ("ip", "iproute2"),
    ("nebula", "nebula"),
    ("nebula-cert", "nebula"),
    ("ethtool", "ethtool"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("unbound", "unbound"),
    ("dnsmasq", "dnsmasq-base"),
    ("haproxy", "haproxy"),
];

/// Number of rules that our daemons have loaded in comparisons with others.
pub(crate) const RULES: u16 = 1000;

/// The programs that can be measured.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Our release binaries.
    pub ours: Binaries,
    /// The folder into which cargo has installed the others.
    pub others: PathBuf,
}

/// A program that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Ours.
    Meshward,
    /// Nebula, with certificates of its own.
    Nebula,
    /// A program with WireGuard's usual control socket.
    Other {
        /// The name in reports.
        name: &'static str,
        /// The name of the binary.
        program: &'static str,
        /// The arguments before the interface's name.
        arguments: &'static [&'static str],
    },
}

/// The contenders that ours is compared with.
pub(crate) const OTHERS: [Contender; 4] = [
    Contender::Other {
        name: "gotatun-cli",
        program: "gotatun",
        arguments: &["--foreground", "--disable-drop-privileges"],
    },
    Contender::Other {
        name: "boringtun-cli",
        program: "boringtun-cli",
        arguments: &["--foreground", "--disable-drop-privileges"],
    },
    Contender::Other {
        name: "wireguard-go",
        program: "wireguard-go",
        arguments: &["--foreground"],
    },
    Contender::Nebula,
];

impl Contender {
    /// Returns its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Meshward => "meshward",
            Self::Nebula => "nebula",
            Self::Other { name, .. } => name,
        }
    }

    /// Builds a tunnel between two sites.
    ///
    /// # Errors
    /// Fails with the output if it does not come up.
    pub(crate) fn start(self, tools: &Tools, sites: &[Site; 2], folder: &Path) -> Result<Tunnel> {
        match self {
            Self::Meshward => start_ours(tools, sites, RULES),
            Self::Nebula => start_nebula(sites, folder),
            Self::Other { program, arguments, .. } => {
                start_other(tools, sites, folder, program, arguments)
            }
        }
    }
}

/// Starts our daemons with so many rules loaded, and a workload on each of two sites, or both on
/// the first.
pub(crate) fn start_ours(tools: &Tools, sites: &[Site], rules: u16) -> Result<Tunnel> {
    let mesh = Mesh::builder(tools.ours.clone()).at(Internet::new()?, sites[0].clone()).start()?;
    mesh.meshctl(&["network", "create", "bench", "--cidr", "10.42.0.0/16"])?;
    let mut nodes = Vec::new();
    for site in sites {
        nodes.push(mesh.node_at(site.clone()).token(&mesh.token(&[])?).start()?);
    }
    let last = nodes.len() - 1;
    let client = nodes[0].attach("bench", "app=client")?;
    let server = nodes[last].attach("bench", "app=server")?;
    mesh.apply(&policy(rules))?;
    let daemons = nodes.iter_mut().map(|node| node.process().pid()).collect();
    Ok(Tunnel {
        client: client.netns.clone(),
        server: server.netns.clone(),
        address: server.v4(),
        daemons,
        _keep: vec![Box::new((client, server, nodes, mesh))],
    })
}

/// Rules for ports of which no two touch: the link's ACL has an entry for each.
fn policy(rules: u16) -> String {
    let rule = |number: u16| {
        let port = 10_000 + 2 * number;
        format!(
            "  - {{ name: r{number}, from: {{ app: client }}, to: {{ app: server }}, allow: \
             [tcp/{port}, udp/{port}] }}\n"
        )
    };
    // The first is the one that the load needs.
    let rules: String = (1..rules).map(rule).collect();
    format!(
        "network: bench\n\
         rules:\n  - {{ name: load, from: {{ app: client }}, to: {{ app: server }}, allow: \
         [tcp/5201, udp/5201-5202] }}\n{rules}"
    )
}

fn start_nebula(sites: &[Site; 2], folder: &Path) -> Result<Tunnel> {
    let certify = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("nebula-cert");
        let done = command
            .current_dir(folder)
            .args(arguments)
            .output()
            .context("nebula-cert cannot be run")?;
        ensure!(done.status.success(), "nebula-cert: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    };
    for name in ["ca", "host0", "host1"] {
        for kind in ["crt", "key"] {
            let _ = fs::remove_file(folder.join(format!("{name}.{kind}")));
        }
    }
    certify(&["ca", "-name", "bench"])?;
    let (mut daemons, mut keep): (Vec<u32>, Vec<Box<dyn std::any::Any + Send + Sync>>) =
        (Vec::new(), Vec::new());
    for (at, site) in sites.iter().enumerate() {
        let name = format!("host{at}");
        certify(&["sign", "-name", &name, "-ip", &format!("10.99.0.{}/24", at + 1)])?;
        let path = folder.join(format!("{name}.yaml"));
        let folder = folder.display();
        let (other, underlay) = (2 - at, sites[1 - at].v4);
        let text = format!(
            r#"pki: {{ ca: {folder}/ca.crt, cert: {folder}/{name}.crt, key: {folder}/{name}.key }}
static_host_map: {{ "10.99.0.{other}": ["{underlay}:4242"] }}
lighthouse: {{ am_lighthouse: false }}
listen: {{ host: 0.0.0.0, port: 4242 }}
tun: {{ dev: bench{at}, mtu: 1420 }}
logging: {{ level: error }}
firewall:
  outbound: [{{ port: any, proto: any, host: any }}]
  inbound: [{{ port: any, proto: any, host: any }}]
"#
        );
        fs::write(&path, text)?;
        let mut command = Command::new("nebula");
        command.arg("-config").arg(&path);
        let process = Process::start(&site.netns, &mut command, &path.with_extension("log"))?;
        daemons.push(process.pid());
        keep.push(Box::new(process));
    }
    // It makes its interface, with the address from the certificate, by itself.
    thread::sleep(Duration::from_secs(1));
    let [client, server] = [sites[0].netns.clone(), sites[1].netns.clone()];
    Ok(Tunnel { client, server, address: "10.99.0.2".parse()?, daemons, _keep: keep })
}

fn start_other(
    tools: &Tools,
    sites: &[Site; 2],
    folder: &Path,
    name: &str,
    arguments: &[&str],
) -> Result<Tunnel> {
    let installed = tools.others.join("bin").join(name);
    let path = if installed.exists() { installed } else { PathBuf::from(name) };
    let keys = [key_pair()?, key_pair()?];
    let (mut daemons, mut keep): (Vec<u32>, Vec<Box<dyn std::any::Any + Send + Sync>>) =
        (Vec::new(), Vec::new());
    for (at, site) in sites.iter().enumerate() {
        let interface = format!("bench{at}");
        let mut command = Command::new(&path);
        command.args(arguments).arg(&interface);
        let process =
            Process::start(&site.netns, &mut command, &folder.join(format!("{name}-{at}.log")))?;
        let configuration = folder.join(format!("{name}-{at}.conf"));
        let text = format!(
            "[Interface]
PrivateKey = {}
ListenPort = 51820
[Peer]
PublicKey = {}
AllowedIPs = 10.99.0.0/24
Endpoint = {}:51820
",
            keys[at].private,
            keys[1 - at].public,
            sites[1 - at].v4
        );
        fs::write(&configuration, text)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = output(
            &site.netns,
            Command::new("wg").arg("setconf").arg(&interface).arg(&configuration),
        ) {
            ensure!(
                Instant::now() < deadline,
                "{name} accepts no configuration: {error:#}\n{}",
                process.printed()
            );
            thread::sleep(Duration::from_millis(50));
        }
        let own = format!("10.99.0.{}", at + 1).parse()?;
        site.netns.links(async |links| {
            links.set_mtu(&interface, 1420).await?;
            links.add_address(&interface, own, 24).await?;
            links.set_up(&interface).await
        })?;
        daemons.push(process.pid());
        keep.push(Box::new(process));
    }
    let [client, server] = [sites[0].netns.clone(), sites[1].netns.clone()];
    Ok(Tunnel { client, server, address: "10.99.0.2".parse()?, daemons, _keep: keep })
}

/// A WireGuard key pair, in base64.
struct KeyPair {
    private: String,
    public: String,
}

fn key_pair() -> Result<KeyPair> {
    let private = Command::new("wg").arg("genkey").output().context("wg cannot be run")?.stdout;
    let private = String::from_utf8(private)?.trim().to_owned();
    let public =
        Command::new("sh").args(["-c", "echo \"$0\" | wg pubkey", &private]).output()?.stdout;
    Ok(KeyPair { private, public: String::from_utf8(public)?.trim().to_owned() })
}
