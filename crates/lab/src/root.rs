//! Getting the right to make namespaces.

use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use std::fs::{self, File};

/// The source of this process's right to make namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The process runs as root.
    Root,
    /// The process is root in a user namespace of its own, without any right on the machine.
    UserNamespace,
}

/// Makes this process able to make namespaces. Must be called while it has one thread.
///
/// # Errors
/// Fails if it is not root, and the machine keeps user namespaces or the TUN driver from ordinary
/// users.
pub fn become_root() -> Result<Rights> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(Rights::Root);
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("this machine does not let ordinary users open /dev/net/tun")?;
    unshare(CloneFlags::CLONE_NEWUSER)
        .context("this machine allows no user namespaces to ordinary users")?;
    fs::write("/proc/self/setgroups", "deny").context("cannot set up the user namespace")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
        .context("cannot set up the user namespace")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
        .context("cannot set up the user namespace")?;
    Ok(Rights::UserNamespace)
}
