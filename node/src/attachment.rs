//! A workload's interface: a TUN in its namespace, whose other end this daemon holds.

use crate::{
    offloads::Offloads,
    sys::{self, Tun},
};
use ipnet::IpNet;
use meshward_api_types::local::Pod;
use meshward_control_proto::{WorkloadReport, view::NetworkSpec};
use meshward_netns::{Netns, Selects};
use meshward_runtime::random;
use meshward_types::{WorkloadId, measurement::Measurement};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

/// What is kept of an attached workload, so that a restarted daemon finds it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attachment {
    /// The workload.
    pub report: WorkloadReport,
    /// Its namespace's path.
    pub netns: PathBuf,
    /// Device and inode of the namespace: another one under the same path is not taken for it.
    /// `None` until Docker has made the namespace and moved the interface there.
    pub netns_id: Option<(u64, u64)>,
    /// The process whose end detaches it.
    pub owner: Option<Owner>,
    /// Its interface.
    pub interface: String,
    /// Where it was seen last, if it is a device.
    #[serde(default)]
    pub seen_at: Option<SocketAddr>,
    /// Held by this node's own decision until then, in seconds since the epoch.
    #[serde(default)]
    pub held_until: Option<u64>,
    /// Who made the namespace.
    #[serde(default)]
    pub origin: Origin,
    /// Whether it is known what runs in it. Before, nobody is told of it, and nothing passes.
    #[serde(default = "measured")]
    pub measured: bool,
    /// As what it was let in, while it is something else, and the coordinator is not there to judge
    /// that: it is closed.
    #[serde(default)]
    pub let_in_as: Option<Arc<Measurement>>,
}

/// The first of the routing tables and the priorities of rules that are used for what is behind
/// this host (ip-rule(8)).
const TABLES: u32 = 0x4d57_0000;
const RULES: u32 = 10_000;
/// Behind those for every length of a prefix.
const RULES_FOR_ERRORS: u32 = RULES + 129;
/// Behind these, two.
const RULES_OFF_DEFAULT: u32 = RULES_FOR_ERRORS + 1;

/// How often an interface that is being closed is tried again, 10 ms apart.
const CLOSING: u32 = 30;

fn measured() -> bool {
    true
}

/// Who made a workload's namespace, and what it is called there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Somebody on this machine, who names it by its path.
    #[default]
    Local,
    /// Nobody: it is a device, which has none here.
    Device,
    /// Nobody: it is that of the daemon, and the workload stands for what is behind this host.
    Route,
    /// Docker, by the network plugin.
    Docker {
        /// libnetwork's id of the endpoint.
        endpoint: String,
    },
    /// A container runtime, by the CNI plugin.
    Cni {
        /// The id of the container or pod.
        container: String,
        /// What the runtime calls the interface.
        asked: String,
        /// The socket of an API like Docker's that knows the container.
        engine: Option<PathBuf>,
        /// The pod that it is, if Kubernetes is to be asked.
        pod: Option<Pod>,
    },
}

/// A process, told from later ones with its number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id.
    pub pid: u32,
    /// Clock ticks from boot to its start (`proc_pid_stat(5)`, field 22).
    pub started: u64,
}

impl Owner {
    /// The process with this id, if there is one.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name stands in parentheses and may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Self { pid, started })
    }

    fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// How an interface is made.
pub(crate) type Make = fn(&Attachment, &NetworkSpec, Offloads) -> Result<Tun, AttachError>;

/// Why a namespace could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The namespace cannot be opened or configured.
    #[error(transparent)]
    Namespace(#[from] meshward_netns::Error),
    /// The TUN driver refused.
    #[error(
        "cannot make the interface {0}: {1}; the node daemon needs /dev/net/tun and CAP_NET_ADMIN"
    )]
    Tun(String, std::io::Error),
    /// Something else is called so.
    #[error(
        "{0} is there already, and is no interface of the mesh; delete it, or give the mesh's \
        another name"
    )]
    Taken(String),
}

impl Attachment {
    /// A workload that is in no namespace yet, has no owner, and was not measured.
    pub fn new(report: WorkloadReport, netns: PathBuf, interface: String, origin: Origin) -> Self {
        Self {
            report,
            netns,
            netns_id: None,
            owner: None,
            interface,
            seen_at: None,
            held_until: None,
            origin,
            measured: false,
            let_in_as: None,
        }
    }

    /// Whether its interface is where it belongs.
    pub fn is_placed(&self) -> bool {
        self.netns_id.is_some()
    }

