//! A thousand connections, through restarts of both daemons.

use crate::support::{PATIENCE, Shop, connect};
use meshward_lab::Workload;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

const CONNECTIONS: usize = 1000;
/// The time between two restarts: longer than the daemon picks up connections that it has lost (150
/// s).
const APART: Duration = Duration::from_secs(200);
/// The interval between two messages on an active connection.
const PACE: Duration = Duration::from_secs(2);
const POLICY: &str = "network: shop
rules: [{ name: r, from: { app: web }, to: { app: api }, allow: [tcp/7000] }]
";

/// The behaviour of a connection while daemons are restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Nothing, since its handshake.
    Unused,
    /// Nothing, since both ends have said something.
    Idle,
    /// Both ends speak, all the time.
    Active,
    /// The client has closed its half; the server answers at the end.
    ClosedByClient,
    /// The server has closed its half; the client goes on at the end.
    ClosedByServer,
}

const MANNERS: [Manner; 5] =
    [Manner::Unused, Manner::Idle, Manner::Active, Manner::ClosedByClient, Manner::ClosedByServer];

struct Connection {
    manner: Manner,
    client: TcpStream,
    server: TcpStream,
    said: u32,
}

impl Connection {
    fn new(manner: Manner, from: &Workload, to: std::net::IpAddr, listener: &TcpListener) -> Self {
        let client = connect(&from.netns, to, 7000, PATIENCE).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut new = Self { manner, client, server, said: 0 };
        if manner != Manner::Unused {
            new.exchange().unwrap();
        }
        let closed = match manner {
            Manner::ClosedByClient => Some((&new.client, &mut new.server)),
            Manner::ClosedByServer => Some((&new.server, &mut new.client)),
            _ => None,
        };
        if let Some((by, other)) = closed {
            by.shutdown(Shutdown::Write).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap(), 0);
        }
        new
    }

    fn say(by: &mut TcpStream, number: u32) -> std::io::Result<()> {
        by.write_all(&number.to_be_bytes())
    }

    fn hear(by: &mut TcpStream, number: u32) -> std::io::Result<()> {
        let mut heard = [0; 4];
        by.read_exact(&mut heard)?;
        if heard == number.to_be_bytes() { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
    }

    /// The server says something and the client hears it, then the other way around, as far as
    /// halves are open.
    fn exchange(&mut self) -> std::io::Result<()> {
        self.said += 1;
        if self.manner != Manner::ClosedByServer {
            Self::say(&mut self.server, self.said)?;
            Self::hear(&mut self.client, self.said)?;
        }
        if self.manner != Manner::ClosedByClient {
            Self::say(&mut self.client, self.said)?;
            Self::hear(&mut self.server, self.said)?;
        }
        Ok(())
    }
}

/// Has those that are active speak until a time.
fn pass_time(connections: &mut [Connection], until: Instant) {
    while Instant::now() < until {
        let next = Instant::now() + PACE;
        for connection in connections.iter_mut().filter(|own| own.manner == Manner::Active) {
            connection.exchange().unwrap();
        }
        thread::sleep(next.min(until).saturating_duration_since(Instant::now()));
    }
}

fn assert_alive(connections: &mut [Connection], when: &str) {
    let mut failures = Vec::new();
    for (at, connection) in connections.iter_mut().enumerate() {
        if let Err(error) = connection.exchange() {
            failures.push(format!("{at} ({:?}): {error}", connection.manner));
        }
    }
    assert!(
        failures.is_empty(),
        "{when}: {} do not go on: {:?}",
        failures.len(),
        &failures[..failures.len().min(10)]
    );
}

#[test]
fn a_thousand_connections_go_on_through_restarts_of_both_daemons() {
    let mut shop = Shop::new(POLICY);
    let clients = [
        shop.nodes[0].attach("shop", "app=web").unwrap(),
        shop.nodes[1].attach("shop", "app=web").unwrap(),
    ];
    let clients = [&shop.web, &clients[0], &clients[1]];
    let listener = shop.api.netns.run(|| TcpListener::bind(("::", 7000))).unwrap().unwrap();
    let mut all: Vec<Connection> = (0..CONNECTIONS)
        .map(|at| {
            let to =
                if (at / MANNERS.len()).is_multiple_of(2) { shop.api.v4() } else { shop.api.v6() };
            Connection::new(
                MANNERS[at % MANNERS.len()],
                clients[at / 10 % clients.len()],
                to,
                &listener,
            )
        })
        .collect();
    for round in 0..2 {
        for node in &mut shop.nodes {
            // Once the daemons are asked to end, once they are killed.
            if round == 0 {
                node.process().stop();
            } else {
                node.kill();
            }
            node.start().unwrap();
        }
        pass_time(&mut all, Instant::now() + APART * (1 - round) + PACE);
        // Some go on between the restarts, the others stay as they are for both.
        let (some, _) = all.split_at_mut(CONNECTIONS / 4 * (1 + 3 * round as usize));
        assert_alive(some, &format!("after restart {round}"));
    }
}
