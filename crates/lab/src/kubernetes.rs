//! A stand-in of a Kubernetes API: pods and namespaces, given, listed and watched as the real one
//! does, over TLS and with a token.

use anyhow::{Context, Result};
use meshward_netns::Netns;
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// The interval between two polls of a watch for changes.
const LOOK: Duration = Duration::from_millis(20);
const TOKEN: &str = "t0ken";

/// The stand-in; it ends with the process.
pub struct Kubernetes {
    state: Arc<Mutex<State>>,
    /// `https://HOST:PORT`.
    pub server: String,
    /// The file with the token.
    pub token_file: PathBuf,
    /// The file with the CA's certificate.
    pub ca_file: PathBuf,
}

#[derive(Default)]
struct State {
    /// By `pods/NAMESPACE/NAME` and `namespaces/NAME`, with the version that each has been changed
    /// at last.
    objects: BTreeMap<String, (u64, Value)>,
    version: u64,
    /// Versions below are not known any more.
    oldest: u64,
    away: bool,
    /// Raised to cut what is open.
    cuts: u64,
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

impl Kubernetes {
    /// Starts an API server on the loopback address of a namespace.
    ///
    /// # Errors
    /// Fails if it cannot listen, or files cannot be written.
    pub fn start(netns: &Netns, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let (token_file, ca_file) = (folder.join("token"), folder.join("ca.pem"));
        fs::write(&token_file, TOKEN)?;
        fs::write(&ca_file, made.cert.pem())?;
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
        let server = format!("https://localhost:{}", listener.local_addr()?.port());
        let state = Arc::new(Mutex::new(State { version: 100, ..State::default() }));
        let (own, config) = (state.clone(), Arc::new(config));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                let (own, config) = (own.clone(), config.clone());
                thread::spawn(move || {
                    // Who asks may go away at any time.
                    let _ = serve(&own, stream, config);
                });
            }
        });
        Ok(Self { state, server, token_file, ca_file })
    }

    /// The part of a CNI configuration that names it.
    pub fn config(&self) -> Value {
        json!({ "server": self.server, "token_file": self.token_file, "ca_file": self.ca_file })
    }

    /// Puts a namespace with labels.
    pub fn put_namespace(&self, name: &str, labels: &Value) {
        self.put(
            &format!("namespaces/{name}"),
            json!({ "metadata": { "name": name, "labels": labels } }),
        );
    }

    /// Puts a pod with labels, of which each container runs an image: names, and images as
    /// `REPOSITORY@DIGEST`.
    pub fn put_pod(
        &self,
        namespace: &str,
        name: &str,
        labels: &Value,
        containers: &[(&str, &str)],
    ) {
        let specs: Vec<Value> =
            containers.iter().map(|(name, _)| json!({ "name": name })).collect();
        let status = |(name, image): &(&str, &str)| {
            let reference = image.split('@').next();
            json!({ "name": name, "image": reference, "imageID": image })
        };
        let statuses: Vec<Value> = containers.iter().map(status).collect();
        let object = json!({
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": format!("uid-{name}"),
                "labels": labels,
            },
            "spec": { "nodeName": "host", "serviceAccountName": "default", "containers": specs },
            "status": { "containerStatuses": statuses },
        });
        self.put(&format!("pods/{namespace}/{name}"), object);
    }

    fn put(&self, key: &str, mut object: Value) {
        let mut state = lock(&self.state);
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.objects.insert(key.to_owned(), (version, object));
    }

    /// Answers nothing, and cuts what is open, or is back. What has happened before is not known
    /// any more then.
    pub fn set_away(&self, away: bool) {
        let mut state = lock(&self.state);
        state.away = away;
        state.cuts += 1;
        state.oldest = state.version;
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(state: &Mutex<State>, stream: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    if lock(state).away {
        return Ok(());
    }
    let mut reader = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let mut stream = reader.into_inner();
    let target =
        head.first().and_then(|line| line.split(' ').nth(1)).context("no request")?.to_owned();
    let authorization = format!("authorization: bearer {TOKEN}");
    if !head.iter().any(|line| line.to_lowercase() == authorization) {
        return say(&mut stream, "403 Forbidden", &json!({}));
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.trim_start_matches("/api/v1/");
    let value = |name: &str| {
        let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.map(|text| text.replace("%3D", "="))
    };
    let Some(selector) = value("fieldSelector") else {
        let key = match path.strip_prefix("namespaces/").and_then(|rest| rest.split_once("/pods/"))
        {
            Some((namespace, name)) => format!("pods/{namespace}/{name}"),
            None => path.to_owned(),
        };
        let found = lock(state).objects.get(&key).map(|(_, object)| object.clone());
        return match found {
            Some(object) => say(&mut stream, "200 OK", &object),
            None => say(&mut stream, "404 Not Found", &json!({})),
        };
    };
    if value("watch").is_some() {
        let from =
            value("resourceVersion").and_then(|text| text.parse().ok()).context("no version")?;
        return watch(state, &mut stream, path, &selector, from);
    }
    let list = {
        let state = lock(state);
        let items: Vec<Value> =
            since(&state, path, &selector, 0).into_iter().map(|(_, object)| object).collect();
        json!({ "metadata": { "resourceVersion": state.version.to_string() }, "items": items })
    };
    say(&mut stream, "200 OK", &list)
}

/// The objects of a kind that were changed after a version, in their order.
fn since(state: &State, kind: &str, selector: &str, version: u64) -> Vec<(u64, Value)> {
    let fits = |object: &Value| match selector.split_once('=') {
        Some(("spec.nodeName", node)) => object["spec"]["nodeName"] == node,
        Some(("metadata.name", name)) => object["metadata"]["name"] == name,
        _ => false,
    };
    let own = state
        .objects
        .iter()
        .filter(|(key, (at, object))| key.starts_with(kind) && *at > version && fits(object));
    let mut all: Vec<(u64, Value)> = own.map(|(_, found)| found.clone()).collect();
    all.sort_by_key(|(at, _)| *at);
    all
}

fn watch(
    state: &Mutex<State>,
    stream: &mut Stream,
    kind: &str,
    selector: &str,
    from: u64,
) -> Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    stream.flush()?;
    let (begun, oldest) = {
        let state = lock(state);
        (state.cuts, state.oldest)
    };
    if from < oldest {
        let gone = json!({ "kind": "Status", "code": 410, "message": "too old resource version" });
        tell(stream, "ERROR", &gone)?;
        stream.write_all(b"0\r\n\r\n")?;
        return Ok(stream.flush()?);
    }
    let mut last = from;
    loop {
        let new = {
            let state = lock(state);
            if state.cuts != begun {
                return Ok(());
            }
            since(&state, kind, selector, last)
        };
        for (at, object) in new {
            last = at;
            tell(stream, "MODIFIED", &object)?;
        }
        thread::sleep(LOOK);
    }
}

/// An event as a line of its own.
fn tell(stream: &mut Stream, kind: &str, object: &Value) -> Result<()> {
    let line = format!("{}\n", json!({ "type": kind, "object": object }));
    write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
    Ok(stream.flush()?)
}

fn say(stream: &mut Stream, status: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}
