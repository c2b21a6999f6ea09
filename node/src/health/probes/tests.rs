use super::*;
use crate::{attachment::Origin, workloads::plain_report};
use h2::server;
use hyper::{HeaderMap, Response, body::Bytes};
use meshward_netns::NetnsId;
use std::{future::Future, net::IpAddr, path::PathBuf, time::Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// This process's own namespace, at these addresses.
fn here(addresses: &[&str]) -> Attachment {
    let netns = PathBuf::from("/proc/self/ns/net");
    let addresses: Vec<IpAddr> = addresses.iter().map(|own| own.parse().unwrap()).collect();
    let report = plain_report(
        "w-1".parse().unwrap(),
        &"shop".parse().unwrap(),
        "api".parse().unwrap(),
        addresses,
    );
    let id = NetnsId::of_path(&netns).unwrap();
    let made = Attachment::new(report, netns, "mesh0".into(), Origin::Local);
    Attachment { netns_id: Some(id), ..made }
}

fn prober(config: &Config) -> Prober {
    Prober::new(config, Arc::default()).unwrap()
}

fn check(probe: HealthProbe) -> HealthCheck {
    HealthCheck {
        probe,
        port: None,
        every: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        failures: 3,
    }
}

/// The time within which servers that are well answer, on any machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes a probe of this port at 127.0.0.1.
async fn probe(probe: HealthProbe, port: u16) -> Outcome {
    attempt(&check(probe), port).await
}

async fn attempt(check: &HealthCheck, port: u16) -> Outcome {
    attempt_by(&prober(&Config::default()), check, port).await
}

async fn attempt_by(prober: &Prober, check: &HealthCheck, port: u16) -> Outcome {
    let attachment = here(&["127.0.0.1"]);
    let mut probe = prober.probe(&attachment, check, port);
    probe.attempt().await
}

/// Serves each connection with `serve`, until the test ends. Returns the port.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// Answers the head of a request with these bytes, and returns the request.
async fn answer(mut stream: TcpStream, text: &[u8]) -> String {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await.unwrap_or(0);
    let _ = stream.write_all(text).await;
    String::from_utf8_lossy(&request[..length]).into_owned()
}

fn failed(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Failed(problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_of_http_passes_by_its_status() {
    let http = || HealthProbe::Http("/healthz?deep=1".into());
    for (status, passes) in
        [("200 OK", true), ("204 No Content", true), ("302 Found", true), ("399 x", true)]
            .into_iter()
            .chain([("404 Not Found", false), ("500 x", false), ("503 x", false)])
    {
        let port = server(move |stream| async move {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
            let request = answer(stream, text.as_bytes()).await;
            assert!(request.starts_with("GET /healthz?deep=1 HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("host: 127.0.0.1:"), "{request}");
        })
        .await;
        let outcome = probe(http(), port).await;
        match passes {
            true => assert_eq!(outcome, Outcome::Passed, "{status}"),
            false => assert_eq!(failed(&outcome), format!("status {}", &status[..3])),
        }
    }
    let garbage =
        server(|stream| async { drop(answer(stream, b"\0\x01junk\r\n\r\n").await) }).await;
    failed(&probe(http(), garbage).await);
    let closed = server(|stream| async { drop(answer(stream, b"").await) }).await;
    failed(&probe(http(), closed).await);
    let endless = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nA: ").await;
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
    })
    .await;
    failed(&probe(http(), endless).await);
    // An endless body is cut.
    let long = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(probe(http(), long).await, Outcome::Passed);
}

#[tokio::test]
async fn a_connection_passes_if_any_address_accepts_it() {
    let port = server(|_| async {}).await;
    assert_eq!(probe(HealthProbe::Tcp, port).await, Outcome::Passed);
    let (attachment, check) = (here(&["::1", "127.0.0.1"]), check(HealthProbe::Tcp));
    let own = prober(&Config::default());
    assert_eq!(own.probe(&attachment, &check, port).attempt().await, Outcome::Passed);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = probe(HealthProbe::Tcp, free).await;
    assert!(failed(&refused).starts_with(&format!("127.0.0.1:{free}: ")), "{refused:?}");
    let gone = Attachment { netns: "/proc/self/ns/mnt".into(), ..here(&["127.0.0.1"]) };
    failed(&own.probe(&gone, &check, port).attempt().await);
}

#[tokio::test]
async fn probes_that_hang_end_in_time_and_delay_no_others() {
    let hanging = server(|stream| async move {
        tokio::time::sleep(Duration::from_mins(1)).await;
        drop(stream);
    })
    .await;
    let well =
        server(|stream| async { drop(answer(stream, b"HTTP/1.1 200 OK\r\n\r\n").await) }).await;
    let begun = Instant::now();
    let (own, mut hang) = (Arc::new(prober(&Config::default())), tokio::task::JoinSet::new());
    for _ in 0..300 {
        let (own, check) = (own.clone(), check(HealthProbe::Http("/".into())));
        hang.spawn(async move { attempt_by(&own, &check, hanging).await });
    }
    // The machine may be busy with other tests.
    let patient = HealthCheck { timeout: PATIENCE, ..check(HealthProbe::Http("/".into())) };
    for _ in 0..10 {
        assert_eq!(attempt_by(&own, &patient, well).await, Outcome::Passed);
    }
    while let Some(outcome) = hang.join_next().await {
        assert_eq!(outcome.unwrap(), Outcome::TimedOut);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A server of gRPC that answers a request with this message, and with this status in trailers.
async fn grpc_server(message: &'static [u8], status: &'static str) -> u16 {
    server(move |stream| async move {
        let Ok(mut connection) = server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let response = Response::builder().header("content-type", "application/grpc");
            let response = response.body(()).unwrap();
            let mut body = respond.send_response(response, false).unwrap();
            if !message.is_empty() {
                body.send_data(Bytes::from_static(message), false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            body.send_trailers(trailers).unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_request_of_grpc_passes_if_the_service_serves() {
    let grpc = || HealthProbe::Grpc("shop.Api".into());
    let serving = grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
    assert_eq!(probe(grpc(), serving).await, Outcome::Passed);
    assert_eq!(probe(HealthProbe::Grpc(String::new()), serving).await, Outcome::Passed);
    let not_serving = grpc_server(&[0, 0, 0, 0, 2, 8, 2], "0").await;
    assert_eq!(failed(&probe(grpc(), not_serving).await), "it answers NOT_SERVING");
    let unknown = grpc_server(&[], "5").await;
    assert!(failed(&probe(grpc(), unknown).await).starts_with("it does not know the service"));
    let unimplemented = grpc_server(&[], "12").await;
    assert!(failed(&probe(grpc(), unimplemented).await).contains("does not implement"));
    let late = grpc_server(&[0, 0, 0, 0, 2, 8, 1], "14").await;
    assert!(failed(&probe(grpc(), late).await).starts_with("status 14 of gRPC"));
    let empty = grpc_server(&[], "0").await;
    failed(&probe(grpc(), empty).await);
    let other =
        server(|stream| async { drop(answer(stream, b"HTTP/1.1 200 OK\r\n\r\n").await) }).await;
    failed(&probe(grpc(), other).await);
}

#[tokio::test]
async fn commands_run_only_where_the_node_lets_them_and_something_can() {
    let exec = || HealthProbe::Exec(vec!["true".into()]);
    let problem = |outcome: Outcome| match outcome {
        Outcome::Impossible(problem) => problem,
        other => panic!("{other:?}"),
    };
    assert!(problem(probe(exec(), 1).await).contains("health_exec"));
    let own = prober(&Config { health_exec: true, ..Config::default() });
    let (attachment, check) = (here(&["127.0.0.1"]), check(exec()));
    let said = problem(own.probe(&attachment, &check, 1).attempt().await);
    assert!(said.contains("start it with `meshctl run`"), "{said}");
    let route = Attachment { origin: Origin::Route, ..attachment.clone() };
    let said = problem(own.probe(&route, &check, 1).attempt().await);
    assert!(said.contains("use http, tcp or grpc"), "{said}");
    let docker = Origin::Docker { endpoint: "e1".into() };
    let (attachment, config) = (Attachment { origin: docker, ..attachment }, Config::default());
    let config = Config { health_exec: true, docker_socket: "/nonexistent".into(), ..config };
    let own = prober(&config);
    failed(&own.probe(&attachment, &check, 1).attempt().await);
}
