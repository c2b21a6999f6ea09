//! The link of one relay: it gets the mesh's members and their sessions.

use super::member::MemberConnection;
use crate::{
    mesh::{ChangeContext, Mesh},
    relay_links::{Link, MAX_WAITING},
};
use anyhow::{Context, Result};
use meshward_control_proto::{
    MAX_JOIN_FRAME, MemberKind,
    relay::{FromRelay, ServedNode, ToRelay},
};
use meshward_control_state::plans::relays;
use meshward_runtime::frames;
use meshward_types::NodeName;
use std::{net::IpAddr, sync::Arc};
use tokio::sync::mpsc;
use tracing::info;

/// Serves a relay's link until it ends.
///
/// # Errors
/// The reason for which it ended.
pub(super) async fn serve(mesh: &Arc<Mesh>, member: MemberConnection) -> Result<()> {
    let MemberConnection { connection, certificate, from, mut send, mut receive } = member;
    let name = certificate.node.clone();
    let first = frames::receive(&mut receive, MAX_JOIN_FRAME).await?;
    let FromRelay::Hello { version, addresses, stun_port } = first else {
        anyhow::bail!("a relay's link does not begin with a hello");
    };
    let (messages, mut outgoing) = mpsc::channel(MAX_WAITING);
    // From this moment on, the relay gets every change of the nodes and their sessions.
    let (members, sessions) = mesh.look(|world| {
        let members = world
            .nodes
            .values()
            .map(|node| ServedNode { node: node.name.clone(), key: node.key.clone() });
        let link = Link { connection: connection.clone(), messages: messages.clone() };
        mesh.relays.register(&name, link, || (members.collect(), mesh.sessions.instances()))
    });
    let _end = RemoveAtEnd { mesh, relay: &name, stable_id: connection.stable_id() };
    frames::send(&mut send, &ToRelay::Members(members)).await?;
    frames::send(&mut send, &ToRelay::Sessions(sessions)).await?;
    let addresses: Vec<String> =
        addresses.iter().map(|address| with_host(address, from.ip())).collect();
    let context = ChangeContext::named(format!("relay:{name}"));
    mesh.change(&context, |world| relays::set_addresses(world, &name, &addresses, stun_port))
        .await?;
    info!(relay = %name, %version, ?addresses, "relay connected");
    let to_link = messages.clone();
    let reading = async {
        loop {
            let message: FromRelay = frames::receive(&mut receive, MAX_JOIN_FRAME).await?;
            let FromRelay::Renew { csr } = message else {
                anyhow::bail!("the relay sent a message that nothing had asked for")
            };
            let signed =
                mesh.ca.sign_member(MemberKind::Relay, &name, &csr, mesh.certificate_lifetime)?;
            let key = signed.certificate.key.to_string();
            mesh.change(&context, |world| relays::set_key(world, &name, &key)).await?;
            let renewed = to_link.send(ToRelay::Renewed { certificate: signed.der }).await;
            renewed.context("the link has ended")?;
        }
    };
    let writing = async {
        while let Some(message) = outgoing.recv().await {
            frames::send(&mut send, &message).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

/// Returns an address of a relay, with the host from which the relay connects if it names none.
fn with_host(address: &str, from: IpAddr) -> String {
    match (address.strip_prefix(':'), from) {
        (Some(port), IpAddr::V4(host)) => format!("{host}:{port}"),
        (Some(port), IpAddr::V6(host)) => format!("[{host}]:{port}"),
        (None, _) => address.to_owned(),
    }
}

/// Removes the relay's link from those that get changes, when dropped.
struct RemoveAtEnd<'a> {
    mesh: &'a Arc<Mesh>,
    relay: &'a NodeName,
    stable_id: usize,
}

impl Drop for RemoveAtEnd<'_> {
    fn drop(&mut self) {
        self.mesh.relays.unregister(self.relay, self.stable_id);
    }
}