    /// Whether the workload's namespace and owner are still there.
    pub fn lives(&self) -> bool {
        self.origin == Origin::Device
            || self.owner.is_none_or(|owner| owner.lives()) && self.open_netns().is_some()
    }

    fn open_netns(&self) -> Option<Netns> {
        let netns = Netns::open(&self.netns).ok()?;
        let id = netns.id().ok()?;
        (Some((id.device, id.inode)) == self.netns_id).then_some(netns)
    }

    /// Whether this is what was attached, after a restart of the daemon: its interface outlives
    /// that. Numbers of namespaces are given out again, so a namespace without it may be another
    /// one, by the same path and number.
    pub fn outlived(&self) -> bool {
        match self.origin {
            Origin::Device => true,
            // The namespace is the host's: nothing else is taken for it.
            Origin::Route => self.lives(),
            Origin::Local | Origin::Docker { .. } | Origin::Cni { .. } => {
                self.lives() && self.has_interface()
            }
        }
    }

    /// Makes the interface, or takes it up again after a restart, and configures it. Blocks for
    /// milliseconds.
    ///
    /// # Errors
    /// [`AttachError`]; then there is no interface.
    pub fn open(&self, network: &NetworkSpec, wanted: Offloads) -> Result<Tun, AttachError> {
        let netns = Netns::open(&self.netns)?;
        let tun = netns.run(|| self.open_tun(wanted))??;
        keep_or_close(tun, self.configure(&netns, network))
    }

    /// Opens the interface in the namespace of this thread. One that is being closed has its name
    /// for some milliseconds more.
    fn open_tun(&self, wanted: Offloads) -> Result<Tun, AttachError> {
        let Offloads { tcp_segmentation, udp_segmentation, .. } = wanted;
        let open = || sys::open_tun(&self.interface, tcp_segmentation, udp_segmentation);
        let mut opened = open();
        for _ in 0..CLOSING {
            match &opened {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {}
                _ => break,
            }
            thread::sleep(Duration::from_millis(10));
            opened = open();
        }
        opened.map_err(|error| match error.raw_os_error() {
            // `tun_set_iff` of drivers/net/tun.c: there is an interface of that name, of another
            // kind.
            Some(nix::libc::EINVAL) => AttachError::Taken(self.interface.clone()),
            _ => AttachError::Tun(self.interface.clone(), error),
        })
    }

    /// Configures the interface, which is there, once more: whatever somebody has changed of it.
    ///
    /// # Errors
    /// If the namespace or the interface is gone, or the kernel refuses.
    pub fn mend(&self, network: &NetworkSpec) -> Result<(), meshward_netns::Error> {
        self.configure(&Netns::open(&self.netns)?, network)
    }

    /// Whether the interface is in its namespace as it was made: up, with its addresses, and
    /// leading to the prefixes.
    pub fn is_set_up(&self, network: &NetworkSpec) -> bool {
        let Some(netns) = self.open_netns() else { return false };
        let reached: Vec<IpNet> =
            network.prefixes.iter().filter(|prefix| self.reaches(prefix)).copied().collect();
        let own = &self.report.addresses;
        netns
            .links(async |links| Ok(links.is_set_up(&self.interface, own, &reached).await))
            .unwrap_or(false)
    }

    /// Makes the interface in the namespace of the daemon, for Docker to move and configure.
    ///
    /// # Errors
    /// [`AttachError`]; then there is no interface.
    pub fn open_outside(
        &self,
        network: &NetworkSpec,
        wanted: Offloads,
    ) -> Result<Tun, AttachError> {
        let tun = self.open_tun(wanted)?;
        let mtu = u32::from(network.mtu);
        let configured = Netns::current()
            .and_then(|here| here.links(async |links| links.set_mtu(&self.interface, mtu).await));
        keep_or_close(tun, configured)
    }

    /// Whether its interface is in its namespace.
    pub fn has_interface(&self) -> bool {
        self.open_netns().is_some_and(|netns| self.has_interface_in(&netns))
    }

    fn has_interface_in(&self, netns: &Netns) -> bool {
        netns.links(async |links| Ok(links.exists(&self.interface).await)).unwrap_or(false)
    }

