//! The fate of flows: restarts, policies that come and go, errors about them, and fragments.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, allow, connect, echo_once, udp_echoes};
use meshward_netns::Netns;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv,
        sendto, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{
        IpAddr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
    },
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// Both ends of a connection from `web` to `api`.
fn connection(shop: &Shop, to: IpAddr, port: u16) -> (TcpStream, TcpStream) {
    let listener = shop.api.netns.run(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    let client = connect(&shop.web.netns, to, port, PATIENCE).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, server)
}

/// Returns `true` if bytes sent at one end arrive at the other.
fn says(from: &mut TcpStream, to: &mut TcpStream, what: &[u8]) -> bool {
    from.write_all(what).unwrap();
    let mut heard = vec![0; what.len()];
    to.read_exact(&mut heard).is_ok() && heard == what
}

#[test]
fn connections_go_on_after_restarts_whichever_side_speaks_first() {
    let mut shop = Shop::new(&allow("tcp/8080, tcp/8081, udp/5353"));
    let (mut client, mut server) = connection(&shop, shop.api.v4(), 8080);
    assert!(says(&mut client, &mut server, b"hello") && says(&mut server, &mut client, b"hello"));
    let (mut half, mut open) = connection(&shop, shop.api.v6(), 8081);
    assert!(says(&mut half, &mut open, b"a question"));
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(open.read(&mut [0]).unwrap(), 0);
    let api = shop.api.netns.run(|| UdpSocket::bind(("0.0.0.0", 5353))).unwrap().unwrap();
    let web = shop.web.netns.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
    let mut datagram = [0; 64];
    for socket in [&api, &web] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    web.send_to(b"a question", (shop.api.v4(), 5353)).unwrap();
    let (_, asked_by) = api.recv_from(&mut datagram).unwrap();
    for node in &mut shop.nodes {
        node.process().stop();
        node.start().unwrap();
    }
    assert!(says(&mut server, &mut client, b"the server speaks first"));
    assert!(says(&mut client, &mut server, b"and is heard"));
    assert!(says(&mut open, &mut half, b"an answer to who has closed its half"));
    api.send_to(b"an answer", asked_by).unwrap();
    assert!(web.recv(&mut datagram).is_ok(), "a datagram that answers what was asked before");
    // After a crash what was written at an interval may be old; the connection's packets say
    // enough.
    for node in &mut shop.nodes {
        node.kill();
        node.start().unwrap();
    }
    assert!(says(&mut server, &mut client, b"once more"));
    assert!(says(&mut client, &mut server, b"and back"));
}

#[test]
fn a_restart_lets_the_answering_side_begin_nothing() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let (mut client, mut server) = connection(&shop, shop.api.v4(), 8080);
    for node in &mut shop.nodes {
        node.kill();
        node.start().unwrap();
    }
    assert!(says(&mut server, &mut client, b"taken up again"));
    let port = client.local_addr().unwrap().port();
    drop((client, server));
    let listener = shop.web.netns.run(|| TcpListener::bind(("::", 9000))).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let web = shop.web.v4();
    assert!(connect(&shop.api.netns, web, 9000, SILENCE).is_err());
    assert!(connect(&shop.api.netns, web, port, SILENCE).is_err());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_server_that_alone_speaks_goes_on_when_it_is_allowed_again() {
    let shop = Shop::new(&allow("tcp/8080"));
    let (mut client, mut server) = connection(&shop, shop.api.v4(), 8080);
    assert!(says(&mut server, &mut client, b"one"));
    for round in 0..3 {
        shop.mesh.apply(&allow("tcp/22")).unwrap();
        server.write_all(b"two").unwrap();
        client.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(client.read(&mut [0; 3]).is_err(), "round {round}");
        shop.mesh.apply(&allow("tcp/8080")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = [0; 3];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"two", "round {round}");
    }
}

/// Waits after which what is kept for two seconds is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(4);

/// A question over UDP, and a connection that is idle, in each address family.
struct Quiet {
    asked: Vec<(UdpSocket, UdpSocket, SocketAddr)>,
    idle: Vec<(TcpStream, TcpStream)>,
}

impl Quiet {
    fn new(shop: &Shop) -> Self {
        let (mut asked, mut idle) = (Vec::new(), Vec::new());
        for (at, any, port) in [(shop.api.v4(), "0.0.0.0", 7001), (shop.api.v6(), "::", 7002)] {
            let bind = |netns: &Netns, port: u16| {
                let socket = netns.run(|| UdpSocket::bind((any, port))).unwrap().unwrap();
                socket.set_read_timeout(Some(SILENCE)).unwrap();
                socket
            };
            let (api, web) = (bind(&shop.api.netns, port), bind(&shop.web.netns, 0));
            web.send_to(b"a question", (at, port)).unwrap();
            let (_, by) = api.recv_from(&mut [0; 64]).unwrap();
            api.send_to(b"wait", by).unwrap();
            web.recv(&mut [0; 64]).unwrap();
            asked.push((web, api, by));
            let (mut client, mut server) = connection(shop, at, port);
            assert!(
                says(&mut client, &mut server, b"hello")
                    && says(&mut server, &mut client, b"hello")
            );
            client.set_read_timeout(Some(SILENCE)).unwrap();
            idle.push((client, server));
        }
        Self { asked, idle }
    }

