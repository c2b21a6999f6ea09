//! The coordinator's HTTP API by curl, as programs of others call it.

use crate::support::PATIENCE;
use meshward_api_types as api;
use meshward_lab::Mesh;
use meshward_types::Revision;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

/// The API of a mesh, by curl.
pub(crate) struct Api<'a> {
    mesh: &'a Mesh,
    ca: PathBuf,
    pub server: String,
    token: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    /// Returns the body as it is.
    pub(crate) fn body(&self) -> &str {
        &self.body
    }

    /// A header, by its name in small letters.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Reads the body.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the detail of a refusal, which must be a whole problem document.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem: api::Problem = self.read();
        assert_eq!(problem.status, self.status, "{self:?}");
        assert!(problem.kind.starts_with("urn:meshward:problem:"), "{self:?}");
        assert!(!problem.title.is_empty(), "{self:?}");
        problem.detail
    }
}

impl<'a> Api<'a> {
    pub(crate) fn of(mesh: &'a Mesh) -> Self {
        Self::with(mesh, &std::fs::read_to_string(mesh.context()).unwrap())
    }

    /// With the credential of a context.
    pub(crate) fn with(mesh: &'a Mesh, context: &str) -> Self {
        let context: api::Context = serde_json::from_str(context).unwrap();
        let ca = mesh.folder().join("api-ca.pem");
        std::fs::write(&ca, context.ca).unwrap();
        Self { mesh, ca, server: context.server, token: context.token }
    }

    /// With a token.
    pub(crate) fn with_token(mesh: &'a Mesh, token: String) -> Self {
        Self { token, ..Self::of(mesh) }
    }

    fn curl(&self, method: &str, path: &str, headers: &[&str]) -> Command {
        let host =
            format!("coordinator.meshward.internal:{}", self.server.rsplit(':').next().unwrap());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--include", "--path-as-is", "--request", method, "--cacert"])
            .arg(&self.ca);
        curl.args(["--header", "expect:", "--connect-to", &format!("{host}:{}", self.server)]);
        for header in headers {
            curl.args(["--header", header]);
        }
        curl.arg(format!("https://{host}{path}"));
        curl
    }

    pub(crate) fn as_stranger(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&[u8]>,
    ) -> Answer {
        static BODIES: AtomicU64 = AtomicU64::new(0);
        let mut curl = self.curl(method, path, headers);
        let file =
            self.mesh.folder().join(format!("api-body-{}", BODIES.fetch_add(1, Ordering::Relaxed)));
        if let Some(body) = body {
            std::fs::write(&file, body).unwrap();
            curl.arg("--data-binary").arg(format!("@{}", file.display()));
        }
        let out = self.mesh.site.netns.run(|| curl.output()).unwrap().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (head, body) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {out:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers =
            headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Answer { status, headers, body: body.to_owned() }
    }

    pub(crate) fn authorization(&self) -> String {
        format!("Authorization: Bearer {}", self.token)
    }

    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&Value>,
    ) -> Answer {
        let own = [self.authorization(), "content-type: application/json".into()];
        let all: Vec<&str> =
            own.iter().map(String::as_str).chain(headers.iter().copied()).collect();
        self.as_stranger(
            method,
            path,
            &all,
            body.map(|body| body.to_string().into_bytes()).as_deref(),
        )
    }

    /// Reads what is at a path.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.call("GET", path, &[], None);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.read()
    }

    /// Reads the first page of a list.
    pub(crate) fn list<T: DeserializeOwned>(&self, path: &str) -> Vec<T> {
        self.get::<api::Page<T>>(path).items
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[], Some(body))
    }

    pub(crate) fn watch(&self, path: &str) -> Watch {
        let mut curl = self.curl("GET", path, &[&self.authorization()]);
        let spawn = || curl.arg("--no-buffer").stdout(Stdio::piped()).spawn();
        let mut child = self.mesh.site.netns.run(spawn).unwrap().unwrap();
        let (lines, output) = (mpsc::channel(), BufReader::new(child.stdout.take().unwrap()));
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| lines.0.send(line))
        });
        Watch { child, lines: lines.1 }
    }
}

/// A list that is watched.
pub(crate) struct Watch {
    child: Child,
    pub lines: mpsc::Receiver<String>,
}

/// An event of a watch.
pub(crate) struct Event {
    pub name: String,
    pub data: Value,
}

/// An event about an entry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryEvent {
    pub name: String,
    pub key: String,
}

/// The events about entries until all of a revision is said.
pub(crate) struct Batch {
    pub events: Vec<EntryEvent>,
    pub revision: Revision,
}

/// The event that says that all of a revision was said.
#[derive(Deserialize)]
struct Synced {
    revision: Revision,
}

impl Watch {
    /// Waits for the next event.
    pub(crate) fn next(&self) -> Event {
        let mut name = String::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("an event comes");
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Event { name, data: serde_json::from_str(data).unwrap() };
            }
        }
    }

    /// Waits until all of a revision is said.
    pub(crate) fn synced(&self) -> Batch {
        let mut events = Vec::new();
        loop {
            let Event { name, data } = self.next();
            if name == "synced" {
                let Synced { revision } = serde_json::from_value(data).unwrap();
                return Batch { events, revision };
            }
            let change: api::Change<IgnoredAny> = serde_json::from_value(data).unwrap();
            events.push(EntryEvent { name, key: change.key });
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
