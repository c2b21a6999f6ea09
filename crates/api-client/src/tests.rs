use super::*;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

/// Answers one connection after the other with these, and gives the heads of the requests.
fn answering(socket: &Path, answers: Vec<&'static str>) -> tokio::task::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            heads.push(String::from_utf8_lossy(&head[..length]).to_lowercase());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    })
}

const BUSY: &str = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 15\r\n\
    \r\n{\"detail\":\"no\"}";
const NEVER: &str =
    "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 15\r\n\r\n{\"detail\":\"no\"}";
const DONE: &str = "HTTP/1.1 200 OK\r\netag: \"a\"\r\ncontent-length: 2\r\n\r\n{}";

#[tokio::test]
async fn what_is_refused_for_its_number_is_asked_again_as_long_as_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| folder.path().join(name);
    let own = answering(&socket("a"), vec![BUSY, BUSY, DONE]);
    let client = Client::node(&socket("a")).persistent(Duration::from_secs(10));
    let begun = Instant::now();
    client.post::<Value>("/x", &Value::Null).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2) && own.await.unwrap().len() == 3);

    let refused = |result: Result<Value, Error>| {
        matches!(result, Err(Error::Refused { status: Some(429), .. }))
    };
    // Not beyond what whoever asks is ready to wait, and not without being asked to.
    for (name, persistence, answers) in [
        ("b", Duration::from_millis(500), vec![BUSY]),
        ("c", Duration::ZERO, vec![BUSY]),
        ("d", Duration::from_secs(10), vec![NEVER]),
    ] {
        let own = answering(&socket(name), answers);
        let client = Client::node(&socket(name)).persistent(persistence);
        assert!(refused(client.get("/x").await), "{name}");
        own.await.unwrap();
    }
}

#[tokio::test]
async fn a_write_says_which_state_it_overwrites_and_a_read_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a");
    let own = answering(&socket, vec![DONE, DONE]);
    let client = Client::node(&socket).if_match("\"a\"".into());
    client.get::<Value>("/x").await.unwrap();
    client.put::<Value>("/x", &Value::Null).await.unwrap();
    let heads = own.await.unwrap();
    assert!(!heads[0].contains("if-match") && heads[1].contains("if-match: \"a\""), "{heads:?}");
}
