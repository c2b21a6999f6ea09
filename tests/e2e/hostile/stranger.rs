//! Strangers at the coordinator's doors, and what members notice of them: nothing.

use crate::support::{PATIENCE, mesh, mesh_with};
use meshward_api_types::Context;
use meshward_control_proto::Channel;
use meshward_lab::{HandshakeFlood, Mesh, idle_connections};
use meshward_netns::Netns;
use std::{
    io::{Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::Duration,
};

const API: u16 = 7443;

fn quic(mesh: &Mesh) -> SocketAddrV4 {
    SocketAddrV4::new(mesh.site.v4, API)
}

#[test]
fn a_member_keeps_its_session_and_another_joins_under_forged_handshakes_and_idle_connections() {
    let mut mesh = mesh();
    let mut node = mesh.node("cloud").start().unwrap();
    let (token, joining) = (mesh.token(&[]).unwrap(), mesh.internet.site("rack").unwrap());
    let stranger = mesh.internet.site("stranger").unwrap();
    let flood =
        HandshakeFlood::start(&stranger.netns, quic(&mesh), 5000, &Channel::Session.alpn()[0])
            .unwrap();
    let _idle = idle_connections(&stranger.netns, quic(&mesh).into(), 600).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(flood.sent() > 3000, "{}", flood.sent());
    assert!(node.is_connected());
    assert_eq!(node.printed().matches("no session with the coordinator").count(), 0);
    let other = mesh.node_at(joining).token(&token).start().unwrap();
    assert!(other.is_connected());
    mesh.read(&["nodes"]).unwrap();
    // A member that comes back, too.
    node.kill();
    node.start().unwrap();
    mesh.wait(|| node.is_connected()).unwrap();
}

/// Returns `true` if the other side closes a connection within `patience`.
fn ends(mut stream: TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn connections_on_which_nothing_is_said_end_and_keep_no_operator_out() {
    let mut mesh = mesh();
    let stranger = mesh.internet.site("stranger").unwrap();
    let mut idle = idle_connections(&stranger.netns, quic(&mesh).into(), 300).unwrap();
    mesh.read(&["nodes"]).unwrap();
    let last = idle.pop().unwrap();
    assert!(
        idle.into_iter().take(100).all(|stream| ends(stream, PATIENCE)),
        "its own oldest give way"
    );
    assert!(ends(last, Duration::from_secs(8)), "and the others do not stay for long");
}

/// Asks for something over plain HTTP and gives the answer, as far as it comes.
fn over_http(netns: &Netns, to: SocketAddr, said: &[u8]) -> String {
    let mut stream = netns.run(|| TcpStream::connect(to)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(said).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn metrics_are_there_while_others_hold_connections_to_them() {
    let mesh = mesh();
    let metrics: SocketAddr = "127.0.0.1:7480".parse().unwrap();
    let _idle = idle_connections(&mesh.site.netns, metrics, 200).unwrap();
    let answer = over_http(
        &mesh.site.netns,
        metrics,
        b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    assert!(answer.contains("meshward_coordinator_revision"), "{answer}");
}

#[test]
fn an_answer_of_the_stun_server_is_never_longer_than_the_request() {
    let mut mesh = mesh();
    let stranger = mesh.internet.site("stranger").unwrap();
    let socket = stranger.netns.run(|| UdpSocket::bind((stranger.v4, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let transaction = *b"meshward-tst";
    let whole = meshward_types::stun::request(&transaction);
    let mut bare = whole[..20].to_vec();
    bare[2..4].copy_from_slice(&[0, 0]);
    let ask = |request: &[u8]| {
        socket.send_to(request, (mesh.site.v4, 3478)).unwrap();
        let mut answer = [0; 256];
        socket.recv(&mut answer).map(|length| answer[..length].to_vec()).ok()
    };
    assert_eq!(ask(&bare), None);
    let answer = ask(&whole).unwrap();
    assert!(answer.len() <= whole.len());
    let seen = meshward_types::stun::read_response(&answer, &transaction).unwrap();
    assert_eq!(seen.ip(), std::net::IpAddr::from(stranger.v4));
    let answered = (0..600).filter(|_| {
        socket.send_to(&whole, (mesh.site.v4, 3478)).unwrap();
        false
    });
    assert_eq!(answered.count(), 0);
    socket.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut answer = [0; 256];
    let answers = std::iter::from_fn(|| socket.recv(&mut answer).ok()).count();
    assert!((1..400).contains(&answers), "{answers}");
}

#[test]
fn wrong_tokens_are_refused_alike_limited_and_logged() {
    let mut mesh = mesh_with(&[]);
    let stranger = mesh.internet.site("stranger").unwrap();
    let wrong = mesh.folder().join("wrong.json");
    let foreign = Context {
        server: format!("{}:{API}", mesh.site.v4),
        token: format!("mwa1_{}", "0".repeat(48)),
        ..mesh.read_context().unwrap()
    };
    std::fs::write(&wrong, serde_json::to_vec(&foreign).unwrap()).unwrap();
    let ask = || {
        let mut command = std::process::Command::new(mesh.binaries.path("meshctl"));
        command.arg("--context").arg(&wrong).args(["nodes"]);
        meshward_lab::output(&stranger.netns, &mut command).unwrap_err().to_string()
    };
    let first = ask();
    assert!(first.contains("unknown"), "{first}");
    let mut last = first;
    for _ in 0..40 {
        last = ask();
    }
    assert!(last.contains("too many wrong credentials"), "{last}");
    assert!(mesh.coordinator.printed().contains("failed authentication by an API token"));
    assert!(
        mesh.coordinator.printed().matches("failed authentication").count() < 20,
        "not each is logged"
    );
    let audit = || mesh.meshctl(&["audit"]).unwrap();
    mesh.wait(|| audit().contains("failed: ")).unwrap();
    assert!(audit().contains(&format!("by an API token from {}", stranger.v4)), "{}", audit());
    assert!(audit().matches("failed: ").count() <= 2, "not each is a line: {}", audit());
    mesh.read(&["nodes"]).unwrap();
}
