//! Nodes that are about to join a mesh.

use crate::{internet::Site, mesh::Mesh, node::Node};
use anyhow::Result;

/// A node that is about to join and to be started.
///
/// Unless something else is said, a token is created for it, with the site's name as the node's
/// site, and it reaches the coordinator by IPv4.
#[must_use = "no node is started before `start`"]
pub struct NodeBuilder<'a> {
    mesh: &'a Mesh,
    /// The site of the node; the error, if a new one could not be made.
    site: Result<Site>,
    token: Option<String>,
    flags: Vec<String>,
    over_ipv6: bool,
    has_joined: bool,
}

impl Mesh {
    /// Begins a node on a new site. Node and site have the same name.
    pub fn node(&mut self, name: &str) -> NodeBuilder<'_> {
        let site = self.internet.site(name);
        NodeBuilder::new(self, site)
    }

    /// Begins a node on this site, whose name it gets.
    pub fn node_at(&self, site: Site) -> NodeBuilder<'_> {
        NodeBuilder::new(self, Ok(site))
    }
}

impl<'a> NodeBuilder<'a> {
    fn new(mesh: &'a Mesh, site: Result<Site>) -> Self {
        Self { mesh, site, token: None, flags: vec![], over_ipv6: false, has_joined: false }
    }

    /// Joins with this token.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Adds flags to the daemon's command line.
    pub fn flags(mut self, flags: &[impl AsRef<str>]) -> Self {
        self.flags.extend(flags.iter().map(|flag| flag.as_ref().to_owned()));
        self
    }

    /// Has the node reach the coordinator, and be reached, by IPv6 alone.
    pub fn over_ipv6(mut self) -> Self {
        self.over_ipv6 = true;
        self
    }

    /// Starts on the data folder that is there for the site's name, without joining.
    pub fn has_joined(mut self) -> Self {
        self.has_joined = true;
        self
    }

    /// Joins, starts the daemon, and waits for its session with the coordinator.
    ///
    /// # Errors
    /// Fails with the output if it is refused or does not start.
    pub fn start(self) -> Result<Node> {
        let mesh = self.mesh;
        let node = self.start_alone()?;
        mesh.wait(|| node.is_connected())?;
        Ok(node)
    }

    /// Joins and starts the daemon, and does not wait for its session with the coordinator.
    ///
    /// # Errors
    /// Fails with the output if it is refused or does not start.
    pub fn start_alone(self) -> Result<Node> {
        let (mesh, site, mut flags) = (self.mesh, self.site?, self.flags);
        if !self.has_joined {
            let token = self.token.map_or_else(|| mesh.token(&["--site", &site.name]), Ok)?;
            let coordinator =
                if self.over_ipv6 { mesh.site.v6.into() } else { mesh.site.v4.into() };
            mesh.join_by(&site, &token, coordinator)?;
        }
        if self.over_ipv6 {
            flags.extend(["--advertise".to_owned(), site.v6.to_string()]);
        }
        let folder = mesh.folder().join(&site.name);
        let mut node = Node::new(site, mesh.binaries.clone(), &folder, flags);
        node.start()?;
        Ok(node)
    }
}