    /// Returns the number of late answers that arrive: over UDP, and over TCP.
    fn late(&mut self) -> [usize; 2] {
        let heard = self.asked.iter().filter(|(web, api, by)| {
            api.send_to(b"the answer", by).unwrap();
            web.recv(&mut [0; 64]).is_ok()
        });
        let idle = self
            .idle
            .iter_mut()
            .filter_map(|(client, server)| says(server, client, b"late").then_some(()));
        [heard.count(), idle.count()]
    }
}

#[test]
fn timeouts_of_a_network_are_shown_and_hold_for_what_is_under_way() {
    let policy =
        |times: &str| format!("{}timeouts: {{ {times} }}\n", allow("tcp/7001-7002, udp/7001-7002"));
    let (short, long) =
        (policy("udp: 2s, tcp_established: 2s"), policy("udp: 1m, tcp_established: 1m"));
    let shop = Shop::new(&short);
    let shown = |time: &str| {
        shop.nodes.iter().all(|node| {
            let said = node.meshctl(&["--context", "/dev/null", "status"]).unwrap();
            let wanted = [format!("udp {time}"), format!("tcp_established {time}")];
            wanted.iter().all(|wanted| said.contains(wanted.as_str()))
        })
    };
    assert!(shown("2s"));
    let file = shop.mesh.folder().join("policy.yaml").to_string_lossy().into_owned();
    let strict =
        shop.mesh.meshctl(&["policy", "check", &file, "--strict"]).unwrap_err().to_string();
    assert!(strict.contains("RFC 4787") && strict.contains("RFC 5382"), "{strict}");
    let mut quiet = Quiet::new(&shop);
    thread::sleep(FORGOTTEN);
    assert_eq!(quiet.late(), [0, 0], "kept for two seconds");
    drop(quiet);
    // Longer ones hold for what has begun with the short ones, and the other way around.
    let mut quiet = Quiet::new(&shop);
    shop.mesh.apply(&long).unwrap();
    assert!(shown("1m"));
    thread::sleep(FORGOTTEN);
    assert_eq!(quiet.late(), [2, 2], "kept for a minute by now");
    shop.mesh.apply(&short).unwrap();
    thread::sleep(FORGOTTEN);
    assert_eq!(quiet.late(), [0, 0], "and for two seconds again");
}

/// A raw socket, with which whole packets are sent where `protocol` says so.
pub(crate) fn raw(netns: &Netns, family: AddressFamily, protocol: SockProtocol) -> OwnedFd {
    let open = || socket(family, SockType::Raw, SockFlag::empty(), protocol);
    let socket = netns.run(open).unwrap().unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
    socket
}

/// Sends a packet by a raw socket.
pub(crate) fn send(socket: &OwnedFd, to: IpAddr, bytes: &[u8]) {
    let sent = match to {
        IpAddr::V4(to) => {
            let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
            sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty())
        }
        IpAddr::V6(to) => {
            let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
            sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty())
        }
    };
    sent.unwrap();
}

/// The internet's checksum (RFC 1071).
pub(crate) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP header without options: `next` with `length` bytes behind it; `word` is IPv4's flags and
/// offset.
pub(crate) fn header(from: IpAddr, to: IpAddr, next: u8, length: usize, word: u16) -> Vec<u8> {
    let mut header = match from {
        IpAddr::V4(_) => vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, next, 0, 0],
        IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 0, next, 64],
    };
    match from {
        IpAddr::V4(_) => {
            header[2..4].copy_from_slice(&(20 + length as u16).to_be_bytes());
            header[6..8].copy_from_slice(&word.to_be_bytes());
        }
        IpAddr::V6(_) => header[4..6].copy_from_slice(&(length as u16).to_be_bytes()),
    }
    header.extend(octets(from));
    header.extend(octets(to));
    if from.is_ipv4() {
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
    }
    header
}

/// A datagram with its header.
pub(crate) fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len() as u16).to_be_bytes();
    let mut datagram =
        [&from.port().to_be_bytes()[..], &to.port().to_be_bytes(), &length, &[0, 0], data].concat();
    let sum = checksum(&[&octets(from.ip()), &octets(to.ip()), &[0, 17], &length, &datagram]);
    datagram[6..8].copy_from_slice(&sum);
    datagram
}

