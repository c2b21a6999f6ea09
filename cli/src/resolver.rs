//! The resolver of a command that `meshctl run` runs: files of its own over `/etc/resolv.conf` and
//! `/etc/nsswitch.conf`, in a mount namespace of its own. The host's files are not touched.

use anyhow::{Context, Result};
use meshward_types::{DomainName, NetworkName};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    fmt::Write as _,
    fs::{self, Permissions},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH: &str = "/etc/nsswitch.conf";

/// The resolver of a command.
pub(crate) struct Resolver<'a> {
    /// The network of the command's workload.
    pub(crate) network: &'a NetworkName,
    /// The addresses at which the node answers.
    pub(crate) servers: &'a [IpAddr],
    /// The search domains, none unless somebody has asked for them.
    pub(crate) search: &'a [DomainName],
}

impl Resolver<'_> {
    /// Has the processes that this thread starts from now on use the resolver.
    ///
    /// # Errors
    /// Fails without the privilege, or if the host has no `/etc/resolv.conf`.
    pub(crate) fn mount(&self) -> Result<()> {
        if !Path::new(RESOLV_CONF).exists() {
            anyhow::bail!("this host has no {RESOLV_CONF} in whose place another could stand");
        }
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        // Nothing that is mounted here is seen elsewhere.
        let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .context("cannot set the mount namespace apart")?;
        cover(RESOLV_CONF, &self.resolv_conf())?;
        if let Some(text) = fs::read_to_string(NSSWITCH).ok().and_then(|text| by_dns(&text)) {
            cover(NSSWITCH, &text)?;
        }
        Ok(())
    }

    fn resolv_conf(&self) -> String {
        let mut text = format!("# Of `meshctl run`: the resolver of network {}.\n", self.network);
        for server in self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let domains: Vec<&str> = self.search.iter().map(DomainName::as_str).collect();
            let _ = writeln!(text, "search {}", domains.join(" "));
        }
        text
    }
}

/// Mounts a file with this text over another. The file has no name: it goes with the mount.
fn cover(path: &str, text: &str) -> Result<()> {
    let cannot = || format!("cannot put another file in the place of {path}");
    let folder = tempfile::Builder::new().prefix("meshctl-").tempdir().with_context(cannot)?;
    let own = folder.path().join("file");
    fs::write(&own, text).with_context(cannot)?;
    fs::set_permissions(&own, Permissions::from_mode(0o644)).with_context(cannot)?;
    mount(Some(&own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).with_context(cannot)?;
    Ok(())
}

/// Returns the file of sources of names (nsswitch.conf(5)) with hosts by files and DNS alone, if it
/// names others: those ask daemons of the host, past the mesh's resolver.
fn by_dns(text: &str) -> Option<String> {
    let is_hosts = |line: &&str| line.trim_start().starts_with("hosts:");
    let hosts = text.lines().find(is_hosts)?;
    let (_, sources) = hosts.split_once(':')?;
    let other = |source: &str| !matches!(source, "files" | "dns") && !source.starts_with('[');
    if !sources.split_whitespace().any(other) {
        return None;
    }
    let line = |line| if is_hosts(&line) { "hosts: files dns" } else { line };
    Some(text.lines().map(line).flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_search_domain_that_nobody_has_asked_for() {
        let (network, servers) = ("shop".parse().unwrap(), ["10.20.255.53".parse().unwrap()]);
        let text = |search: &[DomainName]| {
            let resolver = Resolver { network: &network, servers: &servers, search };
            resolver.resolv_conf().lines().skip(1).collect::<Vec<_>>().join("|")
        };
        assert_eq!(text(&[]), "nameserver 10.20.255.53");
        let search = ["mesh".parse().unwrap(), "corp.example".parse().unwrap()];
        assert_eq!(text(&search), "nameserver 10.20.255.53|search mesh corp.example");
    }

    #[test]
    fn hosts_are_looked_up_by_dns_alone() {
        let systemd = "passwd: files\nhosts:  mymachines resolve [!UNAVAIL=return] files dns\n";
        assert_eq!(by_dns(systemd).unwrap(), "passwd: files\nhosts: files dns\n");
        assert_eq!(by_dns("hosts: files dns\n"), None);
        assert_eq!(by_dns("passwd: files\n"), None);
    }
}
