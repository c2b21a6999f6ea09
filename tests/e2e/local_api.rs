//! The node's local API, as programs meet it that are none of ours.

use crate::support::{PATIENCE, member, mesh};
use meshward_api_types::Problem;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
};

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

/// Asks, the whole of it before anything of the answer is read.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let length = body.len();
    ask_raw(
        socket,
        &format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             {kind}content-length: {length}\r\n\r\n{body}"
        ),
    )
}

fn ask_raw(socket: &Path, request: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head: head.to_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

impl Answer {
    #[track_caller]
    fn is_problem(&self, status: u16, says: &str) {
        let Self { head, body, .. } = self;
        assert_eq!(self.status, status, "{body}");
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        let problem: Problem = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(problem.status, status, "{body}");
        assert!(problem.kind.starts_with("urn:meshward:problem:"), "{body}");
        assert!(!problem.title.is_empty(), "{body}");
        assert!(problem.detail.contains(says), "no `{says}` in {}", problem.detail);
    }
}

#[test]
fn whatever_the_node_refuses_it_refuses_with_a_problem_document() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let spare = node.attach("shop", "app=spare").unwrap();
    let socket = node.socket();
    let label = format!("/v1/workloads/{}", spare.id);
    let relabel = |labels: Value, instead_of: Value| {
        json!({ "labels": labels, "instead_of": instead_of }).to_string()
    };
    for (method, path, body, wanted, says) in [
        ("GET", "/v1/nothing", "", 404, "there is no /v1/nothing"),
        ("PUT", "/v1/status", "", 405, "does not take PUT"),
        ("GET", "/v1/status?verbose=1", "", 400, "verbose"),
        ("POST", "/v1/workloads?dry_run=perhaps", "{}", 400, "dry_run"),
        ("DELETE", "/v1/workloads/w-0123456789ab?dryrun=true", "", 400, "dryrun"),
        ("DELETE", "/v1/workloads/w-0123456789ab", "", 404, "w-0123456789ab"),
        ("DELETE", "/v1/workloads/%20%20", "", 400, ""),
        ("POST", "/v1/workloads", "", 415, "content-type: application/json"),
        ("POST", "/v1/workloads", "{", 400, "no JSON"),
        ("POST", "/v1/workloads", "{\"network\": \"shop\", \"colour\": 1}", 422, "`colour`"),
        ("POST", "/v1/workloads", "{\"network\": \"shop\"}", 422, "`netns`"),
        (
            "POST",
            "/v1/workloads",
            "{\"network\": \"nope\", \"netns\": \"/proc/1/ns/net\"}",
            404,
            "`nope`",
        ),
        (
            "POST",
            "/v1/workloads",
            "{\"network\": \"shop\", \"netns\": \"/nowhere\"}",
            422,
            "/nowhere",
        ),
        (
            "PATCH",
            &label,
            &relabel(json!({ "app": "x" }), json!({ "app": "other" })),
            412,
            "app=spare",
        ),
        ("PATCH", &label, &relabel(json!({ "meshward/site": "x" }), Value::Null), 422, "by hand"),
        ("POST", "/v1/ping", "{\"target\": \"nobody\"}", 404, "nobody"),
        ("POST", "/v1/routes", "{\"network\": \"shop\", \"prefixes\": []}", 422, ""),
        ("GET", "/v1/containers", "", 400, "network"),
        ("GET", "/v1/containers/none/eth0", "", 404, ""),
        ("DELETE", "/v1/routes?network=shop", "", 400, "prefix"),
        ("DELETE", "/v1/routes?network=shop&prefix=10.0.0.0/8", "", 404, "10.0.0.0/8"),
    ] {
        let answer = ask(&socket, method, path, body);
        println!("{method} {path} {body}: {} {}", answer.status, answer.body);
        answer.is_problem(wanted, says);
    }
    assert_eq!(ask(&socket, "GET", "/v1/status", "").status, 200);
    assert_eq!(ask(&socket, "GET", "/metrics", "").status, 200);
    let labels = node.attached().unwrap().remove(0).labels;
    assert_eq!(labels.to_string(), "app=spare", "nothing of that was done");
}

#[test]
fn a_body_that_is_too_large_is_refused_so_that_the_client_hears_it() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let socket = node.socket();
    let head = "POST /v1/workloads HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        content-type: application/json\r\n";
    for mebibytes in [1, 2, 40] {
        let text = " ".repeat((mebibytes << 20) + 1);
        ask(&socket, "POST", "/v1/workloads", &text).is_problem(413, "at most 1 MiB");
        // The same without a length that is told before.
        let chunk = " ".repeat(64 << 10);
        let chunks = format!("{:x}\r\n{chunk}\r\n", chunk.len()).repeat(mebibytes * 16 + 1);
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
        ask_raw(&socket, &chunked).is_problem(413, "at most 1 MiB");
    }
    // What just fits is read.
    let text = " ".repeat((1 << 20) - 2) + "{}";
    ask(&socket, "POST", "/v1/workloads", &text).is_problem(422, "`network`");
}

#[test]
fn a_node_that_was_told_nothing_yet_says_that_it_is_too_early_and_when_to_ask_again() {
    let mut mesh = mesh();
    let (site, ..) = member(&mut mesh, "late");
    mesh.coordinator.kill();
    let node = mesh.node_at(site).has_joined().start_alone().unwrap();
    mesh.wait(|| node.socket().exists()).unwrap();
    let body = "{\"network\": \"shop\", \"netns\": \"/proc/1/ns/net\"}";
    let answer = ask(&node.socket(), "POST", "/v1/workloads", body);
    answer.is_problem(503, "shop");
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
}

#[test]
fn labels_that_several_give_at_once_are_all_there_in_the_end() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let spare = node.attach("shop", "app=spare").unwrap();
    thread::scope(|scope| {
        for at in 0..6 {
            let (node, id) = (&node, &spare.id);
            scope.spawn(move || node.meshctl(&["label", id, &format!("k{at}=v")]).unwrap());
        }
    });
    let labels = node.attached().unwrap().remove(0).labels;
    let keys: BTreeSet<&str> = labels.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, BTreeSet::from(["app", "k0", "k1", "k2", "k3", "k4", "k5"]));
}
