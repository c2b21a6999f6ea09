//! Sockets in the namespaces of workloads.

use meshward_netns::Netns;
use std::{io, net::SocketAddr, sync::mpsc, thread};
use tokio::{net::TcpSocket, sync::oneshot};

/// A thread that makes sockets. It goes from one namespace to the next, so that a probe costs
/// neither a thread of its own nor a return.
pub(super) struct SocketMaker {
    orders: mpsc::Sender<Order>,
}

struct Order {
    netns: Netns,
    address: SocketAddr,
    made: oneshot::Sender<Result<TcpSocket, String>>,
}

impl SocketMaker {
    /// Starts the thread, which ends with this.
    ///
    /// # Errors
    /// Fails if the kernel gives no thread.
    pub(super) fn start() -> io::Result<Self> {
        let (orders, received) = mpsc::channel::<Order>();
        let make = move || {
            for Order { netns, address, made } in received {
                let _ = made.send(make(&netns, address));
            }
        };
        thread::Builder::new().name("health-sockets".into()).spawn(make)?;
        Ok(Self { orders })
    }

    /// Makes a socket in a namespace, of the family of an address.
    ///
    /// # Errors
    /// The reason why there is none.
    pub(super) async fn make(
        &self,
        netns: Netns,
        address: SocketAddr,
    ) -> Result<TcpSocket, String> {
        let (made, socket) = oneshot::channel();
        let is_sent = self.orders.send(Order { netns, address, made }).is_ok();
        let socket = if is_sent { socket.await.ok() } else { None };
        socket.unwrap_or_else(|| Err("the thread that makes sockets is gone".into()))
    }
}

fn make(netns: &Netns, address: SocketAddr) -> Result<TcpSocket, String> {
    netns.enter().map_err(|error| error.to_string())?;
    let socket = match address.is_ipv4() {
        true => TcpSocket::new_v4(),
        false => TcpSocket::new_v6(),
    };
    socket.map_err(|error| error.to_string())
}
