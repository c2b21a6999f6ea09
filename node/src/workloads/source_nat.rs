//! Source address translation of egress gateways: what leaves this host from a network of the mesh
//! has an address of this host. The rules are in a table of their own in the kernel (nftables),
//! which is replaced as a whole, so a restarted daemon leaves nothing doubled.
//!
//! The program `nft` sets them: the crates that speak the kernel's protocol either link the C
//! library or generate bindings to the kernel's headers.

use crate::refusal::Refusal;
use ipnet::IpNet;
use nix::sys::utsname::uname;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

/// The name of the table.
const TABLE: &str = "inet meshward";
/// The first version of Linux in which a rule for packets that leave can name the interface that
/// they came by (commit 28f8bfd1ac94).
const FIRST_KERNEL: (u32, u32) = (5, 7);

/// The interface of an egress gateway, and the prefixes that packets come from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EgressInterface {
    /// The name of the interface, `mesh0` and up.
    pub(super) name: String,
    /// The network's prefixes.
    pub(super) network: Vec<IpNet>,
}

/// The reasons why the rules could not be set.
#[derive(Debug, thiserror::Error)]
pub(super) enum NatError {
    #[error(
        "an egress gateway needs the program `nft` to translate addresses; install it (package \
        nftables)"
    )]
    NoProgram,
    #[error("cannot run nft: {0}")]
    Run(#[from] io::Error),
    #[error("nft does not set the rules that translate addresses: {0}")]
    Refused(String),
}

/// Refuses a kernel in which the rules would not select what they are to.
pub(super) fn check_kernel() -> Result<(), Refusal> {
    let release = uname().map_err(|error| Refusal::Failed(error.to_string()))?;
    let release = release.release().to_string_lossy().into_owned();
    match version(&release) {
        Some(version) if version >= FIRST_KERNEL => Ok(()),
        _ => Err(Refusal::Invalid(format!(
            "an egress gateway needs Linux {}.{} or later, and this is {release}",
            FIRST_KERNEL.0, FIRST_KERNEL.1
        ))),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Returns the commands that remove the table; the first makes the second one succeed.
pub(super) fn removal() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// Returns the commands that replace the table by one for these interfaces, in one transaction.
pub(super) fn rules<'a>(interfaces: impl Iterator<Item = &'a EgressInterface>) -> String {
    let (mut forward, mut leave) = (String::new(), String::new());
    for EgressInterface { name, network } in interfaces {
        // Nothing goes from one network of the mesh to another, nor leaves untranslated: the
        // kernel does not translate packets of no connection that it could know.
        let _ = writeln!(forward, "iifname \"{name}\" oifname \"mesh*\" drop");
        let _ = writeln!(forward, "iifname \"{name}\" ct state invalid drop");
        for prefix in network {
            let family = if prefix.addr().is_ipv4() { "ip" } else { "ip6" };
            let _ = writeln!(leave, "iifname \"{name}\" {family} saddr {prefix} masquerade");
        }
    }
    if leave.is_empty() {
        return removal();
    }
    format!(
        "{}table {TABLE} {{\n\
        chain forward {{\ntype filter hook forward priority 0\n{forward}}}\n\
        chain leave {{\ntype nat hook postrouting priority 100\n{leave}}}\n\
        }}\n",
        removal()
    )
}

/// Gives commands to nft.
pub(super) fn set(commands: &str) -> Result<(), NatError> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = nft.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NatError::NoProgram,
        _ => NatError::Run(error),
    })?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(commands.as_bytes())?;
    }
    let done = nft.wait_with_output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(NatError::Refused(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_one_transaction_that_replaces_those_of_before() {
        let shop = EgressInterface {
            name: "mesh1".into(),
            network: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
        };
        let text = rules([shop].iter());
        assert!(
            text.starts_with("add table inet meshward\ndelete table inet meshward\n"),
            "{text}"
        );
        assert!(text.contains("iifname \"mesh1\" ip saddr 10.42.0.0/16 masquerade"), "{text}");
        assert!(text.contains("iifname \"mesh1\" ip6 saddr fd42::/48 masquerade"), "{text}");
        assert_eq!(rules([].iter()), removal());
    }

    #[test]
    fn kernels_are_compared_by_their_version() {
        assert_eq!(version("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert!(version("4.19.1").unwrap() < FIRST_KERNEL);
        assert_eq!(version("unknown"), None);
    }
}