    /// What is left to do once Docker has moved the interface.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn finish(&self, routes: &[IpNet]) -> Result<(), meshward_netns::Error> {
        let name = self.interface.as_str();
        // No unreachable route stands behind it: Docker gives no address that a route in the
        // container covers.
        Netns::open(&self.netns)?.links(async |links| links.no_link_local(name).await)?;
        self.change_routes(routes, &[])
    }

    /// Gives its namespace ways to prefixes by its interface, and takes others away.
    ///
    /// # Errors
    /// If the namespace is gone, or the kernel refuses.
    pub fn change_routes(
        &self,
        new: &[IpNet],
        gone: &[IpNet],
    ) -> Result<(), meshward_netns::Error> {
        let Some(netns) = self.open_netns() else { return Ok(()) };
        let (name, table) = (self.interface.as_str(), self.table());
        netns.links(async |links| {
            for prefix in gone.iter().filter(|prefix| !self.report.prefixes.contains(prefix)) {
                links.remove_route(name, *prefix, table).await?;
            }
            let reached =
                |prefix: &&IpNet| self.reaches(prefix) && !self.report.prefixes.contains(prefix);
            for prefix in new.iter().filter(reached) {
                links.add_route(name, *prefix, None, table).await?;
            }
            Ok(())
        })
    }

    /// The routing table that its routes are in: for what is behind this host one of its own, which
    /// rules by source lead to.
    fn table(&self) -> Option<u32> {
        let number: u32 =
            self.interface.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
        (self.origin == Origin::Route).then_some(TABLES + number)
    }

    /// From where packets come by the rules of its table, and which of these go first: longer
    /// prefixes do.
    fn rules(&self) -> Vec<(Selects, u32)> {
        let own = self.report.addresses.iter().map(|address| IpNet::from(*address));
        let behind = self.report.prefixes.iter().copied();
        own.chain(behind)
            .map(|from| {
                let priority = RULES + u32::from(from.max_prefix_len() - from.prefix_len());
                (Selects::From(from), priority)
            })
            .collect()
    }

    /// The rules by which ICMP errors find their way to the mesh that this host and routers behind
    /// it make about what comes from there: they have addresses that are in no prefix of the route.
    /// What else they select, the filter refuses.
    fn rules_for_errors(&self, network: &NetworkSpec) -> Vec<(Selects, u32)> {
        let reached = network.prefixes.iter().filter(|prefix| self.reaches(prefix));
        reached.map(|prefix| (Selects::IcmpTo(*prefix), RULES_FOR_ERRORS)).collect()
    }

    /// Takes back the rules by which packets from behind this host find their way.
    pub fn forget_rules(&self) {
        let (Some(netns), Some(table)) = (self.open_netns(), self.table()) else { return };
        // Whatever the network's prefixes were: without a length, any.
        let any =
            [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|any| IpNet::new_assert(any, 0));
        let for_errors = any.map(|any| (Selects::IcmpTo(any), RULES_FOR_ERRORS));
        let _ = netns.links(async |links| {
            for (which, priority) in self.rules().into_iter().chain(for_errors) {
                let _ = links.remove_rule(which, table, priority).await;
            }
            for prefix in &self.report.prefixes {
                let _ = links
                    .keep_off_default_no_more(&self.interface, *prefix, RULES_OFF_DEFAULT)
                    .await;
            }
            Ok(())
        });
    }

    fn reaches(&self, prefix: &IpNet) -> bool {
        self.report.addresses.iter().any(|address| address.is_ipv4() == prefix.addr().is_ipv4())
    }

    fn configure(&self, netns: &Netns, network: &NetworkSpec) -> Result<(), meshward_netns::Error> {
        let name = self.interface.as_str();
        netns.links(async |links| {
            links.set_mtu(name, u32::from(network.mtu)).await?;
            if self.report.addresses.iter().any(IpAddr::is_ipv6) {
                allow_ipv6(name);
                links.no_link_local(name).await?;
            }
            for address in &self.report.addresses {
                links.add_address(name, *address, IpNet::from(*address).prefix_len()).await?;
            }
            links.set_up(name).await?;
            // Those of the mesh itself: what is behind its gateways may have other ways.
            let own = |prefix: &&IpNet| {
                self.report.addresses.iter().any(|address| prefix.contains(address))
            };
            refuse(links, &network.prefixes.iter().filter(own).copied().collect::<Vec<_>>()).await;
            let table = self.table();
            for prefix in network.prefixes.iter().filter(|prefix| self.reaches(prefix)) {
                links.add_route(name, *prefix, None, table).await?;
            }
            if let Some(table) = table {
                for (which, priority) in self.rules() {
                    links.add_rule(which, table, priority).await?;
                }
                for prefix in &self.report.prefixes {
                    // When the link to what is behind this host goes, its route goes along: what is
                    // for there is not to leave by the uplink then. Where that is how it is
                    // reached, it may.
                    if prefix.prefix_len() > 0 && links.has_way(*prefix).await? {
                        links.keep_off_default(name, *prefix, RULES_OFF_DEFAULT).await?;
                    }
                }
                for (which, priority) in self.rules_for_errors(network) {
                    // Kernels before 4.17 know no such rule: there they do without these errors.
                    if let Err(error) = links.add_rule(which, table, priority).await {
                        tracing::warn!(
                            "errors of this host's routers do not get to the mesh: {error}"
                        );
                    }
                }
            }
            Ok(())
        })
    }
}

