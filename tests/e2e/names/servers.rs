//! Real name servers beside the mesh: unbound and dnsmasq from Debian.

use meshward_lab::Process;
use meshward_netns::Netns;
use std::{
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
};

/// Records of `big.upstream.test`: too many for a datagram.
pub(super) const BIG: u8 = 100;

/// A certificate that a server shows, and the file of the CA that a client trusts.
pub(super) struct Certificate {
    pub(super) file: String,
    pub(super) key: String,
}

impl Certificate {
    /// Makes one that is its own CA, for the name `dns.upstream.test`.
    pub(super) fn make(folder: &Path) -> Self {
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let own = Self { file: path("server.pem"), key: path("server.key") };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=dns.upstream.test"])
            .args(["-addext", "subjectAltName=DNS:dns.upstream.test"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &own.key, "-out", &own.file])
            .output()
            .expect("openssl can be run; install it: apt-get install openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        own
    }
}

/// Starts unbound at an address of a namespace: it has the zone `upstream.test`. With a certificate
/// it also listens for TLS (853) and HTTPS (443).
pub(super) fn unbound(
    netns: &Netns,
    at: Ipv4Addr,
    folder: &Path,
    certificate: Option<&Certificate>,
    more: &str,
) -> Process {
    let mut config = format!(
        "server:
  interface: {at}@53
  do-daemonize: no
  username: \"\"
  chroot: \"\"
  directory: \"{folder}\"
  pidfile: \"\"
  use-syslog: no
  log-queries: yes
  access-control: 0.0.0.0/0 allow
  do-not-query-localhost: no
  module-config: iterator
  local-zone: upstream.test. static
  local-data: \"www.upstream.test. 60 IN A 192.0.2.80\"
  local-data: \"www.upstream.test. 60 IN AAAA 2001:db8::80\"
  local-data: \"text.upstream.test. 60 IN TXT hello\"
  local-data: \"upstream.test. 60 IN SOA ns. root. 1 2 3 4 77\"
  local-zone: corp.example. static
  local-data: \"www.corp.example. 60 IN A 192.0.2.99\"
",
        folder = folder.display(),
    );
    for number in 1..=BIG {
        writeln!(config, "  local-data: \"big.upstream.test. 60 IN A 192.0.2.{number}\"").unwrap();
    }
    if let Some(Certificate { file, key }) = certificate {
        let ports = format!("  interface: {at}@853\n  interface: {at}@443");
        let files = format!("  tls-service-pem: \"{file}\"\n  tls-service-key: \"{key}\"");
        writeln!(config, "{ports}\n{files}").unwrap();
    }
    config += more;
    let path = folder.join(format!("unbound-{at}.conf"));
    fs::write(&path, config).unwrap();
    let mut command = Command::new("unbound");
    command.args(["-d", "-c"]).arg(&path);
    start(netns, &mut command, &folder.join(format!("unbound-{at}.log")), at)
}

/// Starts dnsmasq at an address of a namespace: it has `www.corp.example`, and what `options` say.
pub(crate) fn dnsmasq(netns: &Netns, at: Ipv4Addr, folder: &Path, options: &[String]) -> Process {
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.args(["--conf-file=/dev/null", "--user=root", "--pid-file=", "--log-facility=-"]);
    command.arg(format!("--listen-address={at}"));
    command.arg("--address=/www.corp.example/192.0.2.10");
    command.args(options);
    start(netns, &mut command, &folder.join(format!("dnsmasq-{at}.log")), at)
}

fn start(netns: &Netns, command: &mut Command, log: &Path, at: Ipv4Addr) -> Process {
    let mut process = Process::start(netns, command, log)
        .expect("it can be run; install it: apt-get install unbound dnsmasq-base");
    let inside = netns.clone();
    let answers = move || super::dig(&inside, IpAddr::V4(at), "localhost A").status() != "none";
    process.wait_until(answers).unwrap();
    process
}

/// Builds a program that looks a name up by musl's `getaddrinfo`, and returns its path.
pub(super) fn musl_lookup(folder: &Path) -> String {
    const PROGRAM: &str = r"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
int main(int count, char **arguments) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    if (count != 2 || getaddrinfo(arguments[1], 0, &hints, &found)) return 1;
    for (; found; found = found->ai_next) {
        char text[64];
        void *address = found->ai_family == AF_INET
            ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
            : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
        puts(inet_ntop(found->ai_family, address, text, sizeof text));
    }
}
";
    let (source, program) = (folder.join("lookup.c"), folder.join("lookup"));
    fs::write(&source, PROGRAM).unwrap();
    let built = Command::new("musl-gcc")
        .args(["-static", "-o"])
        .args([&program, &source])
        .status()
        .expect("musl-gcc can be run; install it: apt-get install musl-tools");
    assert!(built.success());
    program.to_string_lossy().into_owned()
}
