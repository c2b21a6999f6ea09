//! The sending side of a session, with what every part of it needs to know.

use crate::mesh::{ChangeContext, Mesh};
use anyhow::{Context, Result};
use meshward_control_proto::{Change, FromCoordinator, MemberKind, encode};
use meshward_control_state::plans::nodes;
use meshward_runtime::frames;
use meshward_types::{NodeName, Revision};
use quinn::SendStream;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tracing::info;

/// Time limit for a node to read a message: its session ends, and its next one begins with all that
/// it missed.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// The stream to one node.
pub(super) struct NodeLink {
    /// The mesh.
    pub(super) mesh: Arc<Mesh>,
    /// The node.
    pub(super) node: NodeName,
    /// The address from which the node's packets come.
    pub(super) from: SocketAddr,
    /// The stream.
    pub(super) stream: SendStream,
}

impl NodeLink {
    /// Sends a message.
    ///
    /// # Errors
    /// Fails if the connection was lost, or the node has not read for [`SEND_TIMEOUT`].
    pub(super) async fn send(&mut self, message: &FromCoordinator) -> Result<()> {
        self.send_encoded(&encode(message)).await
    }

    /// Sends a message that is encoded already.
    ///
    /// # Errors
    /// Fails as [`Self::send`] does.
    pub(super) async fn send_encoded(&mut self, frame: &[u8]) -> Result<()> {
        let sent = frames::send_encoded(&mut self.stream, frame);
        let sent = tokio::time::timeout(SEND_TIMEOUT, sent).await;
        Ok(sent.context("the node has stopped reading")??)
    }

    /// Sends changes that somebody waits for.
    ///
    /// # Errors
    /// Fails as [`Self::send`] does.
    pub(super) async fn send_update(
        &mut self,
        revision: Revision,
        changes: Vec<Change>,
    ) -> Result<()> {
        self.send(&FromCoordinator::Update { revision, changes, urgent: true }).await
    }

    /// Returns the context of a change that this node makes.
    pub(super) fn context(&self) -> ChangeContext {
        ChangeContext::node(&self.node)
    }

    /// Returns the same context with the node's address, for the audit log.
    pub(super) fn context_with_origin(&self) -> ChangeContext {
        ChangeContext { origin: Some(self.from.ip().to_string()), ..self.context() }
    }

    /// Signs a new certificate for the node and sends it.
    ///
    /// # Errors
    /// Fails if the request is not this node's, or its key cannot be stored.
    pub(super) async fn renew(&mut self, csr: &[u8]) -> Result<()> {
        let signed = self.mesh.ca.sign_member(
            MemberKind::Node,
            &self.node,
            csr,
            self.mesh.certificate_lifetime,
        )?;
        let (node, key) = (self.node.clone(), signed.certificate.key.to_string());
        self.mesh.change(&self.context(), |world| nodes::set_key(world, &node, &key)).await?;
        info!(node = %self.node, "certificate renewed");
        self.send(&FromCoordinator::Renewed { certificate: signed.der }).await
    }
}
