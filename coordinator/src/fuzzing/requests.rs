//! Requests to the API, as an admin may send them: each is answered with success, or with a
//! sentence that says what is wrong; none fails with 5xx.

use super::folder;
use crate::{
    api,
    ca::Ca,
    mesh::{ChangeContext, Mesh, Settings},
    store::{Sqlite, Store},
};
use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, Response, Uri},
};
use http_body_util::BodyExt;
use meshward_api_types::{CreateCredential, Role};
use meshward_control_state::plans;
use meshward_fuzzing::{Bytes, blocks};
use std::{path::Path, sync::Arc};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

const SECRET: &str = "secret";
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
/// The maximum number of requests of one input, and the maximum length of an answer in bytes.
const MOST: usize = 6;
const LONGEST: usize = 1 << 20;
/// The paths, with a name in place of the braces.
const PATHS: [&str; 32] = [
    "/v1/networks",
    "/v1/networks/{}",
    "/v1/networks/{}/policy",
    "/v1/networks/{}/policy/difference",
    "/v1/networks/{}/policy/log",
    "/v1/networks/{}/policy/rollback",
    "/v1/networks/{}/policy/suggestion",
    "/v1/policies",
    "/v1/explain",
    "/v1/links",
    "/v1/quarantines",
    "/v1/quarantines/release",
    "/v1/credentials",
    "/v1/credentials/{}",
    "/v1/tokens",
    "/v1/tokens/{}",
    "/v1/nodes",
    "/v1/nodes/{}",
    "/v1/workloads",
    "/v1/devices",
    "/v1/devices/shop/{}",
    "/v1/routes",
    "/v1/routes/approve",
    "/v1/routes/disapprove",
    "/v1/egress/approve",
    "/v1/egress/disapprove",
    "/v1/relays",
    "/v1/relays/{}",
    "/v1/keys/rotate",
    "/v1/audit",
    "/v1/status",
    "{}",
];
const POLICY: &str =
    "network: shop\nrules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]\n";

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Fills a store with a credential, a network and a policy.
pub(super) fn filled(store: Box<dyn Store>) {
    runtime().block_on(async { drop(mesh(store).await) });
}

async fn mesh(store: Box<dyn Store>) -> Router {
    let ca = Ca::open(&folder()).expect("there is a CA");
    let mesh = Mesh::open(ca, store, Settings::default()).expect("the store is empty");
    credential(&mesh).await;
    let router = api::router(mesh);
    let network = r#"{"name":"shop","prefixes":["10.42.0.0/16"]}"#;
    let policy = serde_json::json!({ "files": [{ "name": "a.yaml", "text": POLICY }] }).to_string();
    for (path, body) in [("/v1/networks", network), ("/v1/policies", policy.as_str())] {
        let (status, text) =
            ask(&router, "POST", path.parse().expect("a path"), body.as_bytes()).await;
        assert!((200..300).contains(&status), "{path}: {status} {text}");
    }
    router
}

async fn credential(mesh: &Arc<Mesh>) {
    let wanted = CreateCredential {
        name: "admin".into(),
        role: Role::Admin,
        networks: vec![],
        lifetime_seconds: None,
    };
    let plan = |_: &_| Ok(plans::credentials::add(&wanted, SECRET, None));
    mesh.change(&ChangeContext::named("user:first-start"), plan).await.expect("it can be made");
}

async fn ask(router: &Router, method: &str, uri: Uri, body: &[u8]) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("authorization", format!("Bearer {SECRET}"))
        .header("content-type", "application/json")
        .extension(ConnectInfo(api::Origin { address: ([192, 0, 2, 1], 7).into(), permit: None }))
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let answer: Response<Body> = match router.clone().oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    };
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("it is in memory").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Requests: a byte for the method, one for the path, one for whether it is a dry run; blocks for a
/// name in the path, the query and the body.
pub(super) fn api(data: &[u8]) {
    let store = Sqlite::open(Path::new(":memory:")).expect("a store in memory");
    runtime().block_on(async {
        let router = mesh(Box::new(store)).await;
        let mut bytes = Bytes(data);
        for _ in 0..MOST {
            if bytes.is_empty() {
                break;
            }
            let method = METHODS[bytes.below(METHODS.len())];
            let path = PATHS[bytes.below(PATHS.len())];
            let dry = if bytes.byte() % 2 == 1 { "dry_run=true&" } else { "" };
            let (name, query, body) = (bytes.text(), bytes.text(), bytes.block());
            let Ok(uri) = format!("{}?{dry}{query}", path.replace("{}", &name)).parse::<Uri>()
            else {
                continue;
            };
            let (status, text) = ask(&router, method, uri.clone(), body).await;
            assert!(status < 500, "{method} {uri}: {status} {text}");
            assert!(text.len() <= LONGEST, "{method} {uri}: an answer of {} bytes", text.len());
            if status >= 400 && !path.starts_with('{') {
                let error = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
                // Extractors of axum answer in plain text.
                let sentence = error["error"].as_str().unwrap_or(&text);
                assert!(!sentence.is_empty(), "{method} {uri}: {status} without a reason: {text}");
            }
        }
    });
}

pub(super) fn samples() -> Vec<Vec<u8>> {
    let request = |method: usize, path: &str, name: &str, query: &str, body: &str| {
        let path = PATHS.iter().position(|own| *own == path).expect("one of the paths");
        [vec![method as u8, path as u8, 0], blocks([name, query, body])].concat()
    };
    let get = |path: &str, query: &str| request(0, path, "shop", query, "");
    let policies = serde_json::json!({ "files": [{ "name": "b", "text": POLICY }], "prune": true })
        .to_string();
    vec![
        [
            get("/v1/policies", ""),
            get("/v1/audit", "limit=3"),
            get("/v1/networks/{}/policy/difference", "from=r1&to=r3"),
        ]
        .concat(),
        get("/v1/explain", "network=shop&from=app%3Dweb&to=app%3Dapi&port=tcp%2F80"),
        request(1, "/v1/policies", "", "", &policies),
        request(
            1,
            "/v1/networks",
            "",
            "",
            r#"{"name":"lab","prefixes":["10.43.0.0/16","fd43::/48"],"mtu":1400}"#,
        ),
        request(
            1,
            "/v1/quarantines",
            "",
            "",
            r#"{"target":{"label":"app=web"},"network":"shop","why":"odd","for":"10m"}"#,
        ),
        request(
            1,
            "/v1/credentials",
            "",
            "",
            r#"{"name":"ops","role":"operator","networks":["shop"]}"#,
        ),
        request(
            1,
            "/v1/tokens",
            "",
            "",
            r#"{"uses":2,"ttl_seconds":60,"networks":["shop"],"site":"a"}"#,
        ),
        request(
            1,
            "/v1/routes/approve",
            "",
            "",
            r#"{"network":"shop","workload":"w1","prefixes":["192.168.0.0/24"]}"#,
        ),
        request(1, "/v1/networks/{}/policy/rollback", "shop", "", r#"{"to":"r3"}"#),
        request(4, "/v1/networks/{}", "shop", "", ""),
    ]
}
