//! Pods and namespaces by a stand-in of an API server: over TLS, with a token, lists and watches as
//! the real one gives them.

use super::*;
use meshward_types::measurement::Sha256;
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use std::{
    fs,
    path::Path,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, broadcast},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its objects and counts of requests.
struct Server {
    /// Pods and namespaces: `pods/shop/web-7f`, `namespaces/shop`, with the version that each has
    /// had last.
    objects: Mutex<HashMap<String, serde_json::Value>>,
    version: AtomicUsize,
    /// Versions below are not known any more.
    oldest: AtomicUsize,
    events: broadcast::Sender<(String, serde_json::Value)>,
    lists: AtomicUsize,
    watches: AtomicUsize,
    gets: AtomicUsize,
    /// Nothing is answered, and what is open is cut.
    away: AtomicBool,
    cut: Notify,
    /// Watches are refused by HTTP rather than by an event.
    refuses: AtomicBool,
}

impl Server {
    fn start(folder: &Path) -> (Arc<Self>, Kubernetes) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = TcpListener::from_std(listener).unwrap();
        let (token_file, ca_file) = (folder.join("token"), folder.join("ca.pem"));
        fs::write(&ca_file, made.cert.pem()).unwrap();
        fs::write(&token_file, "t0ken\n").unwrap();
        let server = Arc::new(Self {
            objects: Mutex::default(),
            version: AtomicUsize::new(100),
            oldest: AtomicUsize::new(0),
            events: broadcast::channel(64).0,
            lists: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            gets: AtomicUsize::new(0),
            away: AtomicBool::new(false),
            cut: Notify::new(),
            refuses: AtomicBool::new(false),
        });
        let (own, acceptor) = (server.clone(), TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (own, acceptor) = (own.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let mut cut = pin!(own.cut.notified());
                    cut.as_mut().enable();
                    if own.away.load(Ordering::SeqCst) {
                        return;
                    }
                    let answered = async {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            own.answer(stream).await;
                        }
                    };
                    // What happens after the cut is not told any more.
                    tokio::select! {
                        biased;
                        () = cut => {}
                        () = answered => {}
                    }
                });
            }
        });
        (server, Kubernetes { server: format!("https://localhost:{port}/"), token_file, ca_file })
    }

    async fn answer(&self, mut stream: TlsStream<tokio::net::TcpStream>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                return;
            }
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.split(' ').nth(1).unwrap().to_owned();
        if !head.to_lowercase().contains("authorization: bearer t0ken\r\n") {
            return say(&mut stream, "403 Forbidden", "{}").await;
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let value = |name: &str| {
            let found =
                query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")[..]));
            found.map(|text| text.replace("%3D", "="))
        };
        let kind = if path.contains("/pods") { "pods" } else { "namespaces" };
        if query.is_empty() {
            self.gets.fetch_add(1, Ordering::SeqCst);
            let key = path.strip_prefix("/api/v1/").unwrap();
            let key =
                match key.strip_prefix("namespaces/").and_then(|rest| rest.split_once("/pods/")) {
                    Some((namespace, name)) => format!("pods/{namespace}/{name}"),
                    None => key.to_owned(),
                };
            let found = self.objects.lock().get(&key).cloned();
            return match found {
                Some(object) => say(&mut stream, "200 OK", &object.to_string()).await,
                None => say(&mut stream, "404 Not ContainerFacts", "{}").await,
            };
        }
        let selector = value("fieldSelector").unwrap();
        if value("watch").is_some() {
            self.watches.fetch_add(1, Ordering::SeqCst);
            let from: usize = value("resourceVersion").unwrap().parse().unwrap();
            return self.watch(&mut stream, kind, &selector, from).await;
        }
        self.lists.fetch_add(1, Ordering::SeqCst);
        let items: Vec<serde_json::Value> = {
            let objects = self.objects.lock();
            let own = objects
                .iter()
                .filter(|(key, object)| key.starts_with(kind) && fits(object, &selector));
            own.map(|(_, object)| object.clone()).collect()
        };
        let version = self.version.load(Ordering::SeqCst).to_string();
        let list =
            serde_json::json!({ "metadata": { "resourceVersion": version }, "items": items });
        say(&mut stream, "200 OK", &list.to_string()).await;
    }

    async fn watch(
        &self,
        stream: &mut TlsStream<tokio::net::TcpStream>,
        kind: &str,
        selector: &str,
        from: usize,
    ) {
        let mut events = self.events.subscribe();
        let gone = from < self.oldest.load(Ordering::SeqCst);
        if gone && self.refuses.load(Ordering::SeqCst) {
            return say(stream, "410 Gone", "{}").await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        if gone {
            let status = serde_json::json!({
                "kind": "Status", "code": 410, "message": "too old resource version"
            });
            let _ = event(stream, "ERROR", &status).await;
            let _ = stream.write_all(b"0\r\n\r\n").await;
            return;
        }
        // What has happened since.
        let missed: Vec<serde_json::Value> = {
            let objects = self.objects.lock();
            let since =
                |object: &&serde_json::Value| version_of(object) > from && fits(object, selector);
            objects
                .iter()
                .filter(|(key, _)| key.starts_with(kind))
                .map(|(_, object)| object)
                .filter(since)
                .cloned()
                .collect()
        };
        let mut last = from;
        for object in missed {
            last = last.max(version_of(&object));
            if event(stream, "MODIFIED", &object).await.is_err() {
                return;
            }
        }
        while let Ok((key, object)) = events.recv().await {
            let done = match key.as_str() {
                "BOOKMARK" => event(stream, "BOOKMARK", &object).await,
                _ if key.starts_with(kind)
                    && fits(&object, selector)
                    && version_of(&object) > last =>
                {
                    event(stream, "MODIFIED", &object).await
                }
                _ => Ok(()),
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// Puts an object, as of the next version.
    fn put(&self, key: &str, mut object: serde_json::Value) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.objects.lock().insert(key.to_owned(), object.clone());
        let _ = self.events.send((key.to_owned(), object));
    }

    /// Cuts what is open, and answers nothing until it is back.
    fn go_away(&self) {
        self.away.store(true, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    fn come_back(&self) {
        self.away.store(false, Ordering::SeqCst);
    }
}

fn count(of: &AtomicUsize) -> usize {
    of.load(Ordering::SeqCst)
}

fn version_of(object: &serde_json::Value) -> usize {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn fits(object: &serde_json::Value, selector: &str) -> bool {
    match selector.split_once('=').unwrap() {
        ("spec.nodeName", node) => object["spec"]["nodeName"] == node,
        ("metadata.name", name) => object["metadata"]["name"] == name,
        other => panic!("an unknown selector {other:?}"),
    }
}

async fn say(stream: &mut TlsStream<tokio::net::TcpStream>, status: &str, body: &str) {
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// An event as a line, in two chunks: they end wherever they like.
async fn event(
    stream: &mut TlsStream<tokio::net::TcpStream>,
    kind: &str,
    object: &serde_json::Value,
) -> std::io::Result<()> {
    let line = format!("{}\n", serde_json::json!({ "type": kind, "object": object }));
    let (first, second) = line.split_at(line.len() / 2);
    for part in [first, second] {
        stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await?;
        stream.flush().await?;
    }
    Ok(())
}

fn pod_object(labels: &serde_json::Value) -> serde_json::Value {
    let digest = Sha256::of(b"web");
    serde_json::json!({
        "metadata": { "name": "web-7f", "namespace": "shop", "uid": "u1", "labels": labels },
        "spec": { "nodeName": "rack-7", "containers": [{ "name": "web" }] },
        "status": { "containerStatuses": [{
            "name": "web", "image": "r.example/web",
            "imageID": format!("r.example/web@{digest}"),
        }] },
    })
}

fn namespace_object(labels: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({ "metadata": { "name": "shop", "labels": labels } })
}

struct Fixture {
    server: Arc<Server>,
    pods: Pods,
    pod: Pod,
    told: Arc<Notify>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, api) = Server::start(folder.path());
        server.put("namespaces/shop", namespace_object(&serde_json::json!({ "team": "pay" })));
        server.put("pods/shop/web-7f", pod_object(&serde_json::json!({ "env": "prod" })));
        let told = Arc::new(Notify::new());
        let tell = told.clone();
        let pods = Pods::new(Arc::new(LabelFilter::new(&[])), move || tell.notify_one());
        let pod =
            Pod { api, namespace: "shop".into(), name: "web-7f".into(), uid: Some("u1".into()) };
        Self { server, pods, pod, told, _folder: folder }
    }

    /// Waits until a label of the pod's workload is this, by being told alone: nothing is asked
    /// again and again.
    async fn wait_for(&self, key: &str, value: Option<&str>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.pods.facts_of(&self.pod).await.unwrap().unwrap();
            if found.labels.get(key) == value {
                return;
            }
            let told = tokio::time::timeout_at(deadline, self.told.notified()).await;
            assert!(told.is_ok(), "{key} is {:?}, not {value:?}", found.labels.get(key));
            let changes = self.pods.drain_changes();
            assert!(changes.concern(&self.pod) || changes.pods.is_empty());
        }
    }

    async fn wait_until(&self, is: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "it does not happen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn labels_of_a_pod_and_of_its_namespace_are_followed_without_asking_again() {
    let own = Fixture::new();
    own.wait_for("env", Some("prod")).await;
    own.wait_for("io.kubernetes.namespace/team", Some("pay")).await;
    own.wait_until(|| count(&own.server.watches) == 2).await;
    let asked = count(&own.server.gets);
    own.server.put("pods/shop/web-7f", pod_object(&serde_json::json!({ "env": "dev" })));
    own.wait_for("env", Some("dev")).await;
    own.server.put("namespaces/shop", namespace_object(&serde_json::json!({})));
    own.wait_for("io.kubernetes.namespace/team", None).await;
    own.server.put("pods/shop/other", {
        let mut other = pod_object(&serde_json::json!({}));
        other["metadata"]["name"] = "other".into();
        other
    });
    own.server.put("pods/shop/web-7f", pod_object(&serde_json::json!({ "env": "test" })));
    own.wait_for("env", Some("test")).await;
    assert_eq!(count(&own.server.gets), asked, "it is watched, not asked");
    assert_eq!(count(&own.server.lists), 2, "pods and namespace are listed once");

    // A later pod by the same name is another one.
    let mut later = pod_object(&serde_json::json!({ "env": "later" }));
    later["metadata"]["uid"] = "u2".into();
    own.server.put("pods/shop/web-7f", later);
    own.told.notified().await;
    own.wait_until(|| own.pods.watched(&own.pod).is_some_and(|object| object.uid() == "u2")).await;
    assert!(own.pods.facts_of(&own.pod).await.unwrap().is_none());
}

#[tokio::test]
async fn what_has_changed_while_the_api_was_away_is_known_when_it_is_back() {
    let own = Fixture::new();
    own.wait_for("env", Some("prod")).await;
    own.wait_until(|| count(&own.server.watches) == 2).await;
    own.server.go_away();
    own.server.put("pods/shop/web-7f", pod_object(&serde_json::json!({ "env": "dev" })));
    tokio::time::sleep(Duration::from_millis(300)).await;
    own.server.come_back();
    own.wait_for("env", Some("dev")).await;
    assert_eq!(count(&own.server.lists), 2, "it goes on from the version that it knew");

    // So long that the version is not known any more: by an event, and by the answer itself.
    for (refuses, env) in [(false, "test"), (true, "stage")] {
        let lists = count(&own.server.lists);
        own.server.refuses.store(refuses, Ordering::SeqCst);
        own.server.go_away();
        own.server.put("pods/shop/web-7f", pod_object(&serde_json::json!({ "env": env })));
        let version = own.server.version.load(Ordering::SeqCst);
        own.server.oldest.store(version, Ordering::SeqCst);
        own.server.come_back();
        own.wait_for("env", Some(env)).await;
        assert!(count(&own.server.lists) > lists, "it is listed again");
    }
}

#[tokio::test]
async fn a_bookmark_moves_the_version_on() {
    let own = Fixture::new();
    own.wait_for("env", Some("prod")).await;
    own.wait_until(|| count(&own.server.watches) == 2).await;
    let lists = count(&own.server.lists);
    let version = own.server.version.fetch_add(50, Ordering::SeqCst) + 50;
    let mark = serde_json::json!({
        "kind": "Pod", "metadata": { "resourceVersion": version.to_string() }
    });
    own.server.events.send(("BOOKMARK".into(), mark)).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    own.server.oldest.store(version, Ordering::SeqCst);
    own.server.go_away();
    own.server.come_back();
    own.server.put("pods/shop/web-7f", pod_object(&serde_json::json!({ "env": "dev" })));
    own.wait_for("env", Some("dev")).await;
    assert_eq!(count(&own.server.lists), lists, "what was before the bookmark is not missed");
}

#[tokio::test]
async fn an_api_that_is_away_is_asked_less_and_less_often() {
    let own = Fixture::new();
    own.wait_for("env", Some("prod")).await;
    own.wait_until(|| count(&own.server.watches) == 2).await;
    // Each watch is ended at once.
    let begun = count(&own.server.watches);
    let deadline = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline {
        own.server.cut.notify_waiters();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tried = count(&own.server.watches) - begun;
    assert!(tried <= 12, "{tried} watches in four seconds");
}

#[tokio::test]
async fn the_api_is_asked_over_tls_with_a_token() {
    let own = Fixture::new();
    assert!(own.pods.facts_of(&own.pod).await.unwrap().is_some());
    let other = Fixture::new();
    fs::write(&other.pod.api.token_file, "other").unwrap();
    let error = format!("{:#}", other.pods.facts_of(&other.pod).await.unwrap_err());
    assert!(error.contains("403") && error.contains("`get`, `list` and `watch`"), "{error}");
    let strange = Fixture::new();
    let elsewhere = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&strange.pod.api.ca_file, elsewhere.cert.pem()).unwrap();
    assert!(
        strange.pods.facts_of(&strange.pod).await.is_err(),
        "a server that the CA has not signed is not asked"
    );
    for name in ["../secrets/x", "", "a/b", "A b", "x?watch=true"] {
        let pod = Pod { name: name.into(), ..own.pod.clone() };
        assert!(own.pods.facts_of(&pod).await.is_err(), "{name}");
    }
}
