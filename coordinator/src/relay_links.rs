//! The coordinator's side of relays that are not itself: it tells them who the nodes are, and the
//! nodes where they are.

use crate::{
    mesh::{Author, Mesh},
    sessions::Sessions,
};
use anyhow::{Context, Result};
use meshward_control_proto::{
    CLOSE_REMOVED, MAX_JOIN_FRAME, MemberKind,
    relay::{FromRelay, RelaySpec, ToRelay},
};
use meshward_control_state::{plans::relays, world::RelayDelta};
use meshward_relay::forwarder::Forwarder;
use meshward_runtime::{frames, tls::MemberCertificate};
use meshward_types::{NodeName, relay::RelayId};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use std::{collections::HashMap, net::IpAddr, sync::Arc};
use tokio::sync::{mpsc, watch};
use tracing::info;

/// The most messages that wait for one relay; who is slower is told everything anew.
const WAITING: usize = 1 << 14;

/// The relays that are connected.
#[derive(Default)]
pub struct RelayLinks {
    table: Mutex<HashMap<NodeName, Link>>,
    specs: watch::Sender<Arc<Vec<RelaySpec>>>,
    /// Held while it is said who has sessions.
    telling: Mutex<()>,
}

struct Link {
    connection: Connection,
    messages: mpsc::Sender<ToRelay>,
}

impl RelayLinks {
    /// Where the relays are, now and whenever that changes.
    pub fn specs(&self) -> watch::Receiver<Arc<Vec<RelaySpec>>> {
        self.specs.subscribe()
    }

    /// Has this coordinator's own relay, and all others, told which start of a node's daemon has
    /// its session now.
    pub fn tell_session(&self, own: &Forwarder, sessions: &Sessions, node: &NodeName) {
        // What is told last is what is so.
        let _in_order = self.telling.lock();
        let instance = sessions.get(node).map(|session| session.instance());
        own.set_session(RelayId::of(node), instance);
        self.tell_all(&ToRelay::Session(node.clone(), instance));
    }

    /// Whether a relay is connected.
    pub fn is_connected(&self, relay: &NodeName) -> bool {
        self.table.lock().contains_key(relay)
    }

    /// Tells relays, and those who watch where the relays are, what has changed.
    pub fn deliver(&self, deltas: &[RelayDelta]) {
        for delta in deltas {
            match delta {
                RelayDelta::Tell(message) => self.tell_all(message),
                RelayDelta::Disconnect(name) => self.disconnect(name),
                RelayDelta::Relays(specs) => self.publish(specs.clone()),
            }
        }
    }

    /// Publishes where the relays are, if that has changed.
    pub fn publish(&self, specs: Vec<RelaySpec>) {
        self.specs.send_if_modified(|before| {
            let other = **before != specs;
            if other {
                *before = Arc::new(specs);
            }
            other
        });
    }

    fn tell_all(&self, message: &ToRelay) {
        self.table.lock().retain(|_, link| {
            let told = link.messages.try_send(message.clone()).is_ok();
            if !told {
                link.connection.close(3u32.into(), b"too slow; come again");
            }
            told
        });
    }

    fn disconnect(&self, name: &NodeName) {
        if let Some(link) = self.table.lock().remove(name) {
            link.connection.close(CLOSE_REMOVED.into(), b"this relay was removed from the mesh");
        }
    }
}

/// Serves a relay's link until it ends. `seen` is where it comes from.
pub async fn serve(
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
        let _in_order = mesh.relays.telling.lock();
        let before = mesh.relays.table.lock().insert(
            name.clone(),
            Link { connection: connection.clone(), messages: messages.clone() },
        );
        if let Some(before) = before {
            before.connection.close(1u32.into(), b"the relay has a newer link");
        }
        let members =
            world.nodes.values().map(|node| (node.name.clone(), node.key.clone())).collect();
        (members, mesh.sessions.instances())
    });
    let _end = RemoveAtEnd(mesh, &name, connection.stable_id());
    frames::send(&mut send, &ToRelay::Members(members)).await?;
    frames::send(&mut send, &ToRelay::Sessions(sessions)).await?;
    let addresses: Vec<String> = addresses.iter().map(|address| completed(address, seen)).collect();
    let author = Author::named(format!("relay:{name}"));
    mesh.change(&author, |world| relays::set_addresses(world, &name, &addresses, stun_port))
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
            mesh.change(&author, |world| relays::set_key(world, &name, &key)).await?;
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
        let mut table = self.0.relays.table.lock();
        if table.get(self.1).is_some_and(|link| link.connection.stable_id() == self.2) {
            table.remove(self.1);
        }
    }
}
