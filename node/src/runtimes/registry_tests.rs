//! Registries that misbehave.

use super::*;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

const PATIENCE: Duration = Duration::from_millis(700);

/// A server on this machine that answers each request as `answer` says. Gives `HOST:PORT`.
fn serve(
    answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || {
                let (mut stream, mut head) = (stream, Vec::new());
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.extend(byte);
                }
                let _ = answer(&String::from_utf8_lossy(&head), &mut stream);
            });
        }
    });
    address
}

fn access(registry: &str) -> Access {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Access {
        registry: registry.to_owned(),
        plain: true,
        private: true,
        elsewhere: vec![],
        credentials: None,
    }
}

fn registry(access: Access) -> Registry {
    Registry::new(access, PATIENCE).unwrap()
}

fn ok(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn refused(address: &str) -> String {
    let begun = Instant::now();
    let error = registry(access(address)).blob("shop/web", "sha256:0", 1 << 20).await.unwrap_err();
    assert!(begun.elapsed() < 8 * PATIENCE, "{:?}", begun.elapsed());
    format!("{error:#}")
}

#[tokio::test]
async fn an_endless_blob_is_given_up_at_its_bound() {
    let endless = serve(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let chunk = [&b"10000\r\n"[..], &vec![b'x'; 0x10000], b"\r\n"].concat();
        loop {
            stream.write_all(&chunk)?;
        }
    });
    let error = refused(&endless).await;
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    let announced = serve(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx")
    });
    let error = refused(&announced).await;
    assert!(error.contains("at most 1048576"), "{error}");
}

#[tokio::test]
async fn a_blob_that_drips_and_an_answer_that_does_not_come_are_given_up_in_time() {
    let slow = serve(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
        loop {
            stream.write_all(b"x")?;
            thread::sleep(Duration::from_millis(50));
        }
    });
    refused(&slow).await;
    refused(&serve(|_, _| {
        thread::sleep(Duration::from_secs(20));
        Ok(())
    }))
    .await;
}

#[tokio::test]
async fn headers_without_end_are_given_up() {
    refused(&serve(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\n")?;
        loop {
            write!(stream, "X-{}: {}\r\n", "a".repeat(100), "b".repeat(1000))?;
        }
    }))
    .await;
}

#[tokio::test]
async fn a_redirect_leads_to_no_other_host_unless_that_was_named() {
    let target = serve(|head, stream| {
        assert!(!head.to_lowercase().contains("authorization"), "another host sees no password");
        ok(stream, "secret of another")
    });
    // The same machine, by another name.
    let elsewhere = target.replace("127.0.0.1", "localhost");
    let leads = serve(move |_, stream| {
        write!(
            stream,
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{elsewhere}/x\r\n\
            Content-Length: 0\r\n\r\n"
        )
    });
    let error = refused(&leads).await;
    assert!(error.contains("registry_redirects"), "{error}");
    let named = Access { elsewhere: vec!["localhost".into()], ..access(&leads) };
    let found = registry(named).blob("shop/web", "sha256:0", 100).await.unwrap();
    assert_eq!(found, b"secret of another");
    let around = serve(|_, stream| {
        write!(
            stream,
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: /v2/again\r\nContent-Length: 0\r\n\
            Connection: close\r\n\r\n"
        )
    });
    let error = refused(&around).await;
    assert!(error.contains("redirects too often"), "{error}");
}

#[tokio::test]
async fn private_networks_are_entered_only_where_that_was_configured() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for host in [
        "127.0.0.1:1",
        "169.254.169.254",
        "10.0.0.1:5000",
        "[::1]:5000",
        "[fd00::1]",
        "localhost:5000",
    ] {
        let outside = Access { private: false, ..access(host) };
        let error = Registry::new(outside, PATIENCE).err().map(|error| format!("{error:#}"));
        assert!(
            error.as_ref().is_some_and(|error| error.contains("private_registries")),
            "{host} {error:?}"
        );
    }
    assert_eq!(host_of("[fd00::1]"), "[fd00::1]");
    // A name is looked at once it is resolved.
    let resolved = PublicOnly.resolve("localhost".parse().unwrap()).await;
    assert!(resolved.is_err_and(|error| error.to_string().contains("private_registries")));
}

#[tokio::test]
async fn a_token_is_asked_for_where_the_registry_says_and_bounded_too() {
    let tokens = serve(|head, stream| {
        assert!(
            head.starts_with("GET /token?scope=repository%3Ashop%2Fweb%3Apull&service=r"),
            "{head}"
        );
        ok(stream, r#"{"token":"t0ken"}"#)
    });
    let challenge = move |head: &str, stream: &mut TcpStream| {
        if head.contains("Bearer t0ken") {
            return ok(stream, "the manifest");
        }
        write!(
            stream,
            "HTTP/1.1 401 Unauthorized\r\n\
            WWW-Authenticate: Bearer realm=\"http://{tokens}/token\",service=\"r\"\r\n\
            Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    let address = serve(challenge);
    let found = registry(access(&address)).manifest("shop/web", "tag").await.unwrap();
    assert_eq!(found.unwrap(), b"the manifest");
    let missing = serve(|_, stream| {
        write!(stream, "HTTP/1.1 404 Not ContainerFacts\r\nContent-Length: 0\r\n\r\n")
    });
    assert!(registry(access(&missing)).manifest("shop/web", "tag").await.unwrap().is_none());
}
