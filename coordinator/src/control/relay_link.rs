//! The link of one relay, as it runs.

use crate::{
    mesh::{ChangeContext, Mesh},
    relay_links::{Link, WAITING},
};
use anyhow::{Context, Result};
use meshward_control_proto::{
    MAX_JOIN_FRAME, MemberKind,
    relay::{FromRelay, ToRelay},
};
use meshward_control_state::plans::relays;
use meshward_runtime::{frames, tls::MemberCertificate};
use meshward_types::NodeName;
use quinn::{Connection, RecvStream, SendStream};
use std::{net::IpAddr, sync::Arc};
use tokio::sync::mpsc;
use tracing::info;

/// Serves a relay's link until it ends. `seen` is where it comes from.
pub(super) async fn serve(
    mesh: &Arc<Mesh>,
    connection: Connection,
    certificate: &MemberCertificate,
    seen: IpAddr,
    mut send: SendStream,
    mut receive: RecvStream,
) -> Result<()> {
    let name = certificate.node.clone();
    let first = frames::receive(&mut receive, MAX_JOIN_FRAME).await?;
    let FromRelay::Hello { version, addresses, stun_port } = first else {
        anyhow::bail!("a relay's link does not begin with a hello");
    };
    let (messages, mut outgoing) = mpsc::channel(WAITING);
    // From this look on the relay is told of every change of the nodes and their sessions.
    let (members, sessions) = mesh.look(|world| {
        let members = world.nodes.values().map(|node| (node.name.clone(), node.key.clone()));
        let link = Link { connection: connection.clone(), messages: messages.clone() };
        mesh.relays.register(&name, link, || (members.collect(), mesh.sessions.instances()))
    });
    let _end = RemoveAtEnd(mesh, &name, connection.stable_id());
    frames::send(&mut send, &ToRelay::Members(members)).await?;
    frames::send(&mut send, &ToRelay::Sessions(sessions)).await?;
    let addresses: Vec<String> = addresses.iter().map(|address| completed(address, seen)).collect();
    let context = ChangeContext::named(format!("relay:{name}"));
    mesh.change(&context, |world| relays::set_addresses(world, &name, &addresses, stun_port))
        .await?;
    info!(relay = %name, %version, ?addresses, "relay connected");
    let to_link = messages.clone();
    let reading = async {
        loop {
            let message: FromRelay = frames::receive(&mut receive, MAX_JOIN_FRAME).await?;
            let FromRelay::Renew { csr } = message else {
                anyhow::bail!("a message came out of turn")
            };
            let (certificate, read) =
                mesh.ca.sign_member(MemberKind::Relay, &name, &csr, mesh.certificate_lifetime)?;
            let key = read.key.to_string();
            mesh.change(&context, |world| relays::set_key(world, &name, &key)).await?;
            let renewed = to_link.send(ToRelay::Renewed { certificate }).await;
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

/// An address of which the host may be left out: then it is where the relay is seen.
fn completed(address: &str, seen: IpAddr) -> String {
    match (address.strip_prefix(':'), seen) {
        (Some(port), IpAddr::V4(seen)) => format!("{seen}:{port}"),
        (Some(port), IpAddr::V6(seen)) => format!("[{seen}]:{port}"),
        (None, _) => address.to_owned(),
    }
}

struct RemoveAtEnd<'a>(&'a Arc<Mesh>, &'a NodeName, usize);

impl Drop for RemoveAtEnd<'_> {
    fn drop(&mut self) {
        self.0.relays.unregister(self.1, self.2);
    }
}
