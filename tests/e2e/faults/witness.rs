//! A witness of the packets that arrive while things go wrong.

use meshward_lab::Workload;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Workloads that send to an address without pause, by UDP, and who of them gets through to which
/// port.
pub(super) struct Witness {
    arrived: Arc<Mutex<BTreeSet<(IpAddr, u16)>>>,
    count: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Witness {
    /// Listens at `at` on some ports, and has all of `from` send to them.
    pub(super) fn start(at: &Workload, ports: &[u16], from: &[&Workload]) -> Self {
        let witness =
            Self { arrived: Arc::default(), count: Arc::default(), ended: Arc::default() };
        for port in ports {
            let socket = at.netns.run(|| UdpSocket::bind((at.v4(), *port))).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            witness.listen(socket, *port);
        }
        for workload in from {
            let socket =
                workload.netns.run(|| UdpSocket::bind((workload.v4(), 0))).unwrap().unwrap();
            socket.set_nonblocking(true).unwrap();
            let to: Vec<SocketAddr> = ports.iter().map(|port| (at.v4(), *port).into()).collect();
            let ended = witness.ended.clone();
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    for to in &to {
                        let _ = socket.send_to(b"passed", to);
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        witness
    }

    fn listen(&self, socket: UdpSocket, port: u16) {
        let (arrived, count, ended) =
            (self.arrived.clone(), self.count.clone(), self.ended.clone());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
                arrived.lock().unwrap().insert((from.ip(), port));
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Returns the senders that got through so far, each with the port.
    pub(super) fn arrived(&self) -> Vec<(IpAddr, u16)> {
        self.arrived.lock().unwrap().iter().copied().collect()
    }

    /// Returns the number of datagrams that arrived.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