#[test]
fn an_error_is_heard_from_whom_it_concerns_and_from_nobody_else() {
    let shop = Shop::new(&allow("udp/5353"));
    let _echo = Echo::start(&shop.api.netns, 5353);
    assert!(udp_echoes(&shop.web.netns, shop.api.v4(), 5353, 64, PATIENCE));
    let mallory = shop.nodes[0].attach("shop", "app=mallory").unwrap();
    let (web, api) = (SocketAddr::new(shop.web.v4(), 4000), SocketAddr::new(shop.api.v4(), 5353));
    let socket = shop.web.netns.run(|| UdpSocket::bind(web)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"is there anybody?", api).unwrap();
    socket.recv(&mut [0; 64]).unwrap();
    // Errors about what is on its way now, from a neighbour without any link.
    let quoted = [header(web.ip(), api.ip(), 17, 8, 0), udp(web, api, b"")].concat();
    let ears = raw(&shop.web.netns, AddressFamily::Inet, SockProtocol::Icmp);
    for (from, passes) in [(&mallory.netns, false), (&shop.api.netns, true)] {
        let mouth = raw(from, AddressFamily::Inet, SockProtocol::Icmp);
        for kind in [3u8, 4, 11, 12, 41, 200] {
            let mut message = [&[kind, 1, 0, 0, 0, 0, 0, 0][..], &quoted, &[7; 1000]].concat();
            let sum = checksum(&[&message]);
            message[2..4].copy_from_slice(&sum);
            send(&mouth, web.ip(), &message);
        }
        let (mut heard, until) = (0, Instant::now() + SILENCE);
        while Instant::now() < until {
            let mut packet = [0; 2048];
            if let Ok(length) = recv(ears.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                assert!(length <= 576, "{length} bytes");
                heard += 1;
            }
        }
        assert_eq!(heard, if passes { 6 } else { 0 });
    }
    assert!(
        shop.nodes[0].drops("spoofed_by_workload") + shop.nodes[0].drops("stray_icmp_error") >= 6
    );
}

#[test]
fn a_closed_port_is_heard_of_at_once() {
    let shop = Shop::new(&allow("udp/5353"));
    for to in [shop.api.v4(), shop.api.v6()] {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = shop.web.netns.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        shop.web.netns.run(|| socket.connect((to, 5353))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(b"is there anybody?").unwrap();
        assert_eq!(
            socket.recv(&mut [0; 64]).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{to}"
        );
    }
}

#[test]
fn fragments_arrive_in_any_order() {
    let shop = Shop::new(&allow("udp/5353"));
    let api = shop.api.netns.run(|| UdpSocket::bind(("::", 5353))).unwrap().unwrap();
    api.set_read_timeout(Some(PATIENCE)).unwrap();
    for (from, to) in [(shop.web.v4(), shop.api.v4()), (shop.web.v6(), shop.api.v6())] {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let mouth = raw(&shop.web.netns, family, SockProtocol::Raw);
        let data: Vec<u8> = (0..4000).map(|at| at as u8).collect();
        let whole = udp(SocketAddr::new(from, 4000), SocketAddr::new(to, 5353), &data);
        let piece = |at: usize| {
            let part = &whole[at..whole.len().min(at + 1200)];
            let more = u16::from(at + 1200 < whole.len());
            if from.is_ipv4() {
                let word = (at / 8) as u16 | more << 13;
                return [&header(from, to, 17, part.len(), word)[..], part].concat();
            }
            let [high, low] = (at as u16 | more).to_be_bytes();
            let extension = [17, 0, high, low, 0, 0, 0, 9];
            [&header(from, to, 44, 8 + part.len(), 0)[..], &extension, part].concat()
        };
        for at in [2400, 3600, 1200, 0] {
            send(&mouth, to, &piece(at));
        }
        let mut heard = [0; 8000];
        let length = api.recv(&mut heard).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(heard[..length], data[..]);
    }
}

#[test]
fn a_neighbour_that_opens_flows_without_end_is_not_noticed() {
    let shop = Shop::new(
        "network: shop
rules:
- { name: all, from: {}, to: { app: api }, allow: [tcp/8080, udp/5353] }
",
    );
    let _echo = Echo::start(&shop.api.netns, 8080);
    let mallory = shop.nodes[0].attach("shop", "app=mallory").unwrap();
    let mut before = connect(&shop.web.netns, shop.api.v4(), 8080, PATIENCE).unwrap();
    let mouth = raw(&mallory.netns, AddressFamily::Inet, SockProtocol::Raw);
    let (from, to) = (mallory.v4(), shop.api.v4());
    let until = Instant::now() + Duration::from_secs(3);
    let (mut port, mut connections) = (0u16, 0);
    while Instant::now() < until {
        for _ in 0..1000 {
            port = port.wrapping_add(1);
            let datagram = udp(SocketAddr::new(from, port), SocketAddr::new(to, 5353), b"flow");
            send(&mouth, to, &[header(from, to, 17, datagram.len(), 0), datagram].concat());
        }
        let mut fresh = connect(&shop.web.netns, to, 8080, PATIENCE).unwrap();
        assert!(echo_once(&mut fresh, 100).unwrap());
        connections += 1;
    }
    assert!(connections > 0 && echo_once(&mut before, 100).unwrap());
}
