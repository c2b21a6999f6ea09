//! The interface of a workload: a TUN, made, configured and deleted.

use super::{record::Attachment, unreachable::add_unreachable_routes};
use crate::{
    offloads::Offloads,
    sys::{self, Tun},
};
use ipnet::IpNet;
use meshward_control_proto::view::NetworkSpec;
use meshward_netns::Netns;
use std::{fs, net::IpAddr, thread, time::Duration};

/// The largest number of attempts to open an interface that the kernel is still deleting.
const ATTEMPTS: u32 = 30;
/// The pause between two attempts.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);

/// A function that makes the interface of a workload.
pub(crate) type MakeInterface = fn(&Attachment, &NetworkSpec, Offloads) -> Result<Tun, AttachError>;

/// The reasons why a namespace could not be attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The namespace cannot be opened or configured.
    #[error(transparent)]
    Namespace(#[from] meshward_netns::Error),
    /// The TUN driver refused.
    #[error(
        "cannot make the interface {0}: {1}; the node daemon needs /dev/net/tun and CAP_NET_ADMIN"
    )]
    Tun(String, std::io::Error),
    /// Another interface has the name.
    #[error(
        "the namespace already has an interface {0} that does not belong to the mesh; delete it, \
        or choose another name for the mesh's interface"
    )]
    NameInUse(String),
}

impl Attachment {
    /// Makes the interface, or opens it again after a restart, and configures it. Blocks for
    /// milliseconds.
    ///
    /// # Errors
    /// [`AttachError`]; then there is no interface.
    pub(crate) fn open(&self, network: &NetworkSpec, wanted: Offloads) -> Result<Tun, AttachError> {
        let netns = Netns::open(&self.netns)?;
        let tun = netns.run(|| self.open_tun(wanted))??;
        close_on_error(tun, self.configure_in(&netns, network))
    }

    /// Opens the TUN in the namespace of this thread. One that is being deleted keeps its name for
    /// some milliseconds.
    fn open_tun(&self, wanted: Offloads) -> Result<Tun, AttachError> {
        let open = || sys::open_tun(&self.interface, wanted.tun());
        let mut opened = open();
        for _ in 0..ATTEMPTS {
            match &opened {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {}
                _ => break,
            }
            thread::sleep(ATTEMPT_PAUSE);
            opened = open();
        }
        opened.map_err(|error| match error.raw_os_error() {
            // `tun_set_iff` of drivers/net/tun.c: an interface of another kind has the name.
            Some(nix::libc::EINVAL) => AttachError::NameInUse(self.interface.clone()),
            _ => AttachError::Tun(self.interface.clone(), error),
        })
    }

    /// Configures the existing interface anew, whatever somebody has changed of it.
    ///
    /// # Errors
    /// Fails if the namespace or the interface is gone, or the kernel refuses.
    pub(crate) fn configure(&self, network: &NetworkSpec) -> Result<(), meshward_netns::Error> {
        self.configure_in(&Netns::open(&self.netns)?, network)
    }

    /// Returns `true` if the interface is in its namespace as it was made: up, with its addresses
    /// and routes.
    pub(crate) fn is_configured(&self, network: &NetworkSpec) -> bool {
        let Some(netns) = self.open_netns() else { return false };
        let routes: Vec<IpNet> =
            network.prefixes.iter().filter(|prefix| self.has_family_of(prefix)).copied().collect();
        let own = &self.report.addresses;
        netns
            .links(async |links| Ok(links.is_set_up(&self.interface, own, &routes).await))
            .unwrap_or(false)
    }

    /// Makes the interface in the namespace of the daemon, for Docker to move and configure.
    ///
    /// # Errors
    /// [`AttachError`]; then there is no interface.
    pub(crate) fn open_outside(
        &self,
        network: &NetworkSpec,
        wanted: Offloads,
    ) -> Result<Tun, AttachError> {
        let tun = self.open_tun(wanted)?;
        let mtu = u32::from(network.mtu);
        let configured = Netns::current()
            .and_then(|here| here.links(async |links| links.set_mtu(&self.interface, mtu).await));
        close_on_error(tun, configured)
    }

    /// Returns `true` if its interface is in its namespace.
    pub(crate) fn has_interface(&self) -> bool {
        self.open_netns().is_some_and(|netns| self.has_interface_in(&netns))
    }

    fn has_interface_in(&self, netns: &Netns) -> bool {
        netns.links(async |links| Ok(links.exists(&self.interface).await)).unwrap_or(false)
    }

    /// Completes the configuration once Docker has moved the interface.
    ///
    /// # Errors
    /// Fails if the namespace is gone.
    pub(crate) fn configure_moved(&self, routes: &[IpNet]) -> Result<(), meshward_netns::Error> {
        let name = self.interface.as_str();
        // There is no unreachable route beside it: Docker gives no address that a route in the
        // container covers.
        Netns::open(&self.netns)?.links(async |links| links.no_link_local(name).await)?;
        self.change_routes(routes, &[])
    }

    fn configure_in(
        &self,
        netns: &Netns,
        network: &NetworkSpec,
    ) -> Result<(), meshward_netns::Error> {
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
            // Those of the mesh itself: other routes may lead to prefixes behind its gateways.
            let own = |prefix: &&IpNet| {
                self.report.addresses.iter().any(|address| prefix.contains(address))
            };
            let own: Vec<IpNet> = network.prefixes.iter().filter(own).copied().collect();
            add_unreachable_routes(links, &own).await;
            let table = self.table();
            for prefix in network.prefixes.iter().filter(|prefix| self.has_family_of(prefix)) {
                links.add_route(name, *prefix, None, table).await?;
            }
            self.add_rules(links, network).await
        })
    }
}

/// Lets an interface of this thread's namespace have IPv6 addresses, which container runtimes often
/// turn off for all new interfaces. Where that is not allowed, adding an address fails and says so.
pub(crate) fn allow_ipv6(interface: &str) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0");
}

/// Returns the first interface name `mesh0`, `mesh1` ... that a namespace does not have.
///
/// # Errors
/// Fails if the namespace cannot be entered.
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
            tracing::warn!("an interface could not be deleted: {error}");
        }
        drop(tun);
    });
}

/// Deletes an interface that could not be configured.
fn close_on_error(
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

/// Deletes the interface of a workload that is no longer attached, if its namespace still exists.
pub(crate) fn close_left_behind(attachment: &Attachment) {
    let Some(netns) = attachment.open_netns().filter(|netns| attachment.has_interface_in(netns))
    else {
        return;
    };
    let no_offloads = sys::TunOffloads { tcp: false, udp: false };
    if let Ok(Ok(tun)) = netns.run(|| sys::open_tun(&attachment.interface, no_offloads)) {
        close(tun);
    }
}
