//! The host's own resolvers, as its `resolv.conf` has them. The file is read, never written.

use hickory_resolver::{config::NameServerConfig, system_conf::parse_resolv_conf};
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// The file, unless another is configured (resolv.conf(5)).
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The time between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of the file that are read at the most.
const MAX_FILE: u64 = 64 << 10;

/// The host's resolvers, read again when the file changes.
#[derive(Debug)]
pub(crate) struct HostResolvers {
    path: PathBuf,
    looked: Option<Instant>,
    read: Option<(SystemTime, u64)>,
    servers: Vec<NameServerConfig>,
    /// A number that grows with each change.
    version: u64,
}

impl HostResolvers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, looked: None, read: None, servers: vec![], version: 0 }
    }

    /// Returns the number of their current version, after a look at the file if the last one was
    /// long ago.
    pub(crate) fn version(&mut self, now: Instant) -> u64 {
        if self.looked.is_some_and(|looked| now < looked + INTERVAL) {
            return self.version;
        }
        self.looked = Some(now);
        let stamp = fs::metadata(&self.path)
            .ok()
            .and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if stamp != self.read || self.version == 0 {
            self.read = stamp;
            self.servers = read(&self.path);
            self.version += 1;
        }
        self.version
    }

    /// Returns the resolvers but for those at these addresses, which are the node itself.
    pub(crate) fn servers(&self, without: &[IpAddr]) -> Vec<NameServerConfig> {
        self.servers.iter().filter(|server| !without.contains(&server.ip)).cloned().collect()
    }
}

/// Returns the addresses of the resolvers in a file.
pub(crate) fn servers_in(path: &Path) -> Vec<IpAddr> {
    read(path).iter().map(|server| server.ip).collect()
}

fn read(path: &Path) -> Vec<NameServerConfig> {
    let is_short = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_FILE);
    let text = if is_short { fs::read(path).unwrap_or_default() } else { vec![] };
    match parse_resolv_conf(&text) {
        Ok((config, _)) => config.name_servers,
        Err(error) => {
            tracing::warn!(file = %path.display(), "the host's resolvers cannot be read: {error}");
            vec![]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "search corp.example\nnameserver 192.0.2.1\noptions ndots:5\n").unwrap();
        let now = Instant::now();
        let mut host = HostResolvers::new(path.clone());
        assert_eq!(host.version(now), 1);
        let ips = |host: &HostResolvers, without: &[IpAddr]| -> Vec<String> {
            host.servers(without).iter().map(|server| server.ip.to_string()).collect()
        };
        assert_eq!(ips(&host, &[]), ["192.0.2.1"]);
        fs::write(&path, "nameserver 192.0.2.2\nnameserver 10.20.255.53\n").unwrap();
        assert_eq!(host.version(now), 1, "not so soon");
        assert_eq!(host.version(now + INTERVAL), 2);
        assert_eq!(ips(&host, &["10.20.255.53".parse().unwrap()]), ["192.0.2.2"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(host.version(now + 2 * INTERVAL), 3);
        assert!(ips(&host, &[]).is_empty());
    }
}