/// Lets an interface of this thread's namespace have IPv6 addresses, which container runtimes often
/// turn off for all that come. Where that is not allowed, giving it one fails, and says so.
fn allow_ipv6(interface: &str) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0");
}

/// Has what is for the mesh and finds no interface of the mesh go nowhere: also when the interface
/// is gone, or this daemon is down, it does not leave in clear. A family that is switched off has
/// nothing to lose.
async fn refuse(links: &meshward_netns::Links, prefixes: &[IpNet]) {
    for prefix in prefixes {
        if let Err(error) = links.refuse(*prefix).await {
            tracing::debug!("{error}");
        }
    }
}

/// The same in the namespace of this daemon, for its own host's packets.
pub(crate) fn refuse_here(prefixes: &[IpNet]) {
    let done = Netns::current().and_then(|here| {
        here.links(async |links| {
            refuse(links, prefixes).await;
            Ok(())
        })
    });
    if let Err(error) = done {
        tracing::warn!(
            "packets of this host to the mesh are not kept from other interfaces: {error}"
        );
    }
}

/// Takes that back: this host does not serve the network any more.
pub(crate) fn refuse_here_no_more(prefixes: &[IpNet]) {
    let done = Netns::current().and_then(|here| {
        here.links(async |links| {
            for prefix in prefixes {
                links.refuse_no_more(*prefix).await?;
            }
            Ok(())
        })
    });
    if let Err(error) = done {
        tracing::debug!("{error}");
    }
}

/// The first interface name `mesh0`, `mesh1` ... that a namespace does not have.
///
/// # Errors
/// If the namespace cannot be entered.
pub(crate) fn free_interface(netns: &Netns) -> Result<String, meshward_netns::Error> {
    netns.links(async |links| {
        for number in 0.. {
            let name = format!("mesh{number}");
            if !links.exists(&name).await {
                return Ok(name);
            }
        }
        unreachable!("a namespace does not have all interfaces that there could be")
    })
}

/// Deletes a workload's interface. That takes the kernel some 16 ms, so a thread of its own does
/// it.
pub(crate) fn close(tun: Tun) {
    thread::spawn(move || {
        if let Err(error) = sys::delete_tun_at_close(&tun) {
            tracing::warn!("an interface was left behind: {error}");
        }
        drop(tun);
    });
}

/// What could not be configured is not left behind.
fn keep_or_close(
    tun: Tun,
    configured: Result<(), meshward_netns::Error>,
) -> Result<Tun, AttachError> {
    match configured {
        Ok(()) => Ok(tun),
        Err(error) => {
            close(tun);
            Err(error.into())
        }
    }
}

/// Deletes the interface of a workload that is not held any more, if its namespace is still there.
pub(crate) fn close_left_behind(attachment: &Attachment) {
    let Some(netns) = attachment.open_netns().filter(|netns| attachment.has_interface_in(netns))
    else {
        return;
    };
    if let Ok(Ok(tun)) = netns.run(|| sys::open_tun(&attachment.interface, false, false)) {
        close(tun);
    }
}

/// A new workload id.
pub(crate) fn new_id() -> WorkloadId {
    let hex: String = random::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
    // `w-` and hexadecimal digits are a name.
    format!("w-{hex}").parse().expect("a workload id is a name")
}

/// The identity of a namespace's file.
///
/// # Errors
/// What `open` or `fstat` say.
pub(crate) fn netns_of(path: &Path) -> Result<(Netns, (u64, u64)), meshward_netns::Error> {
    let netns = Netns::open(path)?;
    let id = netns
        .id()
        .map_err(|source| meshward_netns::Error::Open { path: path.to_owned(), source })?;
    Ok((netns, (id.device, id.inode)))
}
