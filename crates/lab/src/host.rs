//! Namespaces as hosts: with the kernel's own settings, whatever this machine has set for its new
//! namespaces.

use anyhow::{Context, Result};
use meshward_netns::Netns;
use std::{fs, path::Path};

/// The settings of a new namespace (Documentation/networking/ip-sysctl.rst). It inherits most of
/// them from the machine's first namespace, where Docker, a VPN or an operator has set what it
/// needs. Forwarding comes first: it sets others, too.
const SETTINGS: [(&str, &str); 19] = [
    ("ipv4/ip_forward", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv6/conf/default/forwarding", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/arp_filter", "0"),
    ("ipv4/conf/all/arp_ignore", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/all/accept_local", "0"),
    ("ipv4/ip_nonlocal_bind", "0"),
    ("ipv6/ip_nonlocal_bind", "0"),
    ("ipv4/ip_local_port_range", "32768\t60999"),
    ("ipv4/ip_unprivileged_port_start", "1024"),
    ("ipv4/icmp_echo_ignore_all", "0"),
    ("ipv4/icmp_ratelimit", "1000"),
    ("ipv4/tcp_syn_retries", "6"),
    ("ipv4/ip_no_pmtu_disc", "0"),
];

/// Makes a namespace that is like a host which nobody has set up yet: it does not forward, and has
/// both address families.
///
/// # Errors
/// Fails if the namespace cannot be made, or a setting is not what it has to be: with its name.
pub fn host() -> Result<Netns> {
    let netns = Netns::create()?;
    netns.run(|| SETTINGS.iter().try_for_each(|(name, value)| set(name, value)))??;
    Ok(netns)
}

/// Sets what is set otherwise: not every setting may be written in a user namespace.
fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    let now =
        fs::read_to_string(&path).with_context(|| format!("this kernel has no net/{name}"))?;
    if now.trim() == value {
        return Ok(());
    }
    fs::write(&path, value)
        .with_context(|| format!("cannot set net/{name} to {value}; it is {}", now.trim()))
}
