//! Relays beside the coordinator's own.

use crate::{
    internet::Site,
    mesh::Mesh,
    process::{Process, output},
};
use anyhow::Result;
use std::process::Command;

/// A relay on a site.
pub struct Relay {
    /// The site that it runs on.
    pub site: Site,
    /// The daemon.
    pub process: Process,
}

impl Mesh {
    /// Joins and starts a relay on a new site.
    ///
    /// # Errors
    /// Fails with its output if it does not.
    pub fn relay(&mut self, name: &str) -> Result<Relay> {
        let token = self.token(&["--relay"])?;
        let site = self.internet.site(name)?;
        let data = self.folder().join(name);
        let mut join = Command::new(self.binaries.path("meshward-relay"));
        let invitation = format!("{token}@{}", self.site.v4);
        join.args(["join", &invitation, "--name", name, "--data-dir"]).arg(&data);
        output(&site.netns, &mut join)?;
        let mut command = Command::new(self.binaries.path("meshward-relay"));
        command.arg("--data-dir").arg(&data);
        let log = self.folder().join(format!("{name}.log"));
        let process = Process::start(&site.netns, &mut command, &log)?;
        let relay = Relay { site, process };
        self.wait(|| relay.process.printed().contains("linked to the coordinator"))?;
        Ok(relay)
    }
}
